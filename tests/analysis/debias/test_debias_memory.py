"""What a study says before it starts, of data as the command opens them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clt_lightning as cl
from clt_lightning.analysis.circuits.concepts import mean_codes
from clt_lightning.analysis.debias import DebiasOptions, Head, debias, relevance_of, study
from clt_lightning.analysis.debias.memory import gradient_bytes
from clt_lightning.analysis.debias.predictor import Sample
from tests.allocated import peak_bytes


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


def test_relevance_takes_what_is_said() -> None:
    clip = cl.FrozenCLIP(pretrained="demo")
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 96, topology="per_layer", seed=0)
    labels = torch.arange(32) % 2
    sample = Sample(torch.randn(32, 3, clip.image_size, clip.image_size), labels, labels)
    means = mean_codes(clip, clt, sample.images)
    head = Head(torch.randn(clip.embed_dim, 2), torch.zeros(2), "")
    took = peak_bytes(lambda: relevance_of(clip, clt, sample, head, means))
    assert 0.7 < took / gradient_bytes(clip, clt, 32) < 1.3
