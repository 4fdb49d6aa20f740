"""What results look like in a notebook: plain tables and pictures, readable in light and dark themes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

_CELL = "padding:2px 10px;text-align:{side};border-bottom:1px solid #8884;font-variant-numeric:tabular-nums"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """An HTML table; the first column to the left, numbers to the right."""

    def cells(values: Sequence[object], tag: str) -> str:
        return "".join(
            f'<{tag} style="{_CELL.format(side="left" if i == 0 else "right")}">{html.escape(str(v))}</{tag}>'
            for i, v in enumerate(values)
        )

    caption = f"<caption style='text-align:left;font-weight:600'>{html.escape(title)}</caption>" if title else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table style='border-collapse:collapse'>{caption}<thead><tr>{cells(head, 'th')}</tr></thead>{body}</table>"


def picture(
    pixels: np.ndarray,
    codes: Tensor | np.ndarray | None,
    grid: tuple[int, int],
    caption: str,
    side: int = 144,
    n_prefix: int = 1,
) -> str:
    """One image as HTML, with a feature's codes drawn over its patches.

    Args:
        pixels: `(size, size, 3)` uint8.
        codes: `(positions,)` codes; None draws none.
        grid: patches as (rows, columns).
        caption: text below.
        side: how large, in pixels.
        n_prefix: tokens before the patches.
    """
    shown = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    if codes is not None:
        values = np.abs(np.asarray(codes, dtype=np.float32)[n_prefix : n_prefix + grid[0] * grid[1]]).reshape(grid)
        share = values / max(float(values.max()), 1e-30)
        colour = np.zeros((*grid, 4), np.uint8)
        colour[..., 0], colour[..., 1] = 255, (150 * (1 - share)).astype(np.uint8)
        colour[..., 3] = np.where(values > 0, 70 + 130 * share, 0).astype(np.uint8)
        overlay = Image.fromarray(colour, "RGBA").resize((side, side), Image.Resampling.NEAREST)
        shown = Image.alpha_composite(shown.convert("RGBA"), overlay).convert("RGB")
    data = io.BytesIO()
    shown.save(data, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    text = html.escape(caption)
    return (
        f"<figure style='display:inline-block;margin:4px;text-align:center'><img src='{source}' width={side} "
        f"height={side} alt='{text}'><figcaption style='font-size:85%'>{text}</figcaption></figure>"
    )
