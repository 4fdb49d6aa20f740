"""Pictures in TensorBoard while a transcoder trains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from clt_lightning.callbacks.base import fast_dev_run, weights_at
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import TOKEN_SETS, CodeHistograms, check_token_sets, metric_device, present

if TYPE_CHECKING:  # matplotlib takes its time: it is imported when the first picture is drawn
    from matplotlib.figure import Figure

    from clt_lightning.analysis.contributions import Contributions
    from clt_lightning.report.figures.top_images import TopImages


#: Layers of which grids of features are drawn
_GRIDS = 4


def tensorboard(trainer: pl.Trainer) -> TensorBoardLogger | None:
    """The run's TensorBoard logger; None without one and under `fast_dev_run`."""
    if fast_dev_run(trainer):
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


class Figures(pl.Callback):
    """Draws every n-th validation into TensorBoard's images.

    `figures/reconstruction` (FVU, layers x token sets, over the whole split), `figures/contributions/<token
    set>/<centred or uncentred>` (over the first `images` of every process, all processes together) and
    `figures/features/layer_<ll>` (a few features of a few layers and their strongest images among the first `images` of
    process 0; the same features every time, chosen among those that fire in the first batch).

    `val/histogram/log10_frequency` (one count per feature: the share of the tokens on which it fired; silent ones are
    left out) and `val/histogram/log2_code` (all codes by magnitude), over the images of the contribution maps.

    Args:
        every: draw at every n-th validation; 0 draws nothing.
        images: images of the split, a process, behind contribution maps and feature grids.
        token_sets: token sets of the contribution maps.
        features: features a layer in the grids; 0 draws none.
        top: images per feature.
        per_layer: draw histograms and feature grids (at most 4 otherwise) of every layer; the run's logger then keeps
            the curves of every layer, too: 150 in a ViT-B.

    Raises:
        UserError: on a negative number or an unknown token set.
    """

    def __init__(
        self,
        every: int = 1,
        images: int = 256,
        token_sets: Sequence[str] | None = None,
        features: int = 3,
        top: int = 6,
        per_layer: bool = False,
    ) -> None:
        for name, value, least in (
            ("every", every, 0),
            ("images", images, 1),
            ("features", features, 0),
            ("top", top, 1),
        ):
            if value < least:
                raise UserError(f"figures.{name} must be {least} or more, got {value}")
        self.every, self.images, self.features, self.top = every, images, features, top
        self.per_layer = per_layer
        self.token_sets = None if token_sets is None else check_token_sets(token_sets, option="figures.token_sets")
        self._validations = 0
        self._draws = False
        self._seen = 0
        self._chosen: list[list[int]] | None = None
        self._contributions: Contributions | None = None
        self._histograms: CodeHistograms | None = None
        self._grids: list[TopImages] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        wanted = bool(self.every) and self._validations % self.every == 0
        self._draws = wanted and tensorboard(trainer) is not None
        if wanted and not self._draws and self._validations == 0:
            rank_zero_info("figures are not drawn (fast_dev_run, or no TensorBoard logger)")
        self._validations += 1
        self._seen = 0
        if self._draws:
            from clt_lightning.analysis.contributions import Contributions

            clt, device = pl_module.transcoder, metric_device(pl_module.device)
            self._contributions = Contributions(clt).to(device)
            self._histograms = CodeHistograms(clt.n_layers, clt.n_features).to(device)
            self._grids = [] if self._chosen is None else self._new_grids()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not self._draws or self._seen >= self.images:
            return
        codes, seen = outputs["codes"], outputs["seen"]
        self._seen += len(batch["image"])
        assert self._contributions is not None
        assert self._histograms is not None
        layout = tokens_of(pl_module.clip, pl_module.transcoder)
        self._contributions.update(codes, layout, x=seen.x)
        pairs = [codes.layer(layer) for layer in range(codes.n_layers)]
        self._histograms.update([(p.features, values) for p, values in pairs], codes.n_tokens)
        if self.features and trainer.is_global_zero:
            from clt_lightning.backbone.clip.images import to_pixels

            if self._chosen is None:
                self._chosen = [_spread(fired, self.features) for fired in codes.fired()]
                self._grids = self._new_grids()
            pixels = [to_pixels(image, pl_module.clip.mean, pl_module.clip.std) for image in batch["image"]]
            for grid in self._grids:
                grid.update(codes, pixels)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not self._draws:
            return
        assert self._contributions is not None
        assert self._histograms is not None
        scores = self._contributions.scores()  # of all processes: each must ask
        frequency, magnitudes = self._histograms.compute()
        self._contributions = self._histograms = None
        if not trainer.is_global_zero:
            return
        from clt_lightning.report.figures.maps import contribution_map, reconstruction_strip
        from clt_lightning.report.figures.top_images import top_images_grid

        logger = tensorboard(trainer)
        assert logger is not None
        step = weights_at(trainer)[0]
        add_histograms(logger, frequency, magnitudes, step, self.per_layer)
        tables = fvu_tables(trainer.callback_metrics)
        if tables:
            figure = reconstruction_strip(tables, "Fraction of variance unexplained", limit=1.0)
            add_picture(logger, "figures/reconstruction", figure, step)
        wanted = present(self.token_sets, pl_module.clip.tokens, "figures.token_sets", ("cls", "all"))
        for tokens in (name for name in wanted if name in scores):
            for kind in ("uncentred", "centred"):
                values = getattr(scores[tokens], f"whole_{kind}").numpy()
                figure = contribution_map(values, f"contributions, {kind}, {tokens}")
                add_picture(logger, f"figures/contributions/{tokens}/{kind}", figure, step)
        for grid in self._grids:
            if grid.features:
                figure = top_images_grid(grid, pl_module.clip.grid, pl_module.clip.n_prefix)
                add_picture(logger, f"figures/features/layer_{grid.layer:02d}", figure, step)
        self._grids = []

    def _new_grids(self) -> list[TopImages]:
        from clt_lightning.report.figures.top_images import TopImages

        chosen = self._chosen or []
        layers = range(len(chosen)) if self.per_layer else _spaced(len(chosen), _GRIDS)
        return [TopImages(layer, chosen[layer], self.top) for layer in layers]

    def state_dict(self) -> dict[str, Any]:
        """Which features are shown, so that a resumed run shows the same ones."""
        return {"chosen": self._chosen, "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._chosen, self._validations = state_dict["chosen"], state_dict["validations"]


def fvu_tables(metrics: Any) -> dict[str, list[float]]:
    """FVU by token set and layer, out of `val/fvu/<token set>/layer_<ll>`; empty where it was not logged."""
    tables: dict[str, list[float]] = {}
    for tokens in TOKEN_SETS:
        tags = sorted(tag for tag in metrics if re.fullmatch(rf"val/fvu/{tokens}/layer_\d+", tag))
        if tags:
            tables[tokens] = [float(metrics[tag]) for tag in tags]
    return tables


def add_picture(logger: TensorBoardLogger, tag: str, figure: Figure, step: int) -> None:
    """Draws a figure into TensorBoard, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    logger.experiment.add_image(tag, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")


def add_histograms(
    logger: TensorBoardLogger, frequency: Tensor, magnitudes: Tensor, step: int, per_layer: bool
) -> None:
    """Firing frequencies and codes into TensorBoard's histograms.

    Args:
        logger: where to.
        frequency: `(L, F)` share of the tokens on which a feature fired.
        magnitudes: `(L, bins)` codes by magnitude, as `CodeHistograms` counts them.
        step: of the weights.
        per_layer: also one of each layer.
    """
    writer = logger.experiment
    parts = {"": slice(None)}
    if per_layer:
        parts |= {f"/layer_{layer:02d}": slice(layer, layer + 1) for layer in range(len(frequency))}
    for name, part in parts.items():
        fired = frequency[part][frequency[part] > 0]
        if len(fired):
            writer.add_histogram(f"val/histogram/log10_frequency{name}", fired.log10().cpu(), step)
        counts = magnitudes[part].sum(0).cpu().double()
        if counts.sum():
            edges = torch.tensor(CodeHistograms.edges(), dtype=torch.float64)
            centres = (edges[1:] + edges[:-1]) / 2
            held = counts.nonzero()[:, 0]
            writer.add_histogram_raw(
                f"val/histogram/log2_code{name}",
                min=float(edges[held[0]]),
                max=float(edges[held[-1] + 1]),
                num=int(counts.sum()),
                sum=float((counts * centres).sum()),
                sum_squares=float((counts * centres.square()).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )


def _spaced(n: int, most: int) -> list[int]:
    """At most so many of n numbers, the first and the last among them."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def _spread(fired: Tensor, count: int) -> list[int]:
    """Some of the features that fired, `(F,)` bool, evenly over their numbers."""
    features = fired.nonzero()[:, 0].tolist()
    count = min(count, len(features))
    return [features[(2 * i + 1) * len(features) // (2 * count)] for i in range(count)]
