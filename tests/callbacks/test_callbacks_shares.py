"""Who makes the margin: the shares that are logged are those of the images that were looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from clt_lightning.analysis import observe
from clt_lightning.analysis.shares import PARTS, LogitShares
from clt_lightning.callbacks import Curves, Shares, ZeroShot
from clt_lightning.core.errors import UserError
from tests.runs.world import scalars

from .world import CLASSES, Made, module, trainer


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("images", "chosen"), [(256, range(26)), (12, [*range(8), *range(16, 24)])])
def test_shares_of_the_margin(tmp_path: Path, skip: bool, images: int, chosen: list[int]) -> None:
    """Of 26 images in batches of 8, about 12 are every second batch."""
    model, data = module(skip=skip), Made(n=26, batch_size=8)
    (found,) = trainer(tmp_path, ZeroShot(), Shares(images)).validate(model, datamodule=data, verbose=False)
    pixels = data.everything()[0][list(chosen)]
    assert data.templates
    head = model.clip.zero_shot_head(CLASSES, data.templates)
    seen = observe(model.clip, pixels)
    clt = model.transcoder.eval()
    parts = LogitShares(model.clip, clt, head).parts(seen, clt(seen.x).y_hat.detach())[:, 1].sum(0)
    shares = {name: float(value) for name, value in zip(PARTS, (parts / parts.sum()).tolist(), strict=True)}
    assert {name: found[f"val/share/margin/{name}"] for name in PARTS} == pytest.approx(shares, rel=1e-3, abs=1e-4)
    assert sum(found[f"val/share/margin/{name}"] for name in PARTS) == pytest.approx(1)
    assert (found["val/share/margin/skip"] != 0) is skip


def test_curves_look_at_all_of_their_images(tmp_path: Path) -> None:
    runner = trainer(tmp_path, ZeroShot(), Shares(8), Curves(1, images=26), max_steps=1, val_check_interval=4)
    model = module()
    runner.fit(model, datamodule=Made())
    found = scalars(Path(str(runner.log_dir)))["val/share/margin/features"]
    (whole,) = trainer(tmp_path, ZeroShot(), Shares(256)).validate(model, datamodule=Made(), verbose=False)
    assert found[0][1] == pytest.approx(whole["val/share/margin/features"], rel=1e-4)


def test_nothing_to_measure(tmp_path: Path) -> None:
    data = Made(labelled=False)
    for callbacks, made in (((ZeroShot(), Shares()), data), ((Shares(),), Made()), ((ZeroShot(), Shares(0)), Made())):
        (found,) = trainer(tmp_path, *callbacks).validate(module(), datamodule=made, verbose=False) or ({},)
        assert not any("margin" in tag for tag in found)
    with pytest.raises(UserError, match=r"shares\.images must be 0 or more"):
        Shares(-1)
