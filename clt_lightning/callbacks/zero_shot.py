"""Zero-shot accuracy of the original CLIP and of the CLIP whose MLPs are replaced by the transcoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from clt_lightning.analysis.arm_table import Arms
from clt_lightning.analysis.arms import ORIGINAL, Arm, ArmRunner, attention_arms
from clt_lightning.analysis.reference import read_means, training_means
from clt_lightning.analysis.suite import Analysis
from clt_lightning.callbacks.measuring import Measuring, training_batches
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import check_token_sets

#: Training images behind the means of a validation; `test` takes `evaluate.population.images`
MEAN_IMAGES = 256


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


class ZeroShot(Measuring):
    """Zero-shot top-1 of the original and of the replaced CLIP, on the same images of the same run.

    Logs `<stage>/zero_shot/original`, `<stage>/zero_shot/replaced/<first>-<last>/<token set>`,
    `<stage>/zero_shot/kl/<first>-<last>/<token set>` (KL of the class probabilities from the original's, in nats) and
    on request `<stage>/zero_shot/mean_ablated`; of sparse attention `<stage>/zero_shot/attention` (all attention
    replaced) and `<stage>/zero_shot/with_attention` (all MLPs as well); accuracies in 0..1. Every window and token set
    costs the forward of the CLIP from the window's first layer on. Images without a label do not count; sets without
    class names are passed over with a line in the log.

    Attributes:
        doubts: why the accuracies say little, in sentences (`FrozenCLIP.zero_shot_doubts`); the table shows them.

    Args:
        windows: windows of layers to replace together, such as `["0-11", "3-11", "7-", "5"]`; every later layer reads
            the stream that the replaced ones have written (cascaded). Default: all layers.
        token_sets: at which tokens MLP outputs are replaced: `cls`, `register`, `patch`, `all`; the others keep
            their MLPs.
        classnames: class names, in the order of the labels; null takes the data's own.
        templates: prompt templates; null takes the data's own.
        include_mean_ablation: also put every MLP output to its mean over training images, one mean for [CLS], one for
            registers, one for patches: what is left when the MLPs say nothing about the image. A part of the training
            split is read for that, once; without one the mean over all tokens that the transcoder knows is taken.

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
        self._last = 0
        self._of_attention: list[Arm] = []
        self._means: Tensor | None = None

    @property
    def head(self) -> Tensor | None:  # type: ignore[override]
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
        self._last = n_layers - 1
        blocks = None if pl_module.attention is None else pl_module.clip.n_layers
        self._of_attention = attention_arms(blocks, ("attention", "with_attention"))
        windows = ["0-"] if self.windows is None else self.windows
        parsed = dict.fromkeys(parse_window(window, n_layers) for window in windows)
        self._plan = [(first, last, tokens) for first, last in parsed for tokens in self.token_sets]

    @property
    def arms(self) -> list[Arm]:
        """The variants of the model that are compared, the original first."""
        arms = [ORIGINAL, *(Arm("replaced", first, last, tokens) for first, last, tokens in self._plan)]
        arms += self._of_attention
        return [*arms, Arm("mean_ablated", 0, self._last, "all")] if self.include_mean_ablation else arms

    def analyses(self, trainer: pl.Trainer, pl_module: Any) -> list[Analysis]:
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
            return []
        if not names or not self._ready:
            missing = "class names" if not names else "templates"
            self._say_once(f"zero-shot accuracy is not measured: the data has no {missing}")
            return []
        wanted = tuple(names), tuple(templates or ())
        if self._head_of != wanted:
            self._head, self._head_of = clip.head_for(list(names), list(templates or ())), wanted
            self.doubts = clip.zero_shot_doubts(list(names), list(templates or ())) if clip.has_text else []
        assert self._head is not None
        self._head = self._head.to(pl_module.device)
        means = self._training_means(trainer, pl_module) if self.include_mean_ablation else None
        arms = [arm for arm in self.arms if arm.kind != "mean_ablated" or means is not None]
        runner = ArmRunner(pl_module.clip, pl_module.transcoder, means, attention=pl_module.attention)
        return [Arms(runner, arms)]

    def _training_means(self, trainer: pl.Trainer, pl_module: Any) -> Tensor | None:
        """`(L, kinds, d)` as `test` has them, of fewer training images; None where the transcoder has seen none."""
        clip, clt = pl_module.clip, pl_module.transcoder
        if not bool(clt.normalized):
            self._say_once("mean ablation is not measured: the transcoder has not seen the training data's means yet")
            return None
        if self._means is None:
            self._means = read_means(clip, clt, training_batches(trainer, MEAN_IMAGES))
        means = self._means if self._means is not None else training_means(clt, tokens_of(clip, clt), None)
        return None if means is None else means.to(pl_module.device)

    def found(self, entry: Mapping[str, Any]) -> None:
        arms = (entry.get("zero_shot") or {}).get("arms") or []
        if arms and not arms[0]["n"]:
            self._say_once("zero-shot accuracy is not measured: no image of this split has a label")
