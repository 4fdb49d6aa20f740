"""What a study says before it starts, of data as the command opens them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clt_lightning as cl
from clt_lightning.analysis.debias import DebiasOptions, debias, study


class ReachedError(Exception):
    """Memory was said, and the measuring would begin."""


def test_memory_is_said_of_data_that_no_model_has_seen_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(*_: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(study, "Setting", begin)
    clip = cl.FrozenCLIP(pretrained="demo")
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 32, seed=0)
    sizes: dict[str, Any] = {"n_train": 12, "n_val": 6, "n_test": 6}
    data = cl.data.Demo(root=str(tmp_path), spurious={"cue": "background"}, **sizes)
    data.prepare_data()
    run: Any = SimpleNamespace(clip=clip, transcoder=clt, datamodule=data)
    with pytest.raises(ReachedError):
        debias({"run": run}, options=DebiasOptions(images=4, group_images=2, progress=True))
    assert "memory: about" in capsys.readouterr().err
