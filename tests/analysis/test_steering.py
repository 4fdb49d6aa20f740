"""Steering: what an edit writes, by hand, in both models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis import Edit, steer, steered
from clt_lightning.analysis.circuits import NodeEdit, NodeSet
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.cli.steer import _say_skip
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.columns import columns

from .world import CLASSES, FEATURES, LAYERS, POSITIONS, TEMPLATES, Made, make_clt

SLICES = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}


def edited_by_hand(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, images: Tensor, edits: list[Edit], tokens: str, base: str
) -> Tensor:
    """Embeddings with whole dense code matrices edited, layer by layer."""
    deltas: dict[int, Tensor] = {}

    def branch(layer: int, x: Tensor, compute_y) -> Tensor:  # type: ignore[no-untyped-def]
        flat = x.flatten(0, 1)
        z = clt.encode_layer(flat, layer).dense_layer(0).unflatten(0, (len(x), -1))
        new = z.clone()
        for edit in edits:
            if edit.layer == layer:
                part = new[:, SLICES[tokens], edit.feature]
                new[:, SLICES[tokens], edit.feature] = {
                    "set": torch.full_like(part, edit.value),
                    "scale": part * edit.value,
                    "add": part + edit.value,
                }[edit.kind]
        codes[layer], deltas[layer] = z, new - z
        use = deltas if base == "original" else {i: codes[i] + deltas[i] for i in deltas}
        y = compute_y() if base == "original" else clt.bias(layer) + clt.skip_term(flat, layer).view_as(x)
        for i in range(layer + 1):
            if clt.writes(i, layer):
                y = y + use[i] @ clt.W_dec[i][:, layer - i] * clt.y_scale[layer]
        return y

    codes: dict[int, Tensor] = {}
    with torch.no_grad(), clip.mlp_override(branch):
        return clip.encode_image(images)


def firing(clip: FrozenCLIP, clt: CrossLayerTranscoder, images: Tensor, layer: int) -> int:
    """A feature that fires on these images."""
    dense = clt.encode(clip.capture(images).x).dense()[layer]
    return int((dense > 0).sum(0).argmax())


@pytest.mark.parametrize("base", ["original", "replaced"])
@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
@pytest.mark.parametrize(("topology", "skip"), [("cross_layer", False), ("cross_layer", True), ("per_layer", False)])
def test_an_edit_writes_its_decoder_rows(clip: FrozenCLIP, topology: str, skip: bool, tokens: str, base: str) -> None:
    clt, images = make_clt(topology, skip), Made().everything()[0][:5]
    first, second = firing(clip, clt, images, 0), firing(clip, clt, images, 2)
    edits = [
        Edit(0, first, "set", 3.0),
        Edit(0, first, "scale", 0.5),
        Edit(2, second, "scale", 0.0),
        Edit(1, 7, "add", 2.0),
    ]
    expected = edited_by_hand(clip, clt, images, edits, tokens, base)
    with torch.no_grad(), steered(clip, clt, edits, tokens, base):
        got = clip.encode_image(images)
        again = clip.encode_image(images[:2])  # of another size: nothing is left over from the first
    assert torch.allclose(got, expected, atol=2e-6)
    assert torch.allclose(again, expected[:2], atol=2e-6)
    with torch.no_grad():
        assert not torch.allclose(clip.encode_image(images), got, atol=1e-3)


@pytest.mark.parametrize("base", ["original", "replaced"])
def test_edits_that_change_nothing(clip: FrozenCLIP, clt: CrossLayerTranscoder, base: str) -> None:
    batch = batches()[0]
    nothing = [Edit(0, 3, "scale", 1.0), Edit(1, 4, "add", 0.0)]
    found = steer(clip, clt, [batch], nothing, clip.zero_shot_head(CLASSES, TEMPLATES), CLASSES, base=base)
    assert torch.allclose(found.before, found.after, atol=1e-6)
    assert found.changed == 0
    with torch.no_grad(), replaced(clip, clt):
        cascade = clip.encode_image(batch["image"])
    embeddings = clip.encode_image(batch["image"]) if base == "original" else cascade
    p = clip.logits(embeddings, clip.zero_shot_head(CLASSES, TEMPLATES)).double().softmax(1)
    assert torch.allclose(found.before, p)


def batches() -> list[dict[str, Any]]:
    images, labels, keys = Made(n=12).everything()
    rows = [slice(0, 8), slice(8, 12)]
    return [{"image": images[r], "label": torch.tensor(labels[r]), "key": keys[r]} for r in rows]


def test_results_over_batches(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    edits = [Edit(1, firing(clip, clt, batches()[0]["image"], 1), "set", 30.0)]
    found = steer(clip, clt, batches(), edits, clip.zero_shot_head(CLASSES, TEMPLATES), CLASSES)
    labels = torch.cat([b["label"] for b in batches()])
    known = labels >= 0
    assert found.before.shape == found.after.shape == (12, len(CLASSES))
    assert found.keys == [key for b in batches() for key in b["key"]]
    assert found.changed == int((found.before.argmax(1) != found.after.argmax(1)).sum()) > 0
    top1 = found.top1()
    assert top1 is not None
    assert top1[1] == pytest.approx((found.after.argmax(1) == labels)[known].double().mean().item())
    assert float(found.mean_change.sum()) == pytest.approx(0, abs=1e-12)
    record = json.loads(json.dumps(found.to_json(edits), allow_nan=False))
    assert record["edits"] == [{"layer": 1, "feature": edits[0].feature, "kind": "set", "value": 30.0}]
    assert record["per_image"][3]["after"] == found.after[3].tolist()
    assert record["images"] == 12


def test_columns_are_those_of_the_dense_codes(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    codes = clt.encode(clip.capture(batches()[0]["image"]).x).slice(1)
    features = [0, 5, firing(clip, clt, batches()[0]["image"], 1)]
    assert torch.equal(columns(codes, features), codes.dense_layer(0)[:, features])
    assert codes.n_tokens == 8 * POSITIONS
    held_densely = Codes([None], [codes.dense_layer(0)])
    assert torch.equal(columns(held_densely, features), codes.dense_layer(0)[:, features])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2/117=4", Edit(2, 117, "add", 4.0)),
        (" 0/3=-1.5e-2", Edit(0, 3, "add", -0.015)),
        ("1/3@0=2", Edit(1, 3, "add", 2.0, 0)),
    ],
)
def test_an_edit_is_read(text: str, expected: Edit) -> None:
    assert Edit.parse("add", text) == expected


@pytest.mark.parametrize("text", ["2/117", "2=4", "a/1=2", "1/2=x", "1/2=nan", "-1/2=3", "1/2/3=1", ""])
def test_other_text_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"--scale .*LAYER/FEATURE=VALUE"):
        Edit.parse("scale", text)


@pytest.mark.parametrize(
    ("edits", "options", "message"),
    [
        ([], {}, "at least one edit"),
        ([Edit(LAYERS, 0, "set", 1.0)], {}, f"{LAYERS}/0 does not exist: layers 0..{LAYERS - 1}"),
        ([Edit(0, FEATURES, "set", 1.0)], {}, f"0/{FEATURES} does not exist"),
        ([Edit(0, 0, "set", float("inf"))], {}, "finite"),
        ([Edit(0, 0, "times", 1.0)], {}, "set, scale or add"),  # type: ignore[arg-type]
        ([Edit(0, 0, "set", 1.0)], {"tokens": "patches"}, "unknown token set 'patches'"),
        ([Edit(0, 0, "set", 1.0)], {"base": "clip"}, "base must be"),
        ([Edit(0, 0, "set", 1.0, POSITIONS)], {}, f"position {POSITIONS} is not among the tokens 'all', 0 to"),
        ([Edit(0, 0, "set", 1.0, 0)], {"tokens": "patch"}, "position 0 is not among the tokens 'patch'"),
    ],
)
def test_what_cannot_be_is_refused(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, edits: list[Edit], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        steer(clip, clt, batches(), edits, clip.zero_shot_head(CLASSES, TEMPLATES), CLASSES, **options)


def test_an_autoencoder_does_not_steer(clip: FrozenCLIP) -> None:
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    with pytest.raises(UserError, match="sae"):
        steer(clip, make_clt("sae"), batches(), [Edit(0, 0, "set", 1.0)], head, CLASSES)
    with pytest.raises(UserError, match="at least one image"):
        steer(clip, make_clt(), [], [Edit(0, 0, "set", 1.0)], head, CLASSES)


@pytest.mark.filterwarnings("error", "ignore:this CLIP has random weights")
def test_a_skip_is_warned_of(clip: FrozenCLIP) -> None:
    """Steering cannot reach it; without one there is nothing to warn of."""
    edits, head = [Edit(0, 3, "add", 1.0)], clip.zero_shot_head(CLASSES, TEMPLATES)
    steer(clip, make_clt("cross_layer", False), batches(), edits, head, CLASSES)
    with pytest.warns(UserWarning, match="linear skip, which steering cannot reach"):
        steer(clip, make_clt("cross_layer", True), batches(), edits, head, CLASSES)


def test_the_command_says_what_a_skip_carries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"features": {"all": {"layers": [0.2, 0.4], "mean": 0.3}}}
    (tmp_path / "results.json").write_text(json.dumps({"evaluation": {"test": {"shares": shares}}}))
    run: Any = SimpleNamespace(folder=tmp_path, transcoder=SimpleNamespace(skip=True))
    _say_skip(run)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("note: this transcoder has a linear skip, which steering cannot reach")
    assert said.endswith("the features make 30.0% of the centred reconstruction: an edit moves a part of that part")
    (tmp_path / "results.json").unlink()
    _say_skip(run)
    assert "note: this transcoder" in capsys.readouterr().out
    run.transcoder.skip = False
    _say_skip(run)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("base", ["original", "replaced"])
def test_an_edit_at_a_position_is_that_of_its_token(clip: FrozenCLIP, clt: CrossLayerTranscoder, base: str) -> None:
    images = Made().everything()[0][:5]
    feature = firing(clip, clt, images, 1)
    with torch.no_grad():
        with steered(clip, clt, [Edit(1, feature, "set", 3.0)], "cls", base):
            expected = clip.encode_image(images)
        with steered(clip, clt, [Edit(1, feature, "set", 3.0, position=0)], "all", base):
            assert torch.equal(clip.encode_image(images), expected)
        single = [Edit(1, feature, "add", 2.0, position=p) for p in range(1, POSITIONS)]
        with steered(clip, clt, [Edit(1, feature, "add", 2.0)], "patch", base):
            expected = clip.encode_image(images)
        with steered(clip, clt, single, "all", base):
            torch.testing.assert_close(clip.encode_image(images), expected)


def test_sets_of_nodes_are_edits() -> None:
    nodes = NodeSet((NodeEdit(0, 3), NodeEdit(2, 5, 4, "feature", "set", 2.5)))
    assert Edit.of_nodes(nodes) == [Edit(0, 3, "scale", 0.0), Edit(2, 5, "set", 2.5, 4)]
    with pytest.raises(UserError, match=r"error 1 .*is none"):
        Edit.of_nodes(NodeSet((NodeEdit(1, kind="error"),)))


def test_intervals_are_those_of_the_images(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    edits = [Edit(1, firing(clip, clt, batches()[0]["image"], 1), "set", 30.0)]
    found = steer(clip, clt, batches(), edits, clip.zero_shot_head(CLASSES, TEMPLATES), CLASSES)
    change = (found.after - found.before).numpy()
    for column, got in enumerate(found.change_intervals()):
        assert got.value == pytest.approx(change[:, column].mean())
        spread = 1.96 * change[:, column].std() / len(change) ** 0.5
        assert got.high - got.low == pytest.approx(2 * spread, rel=0.35)
    top1, difference = found.top1(), found.top1_difference()
    assert top1 is not None
    assert difference is not None
    assert difference.value == pytest.approx(top1[1] - top1[0])
    record = found.to_json([Edit(1, 2, "add", 1.0, 3)])
    assert record["edits"][0]["position"] == 3
    assert len(record["mean_change_interval"]) == len(CLASSES)
