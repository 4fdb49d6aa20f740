"""Zero-shot accuracy of the original CLIP and of the CLIP whose MLPs are replaced by the transcoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from clt_lightning.callbacks.base import Evaluation
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit, embed_replaced, replaced
from clt_lightning.metrics import LogitKL, ZeroShotAccuracy, check_token_sets, metric_device


def parse_window(text: str, n_layers: int) -> tuple[int, int]:
    """Read a window of layers from a config.

    Args:
        text: `3-11` (first and last layer, both replaced), `3-` (to the last layer), or `3` (one layer).
        n_layers: layers of the model.

    Returns:
        First and last layer.

    Raises:
        UserError: if it is no window, or not one of this model.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(-?)\s*(\d*)\s*", str(text))
    if match is None or (match[3] and not match[2]):
        raise UserError(
            f"zero_shot.windows: {text!r} is no window of layers; write '3-11', '3-' (to the last) or '3', or "
            "zero_shot.windows=null for all layers together"
        )
    first = int(match[1])
    last = int(match[3]) if match[3] else (n_layers - 1 if match[2] else first)
    if not first <= last < n_layers:
        raise UserError(
            f"zero_shot.windows: {text!r} does not fit a model with layers 0..{n_layers - 1}: write '<first>-<last>', "
            "'<first>-' for everything from there on, or zero_shot.windows=null for all layers together"
        )
    return first, last


