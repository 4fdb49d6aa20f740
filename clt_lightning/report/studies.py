"""The data of an image's page: a study of it, packed; for the report's images and for any other."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clt_lightning.analysis.run import Run
from clt_lightning.analysis.study import LayerCodes, Study, StudyOptions, study_images
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.core.errors import UserError
from clt_lightning.report.numbers import to_list
from clt_lightning.report.packing import pack_column, pack_maps, pack_numbers

#: Classes whose logits are split up on the page of an image that is not studied in full, the most likely ones
COLUMNS = 64
#: Codes of a position that a page lists, the strongest ones; those of features whose effects are shown are all there
CODES = 24


def image_page_data(
    run: Run, image: Tensor | Image.Image, key: str = "", label: int = -1, full: bool = True
) -> dict[str, Any]:
    """The data of one image's page, of any image: what `data/images/<number>.js` of a report holds.

    Args:
        run: an opened run.
        image: a picture, or one preprocessed by the run's backbone, `(3, size, size)`.
        key: what the page calls it.
        label: its class; -1: none.
        full: with integrated gradients and real ablation for all features shown, and all classes.

    Raises:
        UserError: an image of another shape, or a label that is no class.
    """
    pixels = run.clip.preprocess(image.convert("RGB")) if isinstance(image, Image.Image) else image
    if pixels.ndim != 3:
        raise UserError(f"image_page_data takes one image (3, size, size), got {tuple(pixels.shape)}")
    head = run.head
    if label >= 0 and (head is None or label >= head.shape[1]):
        raise UserError(f"label {label}: there are {0 if head is None else head.shape[1]} classes")
    options = StudyOptions.in_full() if full else StudyOptions()
    study = study_images(run.clip, run.transcoder, pixels[None], head, [label], options)[0]
    picture = to_pixels(pixels, run.clip.mean, run.clip.std)
    return pack_study(study, picture, run.clip.grid, full) | {"key": key, "label": label}


def pack_study(study: Study, pixels: NDArray[np.uint8], grid: tuple[int, int], full: bool) -> dict[str, Any]:
    """A study as the page's script reads it (docs/report.md: The data of an image's page).

    Args:
        study: of one image.
        pixels: `(H, W, 3)`.
        grid: patches as (rows, columns).
        full: whether it was studied in full.
    """
    out: dict[str, Any] = {
        "picture": picture_address(pixels),
        "grid": list(grid),
        "layers": len(study.codes),
        "positions": study.positions,
        "full": full,
    }
    shown = {(int(a), int(b)) for a, b in zip(study.layer[study.kept], study.feature[study.kept])}
    out["codes"] = [_layer(layer, codes, shown) for layer, codes in enumerate(study.codes)]
    if not len(study.logits):
        return out | {"classes": None}
    columns = torch.arange(len(study.logits))
    if len(columns) > COLUMNS and not full:
        others = torch.cat([study.classes, study.replaced.argmax()[None]])
        columns = torch.cat([study.logits.topk(COLUMNS).indices, others]).unique()
    rows = study.kept.nonzero()[:, 0]
    place = {int(row): n for n, row in enumerate(rows)}
    return out | {
        "classes": study.classes.tolist(),
        "tops": [int(study.logits.argmax()), int(study.replaced.argmax())],
        "questions": [list(pair) for pair in study.questions],
        "columns": None if len(columns) == len(study.logits) else columns.tolist(),
        "logits": to_list(study.logits[columns].numpy(), 8),
        "replaced": to_list(study.replaced[columns].numpy(), 8),
        "means": to_list([float(logits.mean()) for logits in (study.logits, study.replaced)], 8),
        # a probability is exp(logit - this)
        "log_sums": to_list([float(logits.logsumexp(0)) for logits in (study.logits, study.replaced)], 8),
        "terms": _terms(study.terms, columns),
        "replaced_terms": _terms(study.replaced_terms, columns),
        "features": {
            "layer": pack_column(study.layer[rows].numpy().astype(np.int16)),
            "feature": pack_column(study.feature[rows].numpy()),
            "total": pack_numbers(study.total[rows].numpy()),
            "direct": None if study.direct is None else pack_numbers(study.direct[rows].numpy()),
            "integrated": [pack_numbers(values[rows].numpy()) for values in study.integrated],
        },
        "ablations": [
            {
                "question": ablation.question,
                "rows": [place[row] for row in ablation.rows],
                "predicted": to_list([ablation.predicted], 6)[0],
                "after": to_list(ablation.logits[study.classes].numpy(), 7),
                "top": int(ablation.logits.argmax()),
                "log_sum": to_list([float(ablation.logits.logsumexp(0))], 8)[0],
            }
            for ablation in study.ablations
        ],
    }


def _terms(terms: Tensor | None, columns: Tensor) -> str | None:
    """`(rows, columns + 1)`, the mean of all classes last."""
    return None if terms is None else pack_column(torch.cat([terms[:, columns], terms.mean(1, True)], 1).numpy())


def _layer(layer: int, codes: LayerCodes, shown: set[tuple[int, int]]) -> dict[str, Any]:
    maps = codes.maps.clone()
    active = (maps != 0).sum(0)
    if int(active.max()) > CODES:
        strength = maps.abs()
        least = strength.topk(CODES, 0).values[-1]
        wanted = torch.tensor([(layer, int(feature)) in shown for feature in codes.features])
        maps[(strength < least) & ~wanted[:, None]] = 0
    rows = (maps != 0).any(1)
    maps, effects = maps[rows], codes.effects[:, rows]
    peaks = maps.abs().amax(1).numpy() if len(maps) else np.zeros(0, np.float32)
    there = maps != 0
    return {
        "features": pack_column(codes.features[rows].numpy()),
        "peaks": pack_column(peaks),
        "maps": pack_maps(maps.numpy(), peaks),
        "effects": [pack_numbers(question[there].double().numpy()) for question in effects],
        "active": active.tolist(),
    }


def picture_address(pixels: NDArray[np.uint8]) -> str:
    """A picture `(H, W, 3)` as a data address."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
