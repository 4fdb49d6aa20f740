"""FrozenViT: a Vision Transformer without a text tower, by timm's name or one that you have."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from clt_lightning.backbone.backbone import PRECISIONS, Backbone, Precision, check_precision
from clt_lightning.backbone.clip.weights import read_tensors
from clt_lightning.backbone.families import family_of
from clt_lightning.backbone.families.base import Family
from clt_lightning.backbone.make import GIVEN
from clt_lightning.core.errors import UserError, about, setting
from clt_lightning.core.kinds import first_line
from clt_lightning.core.paths import expand
from clt_lightning.core.tokens import TokenLayout


class FrozenViT(Backbone):
    """A Vision Transformer that never changes (`Backbone`), without a text tower.

    Its embedding is what the model's own head reads (timm's `forward_head(..., pre_logits=True)`).

    Args:
        name: timm's name of the architecture (`timm.list_models("*vit*")`), such as `vit_small_patch14_reg4_dinov2`;
            with a tag of weights behind a dot, such as `vit_base_patch16_224.augreg_in21k_ft_in1k`.
        pretrained: `default` for timm's weights (those of the name's tag, or timm's first choice), another tag of
            timm's, the path of a file of weights (safetensors or `torch.save`), or null for random weights.
        precision: `fp32`, `bf16` or `fp64`: of weights and activations; embeddings are fp32 (fp64 for `fp64`).
        image_size: side of the input in pixels; null for the architecture's own.
        seed: seed of the random weights when `pretrained` is null.

    Raises:
        UserError: an unknown name or tag, an architecture that is no Vision Transformer of a known layout
            (docs/backbones.md), or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str = "vit_small_patch14_dinov2",
        pretrained: str | Path | None = "default",
        precision: Precision = "fp32",
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_precision(precision)
        pretrained = None if pretrained is None else str(pretrained)
        family_by_name(name, image_size)  # what cannot work is refused before anything is downloaded
        size = {} if image_size is None else {"img_size": image_size}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model(name, pretrained, size)
        self._begin(family_of(model.to(PRECISIONS[precision]), name), name, pretrained, precision)
        self.seed = seed

    @classmethod
    def from_model(
        cls,
        module: nn.Module,
        name: str | None = None,
        tokens: TokenLayout | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        family: type[Family] | None = None,
    ) -> Self:
        """A backbone of a model that one already has: of open_clip, timm, or in a layout of transformers.

        The module is frozen and put into eval mode, in place; its precision is that of its weights.

        Args:
            module: the model, or its image tower.
            name: what to call it; None: its class.
            tokens: which positions are [CLS], registers and patches, where the module does not say.
            mean, std: per channel, of the images that it was trained on; None: what its library says.
            family: which layout it is, where it is none of the known ones: a `Family` of your own (CONTRIBUTING.md).

        Raises:
            UserError: no Vision Transformer of a known layout; or it is one, and its blocks do not add up to what the
                module itself computes.
        """
        called = name or type(module).__name__
        dtypes = {p.dtype for p in module.parameters()}
        precision = next((key for key, dtype in PRECISIONS.items() if dtypes == {dtype}), None)
        if precision is None:
            found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise UserError(f"'{called}' has weights of type {found}: give it one of {', '.join(PRECISIONS)}")
        module.eval()
        parts = family_of(module, called) if family is None else family(module, called)
        if tokens is not None:
            parts.tokens = tokens
        self = cls.__new__(cls)
        self._begin(parts, called, GIVEN, precision)
        self.made_with = None
        if mean is not None or std is not None:
            self._normalize_by(mean, std)
        self._check()
        return self

    def _begin(self, family: Family, name: str, pretrained: str | None, precision: str) -> None:
        super().__init__(family, name, pretrained, precision)
        self.seed = 0

    def _normalize_by(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self.mean = tuple(self.mean if mean is None else mean)
        self.std = tuple(self.std if std is None else std)
        for step in getattr(self.preprocess, "transforms", ()):
            if hasattr(step, "mean") and hasattr(step, "std"):
                step.mean, step.std = self.mean, self.std

    def _check(self) -> None:
        """One image, as the module computes it and block by block.

        Raises:
            UserError: they are not the same.
        """
        shape = 1, 3, self.image_size, self.image_size
        image = torch.linspace(-1, 1, 3 * self.image_size**2, dtype=self.dtype, device=self.device).view(shape)
        own = self.encode_image(image, normalize=False)
        streams: dict[int, Tensor] = {}
        with self.watch(streams.__setitem__, site="resid_post"):
            tapped = self.encode_image(image, normalize=False)
        wanted = (1, self.n_positions, self.d_model)
        if len(streams) != self.n_layers or tuple(streams[0].shape) != wanted:
            got = tuple(next(iter(streams.values())).shape) if streams else "no tokens"
            raise UserError(
                f"'{self.name}': {self.tokens} was read off the module, so (images, positions, d_model) = {wanted} was "
                f"expected after its first block, got {got}: say with tokens=TokenLayout(...) which positions are what"
            )
        after = self.run_from(self.n_layers, streams[self.n_layers - 1], normalize=False)
        close = 1e-2 if self.precision == "bf16" else 1e-4
        if not torch.equal(own, tapped) or not torch.allclose(
            own, after, rtol=close, atol=close * float(own.abs().max())
        ):
            raise UserError(
                f"'{self.name}' has the parts of a known layout but computes something else with them (the embedding "
                "of one image differs): its sites would not be what they are called"
            )

    def describe(self) -> dict[str, Any]:
        """What a run records of its backbone: plain values, ready for JSON."""
        seed = self.seed if self.pretrained is None else None
        return super().describe() | {"seed": seed, "timm": timm.__version__}


def family_by_name(name: str, image_size: int | None = None) -> Family:
    """The parts of an architecture of timm's, without weights and memory.

    Args:
        name: timm's name, with or without a tag.
        image_size: side of the input in pixels; None: the architecture's own.

    Raises:
        UserError: no such name, or one of another kind of network.
    """
    if not timm.is_model(name):
        raise UserError(f"{setting('name')}: timm {timm.__version__} has no architecture '{name}'{_closest(name)}")
    size = {} if image_size is None else {"img_size": image_size}
    with torch.device("meta"):
        return family_of(_create(name.partition(".")[0], **size), name)


def _create(name: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"timm {timm.__version__} cannot make '{name}': {first_line(error)}") from error


def _model(name: str, pretrained: str | None, size: dict[str, Any]) -> nn.Module:
    base, _, tag = name.partition(".")
    if pretrained is None:
        return _create(base, **size)
    tags = timm.list_pretrained(f"{base}.*")
    wanted = f"{base}.{tag}" if tag else base
    if pretrained != "default":
        wanted = f"{base}.{pretrained}"
        if wanted not in tags:
            return _with_file(base, pretrained, size, tags)
    elif (wanted not in tags) if tag else not tags:
        raise UserError(f"timm has no weights for '{wanted}'; {_known(base, tags)}")
    try:
        return timm.create_model(wanted, pretrained=True, **size)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{setting('pretrained')}: the weights of '{wanted}' are not on disk and could not be downloaded "
            f"({first_line(error, 300)}). Connect once to fetch them, or give the path of a file, or null for random "
            "weights"
        ) from error


