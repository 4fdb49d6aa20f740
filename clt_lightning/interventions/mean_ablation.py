"""Features at their mean code, in the live model, for whole batches of images: the one mean ablation of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.columns import columns

#: (layer, feature)
Feature = tuple[int, int]


@contextmanager
def mean_ablated(
    clip: Backbone, clt: CrossLayerTranscoder, features: Sequence[Feature], means: Tensor, amount: float = 1.0
) -> Iterator[None]:
    """While active, features stand at their mean code at every position, whatever the image shows.

    The backbone's own computation goes on: to what it writes at a site is added `sum over features of
    (mean - code) W_dec`. Codes are read from the running stream, so that a feature sees what earlier layers' edits have
    done.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device; of any topology and sites within blocks.
        features: (layer, feature) each once; none change nothing.
        means: `(layers, positions, F)` mean codes over training images.
        amount: share of the way to the mean.

    Raises:
        UserError: a feature that does not exist or is named twice, means of another shape, or a site after the blocks.
    """
    check_features(clip, clt, features, means)
    by_layer: dict[int, list[int]] = {}
    for layer, feature in features:
        by_layer.setdefault(layer, []).append(feature)
    blocks = check_fit(clip, clt)
    read, write = str(clt.sites.read), str(clt.sites.write)
    same = read == write
    usual = {layer: means[layer][:, some].to(clip.device) for layer, some in by_layer.items()}
    inputs: dict[int, Tensor] = {}
    changes: dict[int, Tensor] = {}

    def see(block: int, x: Tensor) -> None:
        layer, flat = blocks.index(block), x.flatten(0, 1)
        inputs[layer] = flat
        if layer in by_layer:
            codes = columns(clt.encode_layer(flat, layer), by_layer[layer]).detach()
            towards = usual[layer].to(codes).repeat(len(x), 1)
            changes[layer] = amount * (towards - codes)

    def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        layer, y = blocks.index(block), compute()
        if same:
            see(block, y)
        elif layer not in inputs:
            raise UserError(f"{read} of layer {layer} comes after {write}: no edit can read it")
        added: Tensor | None = None
        for source, some in by_layer.items():
            if source <= layer and clt.writes(source, layer):
                part = changes[source] @ (clt.W_dec[source][some, layer - source] * clt.y_scale[layer]).detach()
                added = part if added is None else added + part
        if added is None:
            return y
        return y + clt.in_units(added, inputs.pop(layer)).detach().view_as(y).to(y.dtype)

    with ExitStack() as stack:
        if by_layer:
            window = [
                blocks[layer]
                for layer in range(clt.n_layers)
                if any(source <= layer and clt.writes(source, layer) for source in by_layer)
            ]
            if not same:
                stack.enter_context(clip.watch(see, sorted({*window, *(blocks[i] for i in by_layer)}), read))
            stack.enter_context(clip.override(write, put, window))
        yield


def check_features(clip: Backbone, clt: CrossLayerTranscoder, features: Sequence[Feature], means: Tensor) -> None:
    """Whether these can be set to these means.

    Raises:
        UserError: they cannot.
    """
    if clt.sites.once:
        raise UserError(f"features are ablated within the blocks, not at {clt.sites.write}, which a model has once")
    if len(set(features)) < len(features):
        twice = next(feature for feature in features if list(features).count(feature) > 1)
        raise UserError(f"feature {twice[0]}/{twice[1]} is named twice")
    for layer, feature in features:
        if not (0 <= layer < clt.n_layers and 0 <= feature < clt.n_features):
            raise UserError(
                f"there is no feature {layer}/{feature}: layers are 0..{clt.n_layers - 1}, features "
                f"0..{clt.n_features - 1}"
            )
    wanted = (clt.n_layers, clip.n_positions, clt.n_features)
    if tuple(means.shape) != wanted:
        raise UserError(f"mean codes must be (layers, positions, features) = {wanted}, got {tuple(means.shape)}")
