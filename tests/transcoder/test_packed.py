"""Files of decoders that do not write everywhere: smaller, and back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder, JumpReLU, pretrained
from clt_lightning.transcoder.files.circuit_tracer import save_circuit_tracer
from clt_lightning.transcoder.packed import pack, unpack
from clt_lightning.transcoder.support import depth_support, hold, prune_groups


def make(d_out: int | None = None, topology: Any = "cross_layer") -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(4, 16, 30, JumpReLU(), topology, seed=0, d_out=d_out)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for W in clt.W_dec:
            W.copy_(torch.randn(W.shape, generator=generator))
        clt.y_scale.copy_(torch.tensor([0.5, 1.0, 4.0, 0.25]))
    return clt


def bits(clt: CrossLayerTranscoder) -> dict[str, torch.Tensor]:
    state = {name: tensor.detach().contiguous() for name, tensor in clt.state_dict().items()}
    return {name: t.view(torch.int32) if t.dtype == torch.float32 else t for name, t in state.items()}


@pytest.mark.parametrize("d_out", [None, 24])
def test_half_the_groups_are_half_the_decoders_in_the_file(tmp_path: Path, d_out: int | None) -> None:
    clt = make(d_out)
    whole = clt.save_pretrained(tmp_path / "whole")
    prune_groups(clt, keep=0.5)
    packed = clt.save_pretrained(tmp_path / "packed")
    sizes = [(folder / pretrained.WEIGHTS).stat().st_size for folder in (whole, packed)]
    assert sizes[0] - sizes[1] > 0.9 * 150 * clt.d_out * 4  # of 300 groups
    again = CrossLayerTranscoder.from_pretrained(packed)
    clt.fold_()
    mine, theirs = bits(clt), bits(again)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert depth_support(again).n_groups == 150
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(clt.eval()(x).y_hat, again(x).y_hat)


def test_what_is_whole_stays_as_it_is_and_what_is_empty_comes_back(tmp_path: Path) -> None:
    clt = make()
    with torch.no_grad():
        clt.W_dec[1].zero_()  # of a layer nothing is left
        clt.W_dec[3][0] = 0  # saves less than saying where it was
    tensors = load_file(clt.save_pretrained(tmp_path) / pretrained.WEIGHTS)
    assert {"W_dec.0", "W_dec.2", "W_dec.1.written", "W_dec.1.groups"} <= tensors.keys()
    assert tensors["W_dec.1.groups"].shape == (0, 16)
    again = CrossLayerTranscoder.from_pretrained(tmp_path)
    assert not again.W_dec[1].any()
    assert torch.equal(again.W_dec[0], clt.fold_().W_dec[0])


def test_exports_and_other_types_know_nothing_of_it(tmp_path: Path) -> None:
    clt = make()
    prune_groups(clt, keep=0.6)
    again = CrossLayerTranscoder.from_pretrained(clt.save_pretrained(tmp_path / "packed"))
    for name, one in (("a", clt), ("b", again)):
        save_circuit_tracer(one, tmp_path / name, {})
    for path in sorted((tmp_path / "a").glob("*.safetensors")):
        mine, theirs = load_file(path), load_file(tmp_path / "b" / path.name)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    half = CrossLayerTranscoder.from_pretrained(tmp_path / "packed", dtype="bfloat16")
    assert half.W_dec[0].dtype == torch.bfloat16
    assert depth_support(half).n_groups == depth_support(again).n_groups


def test_a_damaged_support_is_named(tmp_path: Path) -> None:
    clt = make()
    hold(clt, [torch.rand(W.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.5 for W in clt.W_dec])
    path = clt.save_pretrained(tmp_path) / pretrained.WEIGHTS
    tensors = load_file(path)
    written, groups = "W_dec.0.written", "W_dec.0.groups"
    cases: tuple[tuple[dict[str, torch.Tensor | None], str], ...] = (
        ({written: torch.ones_like(tensors[written])}, "names 120 groups"),
        ({written: tensors[written].float()}, "W_dec.0.written float32"),
        ({groups: tensors[groups][:-1]}, f"names {len(tensors[groups])} groups"),
        ({groups: tensors[groups][None]}, "but W_dec.0.groups is float32"),
        ({"W_dec.0": torch.zeros(30, 4, 16)}, "holds it twice"),
        ({groups: None}, "not the other"),
    )
    for change, said in cases:
        damaged = {key: tensor for key, tensor in (tensors | change).items() if tensor is not None}
        save_file(damaged, path, {"format": pretrained.FORMAT})
        pretrained.seal(tmp_path)
        with pytest.raises(UserError, match=said):
            CrossLayerTranscoder.from_pretrained(tmp_path)


def test_other_tensors_pass_through() -> None:
    given = {"W_dec.0": torch.zeros(3, 2), "W_dec": torch.zeros(2, 3, 4), "b_dec": torch.zeros(2)}
    assert pack(given).keys() == given.keys() == unpack(given).keys()