def _with_file(base: str, pretrained: str, size: dict[str, Any], tags: list[str]) -> nn.Module:
    path = Path(expand(pretrained, setting("pretrained")))
    if not path.is_file():
        raise UserError(
            f"{setting('pretrained')}: '{pretrained}' is neither one of timm's tags for '{base}' nor a file on disk; "
            f"{_known(base, tags)}; or null for random weights"
        )
    with about("pretrained"):
        state, _ = read_tensors(path)
    model = _create(base, **size)
    own = model.state_dict()
    # a classifier of other classes does not matter: the embedding is what it reads
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist."))}
    kept = {key: value for key, value in own.items() if key.startswith(("head.", "head_dist."))}
    odd = sorted((own.keys() - kept.keys()) ^ state.keys())
    shaped = [key for key in state if key in own and state[key].shape != own[key].shape]
    if odd or shaped:
        said = f"{', '.join(odd[:2])} is in one of them alone" if odd else ""
        if shaped:
            key = shaped[0]
            said = f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        raise UserError(f"{setting('pretrained')}: the weights in '{path}' do not fit '{base}': {said}")
    model.load_state_dict(state | kept)
    return model


def _known(base: str, tags: list[str]) -> str:
    names = [name.partition(".")[2] for name in tags]
    return f"its tags: {', '.join(names[:10])}" if names else f"timm knows no weights of '{base}'"


def _closest(name: str) -> str:
    close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0.4)
    return f"; close to it: {', '.join(close)}" if close else ""