class ZeroShot(Evaluation):
    """Zero-shot top-1 of the original and of the replaced CLIP, on the same images of the same run.

    Logs `<stage>/zero_shot/original`, `<stage>/zero_shot/replaced/<first>-<last>/<token set>`,
    `<stage>/zero_shot/kl/<first>-<last>/<token set>` (KL of the class probabilities from the original's, in nats) and
    on request `<stage>/zero_shot/mean_ablated`; accuracies in 0..1. Every window and token set costs one forward of the
    CLIP. Images without a label do not count; sets without class names are passed over with a line in the log.

    Attributes:
        doubts: why the accuracies say little, in sentences (`FrozenCLIP.zero_shot_doubts`); the table shows them.

    Args:
        windows: windows of layers to replace together, such as `["0-11", "3-11", "7-", "5"]`; every later layer reads
            the stream that the replaced ones have written (cascaded). Default: all layers.
        token_sets: at which tokens MLP outputs are replaced: `cls`, `register`, `patch`, `all`; the others keep
            their MLPs.
        classnames: class names, in the order of the labels; null takes the data's own.
        templates: prompt templates; null takes the data's own.
        include_mean_ablation: also put every MLP output to its mean over the training data: what is left when the MLPs
            say nothing about the image.

    Raises:
        UserError: on windows or token sets that do not exist.
    """

    def __init__(
        self,
        windows: Sequence[str] | None = None,
        token_sets: Sequence[str] = ("all",),
        include_mean_ablation: bool = False,
        classnames: list[str] | None = None,
        templates: list[str] | None = None,
    ) -> None:
        if isinstance(windows, str):
            raise UserError(f"zero_shot.windows must be a list, such as ['{windows}'], got the string {windows!r}")
        self.windows = None if windows is None else list(windows)
        self.token_sets = check_token_sets(token_sets, option="zero_shot.token_sets")
        self.include_mean_ablation = include_mean_ablation
        self.classnames, self.templates = classnames, templates
        self._head: Tensor | None = None
        self._head_of: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.doubts: list[str] = []
        self._ready = False
        self._said: set[str] = set()
        self._plan: list[tuple[int, int, str]] = []
        self._accuracy: dict[str, ZeroShotAccuracy] = {}
        self._kl: dict[str, LogitKL] = {}

    @property
    def head(self) -> Tensor | None:
        """`(embed_dim, classes)` of the split that is being measured; None where there are no class names."""
        return self._head if self._ready else None

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            rank_zero_info(text)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Here and not at the first validation: a typing error in the config must not cost an epoch.
        self._plan_for(pl_module)

    def _plan_for(self, pl_module: Any) -> None:
        n_layers = pl_module.transcoder.n_layers
        windows = ["0-"] if self.windows is None else self.windows
        parsed = dict.fromkeys(parse_window(window, n_layers) for window in windows)
        self._plan = [(first, last, tokens) for first, last in parsed for tokens in self.token_sets]

    def begin(self, trainer: pl.Trainer, pl_module: Any) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        names: list[str] | None = self.classnames or getattr(datamodule, "classnames", None)
        templates: list[str] | None = self.templates or getattr(datamodule, "templates", None)
        clip = pl_module.clip
        self._ready = clip.names_classes(names, templates)
        if not clip.has_text and clip.class_head is None:
            self._say_once(
                "accuracy is not measured: the backbone has no text tower (`python -m clt_lightning probe` learns a "
                "head from labels, for `test` and what comes after it)"
            )
            return
        if not names or not self._ready:
            missing = "class names" if not names else "templates"
            self._say_once(f"zero-shot accuracy is not measured: the data has no {missing}")
            return
        wanted = tuple(names), tuple(templates or ())
        if self._head_of != wanted:
            self._head, self._head_of = clip.head_for(list(names), list(templates or ())), wanted
            self.doubts = clip.zero_shot_doubts(list(names), list(templates or ())) if clip.has_text else []
        assert self._head is not None
        self._head = self._head.to(pl_module.device)
        device = metric_device(pl_module.device)
        keys = ["original", *(f"replaced/{first}-{last}/{tokens}" for first, last, tokens in self._plan)]
        if self._means(pl_module) is not None:
            keys.append("mean_ablated")
        self._accuracy = {key: ZeroShotAccuracy(len(names)).to(device) for key in keys}
        self._kl = {f"kl/{first}-{last}/{tokens}": LogitKL().to(device) for first, last, tokens in self._plan}
        if not pl_module.transcoder.sites.once:
            blocks = check_fit(pl_module.clip, pl_module.transcoder)
            pl_module.entries = {blocks[first] for first, _, _ in self._plan}

    def _means(self, pl_module: Any) -> Tensor | None:
        """Mean MLP outputs of the training data, `(L, d)`; None if they are not asked for or not known."""
        if not self.include_mean_ablation:
            return None
        if not bool(pl_module.transcoder.normalized):
            self._say_once("mean ablation is not measured: the transcoder has not seen the training data's means yet")
            return None
        result: Tensor | None = pl_module.transcoder.y_mean
        return result

    def take(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        if not self._ready:
            return
        images = batch["image"]
        labels = batch.get("label")
        if labels is None:
            labels = torch.full((len(images),), -1, dtype=torch.int64, device=images.device)
        blocks = check_fit(pl_module.clip, pl_module.transcoder)
        # The transcoder must run in the precision that the validation step gave it.
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            embeddings = outputs["acts"].embeddings
            original = self._cosines(pl_module.clip.encode_image(images) if embeddings is None else embeddings)
            self._accuracy["original"].update(original, labels)
            for first, last, tokens in self._plan:
                window = blocks[first : last + 1]
                cosines = self._cosines(self._replaced(pl_module, window, tokens, outputs, images))
                self._accuracy[f"replaced/{first}-{last}/{tokens}"].update(cosines, labels)
                self._kl[f"kl/{first}-{last}/{tokens}"].update(original, cosines)
            if "mean_ablated" in self._accuracy:
                site = str(pl_module.transcoder.sites.write)
                with mean_ablated(pl_module.clip, pl_module.transcoder.y_mean, site, blocks):
                    self._accuracy["mean_ablated"].update(self._cosines(pl_module.clip.encode_image(images)), labels)

    def _replaced(self, pl_module: Any, window: Sequence[int], tokens: str, outputs: Any, images: Tensor) -> Tensor:
        clip, clt = pl_module.clip, pl_module.transcoder
        if window[0] in outputs["entries"]:
            return embed_replaced(clip, clt, window, tokens, outputs["entries"], outputs["codes"])
        with replaced(clip, clt, window, tokens):
            embeddings: Tensor = clip.encode_image(images)
        return embeddings

    def _cosines(self, embeddings: Tensor) -> Tensor:
        assert self._head is not None
        with torch.autocast(embeddings.device.type, enabled=False):  # bf16 logits would tie
            return embeddings.float() @ self._head.float()

    def results(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
        if not self._ready:
            return {}
        accuracies = {key: metric.compute() for key, metric in self._accuracy.items()}
        out = {f"zero_shot/{key}": metric.compute() for key, metric in self._kl.items()}
        if not accuracies["original"]["images"]:
            self._say_once("zero-shot accuracy is not measured: no image of this split has a label")
            return out
        return {f"zero_shot/{key}": value["top1"] for key, value in accuracies.items()} | out


@contextmanager
def mean_ablated(
    clip: Any, means: Tensor, site: str = "mlp_out", blocks: Sequence[int] | None = None
) -> Iterator[None]:
    """While active, every MLP of the backbone adds the same vector to every token.

    Args:
        clip: the frozen backbone.
        means: `(L, d)` what each layer adds.
        site: what is put to its mean, where it is not the MLPs' outputs.
        blocks: of which block each layer is; None: of all.
    """
    of = list(clip.check_layers(None) if blocks is None else blocks)
    with clip.override(site, lambda block, x, compute: means[of.index(block)].to(x).expand_as(x), of):
        yield
