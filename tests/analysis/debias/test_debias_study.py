"""The whole protocol on a made world: a bright corner that goes with the class; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clt_lightning.analysis.debias import DebiasOptions, DebiasResult, debias, erase
from clt_lightning.analysis.debias.feature_arms import FeatureArms
from clt_lightning.analysis.debias.options import EDITS
from clt_lightning.analysis.debias.table import debias_lines, erase_lines
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis import world

OPTIONS = DebiasOptions(sizes=(1, 4), group_images=8, images=24, random=1, draws=20, ways=("circuits", "coactivation"))


class Corner:
    """Two classes by the picture's stripes; a bright corner goes with the class in train and val."""

    spurious = None

    def __init__(self, strength: float = 0.9, n: int = 40, groups: bool = True, names: bool = True) -> None:
        self.strength, self.n, self.groups = strength, n, groups
        self.classnames, self.templates = (["cat", "dog"] if names else None), world.TEMPLATES
        self.groupnames = ["cat plain", "cat corner", "dog plain", "dog corner"] if groups else None

    def setup(self, stage: str) -> None: ...

    def eval_dataloader(self, split: str) -> Iterator[dict[str, Any]]:
        share = 0.5 if split == "test" else self.strength
        for start in range(0, self.n, 10):
            rows = [self._draw(split, i, share) for i in range(start, start + 10)]
            images, labels, cues = zip(*rows)
            batch: dict[str, Any] = {
                "image": torch.stack(images),
                "label": torch.tensor(labels),
                "key": [str(start)] * 10,
            }
            if self.groups:
                batch["group"] = 2 * batch["label"] + torch.tensor(cues)
            yield batch

    def _draw(self, split: str, index: int, share: float) -> tuple[torch.Tensor, int, int]:
        generator = torch.Generator().manual_seed({"train": 0, "val": 10**6, "test": 2 * 10**6}[split] + index)
        label, number = index % 2, index // 2
        against = int((number + 1) * (1 - share) + 1e-9) > int(number * (1 - share) + 1e-9)
        cue = label ^ against
        image = 0.3 * torch.randn(3, world.SIZE, world.SIZE, generator=generator)
        image[:, :: 2 + label] += 1.0
        image[:, :8, :8] += 3.0 * cue
        return image, label, int(cue)


@pytest.fixture(scope="module")
def found(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> DebiasResult:
    run = SimpleNamespace(clip=clip, transcoder=clt, datamodule=Corner())
    other = SimpleNamespace(clip=clip, transcoder=world.make_clt("per_layer"), datamodule=None)
    return debias(
        {"cross": run, "per layer": other},
        unbiased=Corner(0.5),
        collateral={"other": Corner(0.5, 10)},
        nodes=[(1, 3), (2, 4)],
        options=OPTIONS,
    )


def test_every_arm_is_there(found: DebiasResult) -> None:
    kinds = [arm.kind for arm in found.arms]
    assert kinds[0] == "none"
    assert {"circuits", "coactivation", "nodes", "heads", "projection", "retrained", "unbiased"} <= set(kinds)
    assert found.arm("circuits", "per layer").run == "per layer"
    assert found.counts == (10, 10, 10, 10)
    none = found.arm("none")
    assert (none.scores.to_right, none.scores.to_wrong, none.scores.change["worst"].value) == (0, 0, 0)
    assert found.arm("nodes").chosen == ((1, 3), (2, 4))
    assert {"erasure", "difference"} <= set(kinds)
    for edit in EDITS:
        assert found.arm("circuits", edit=edit).edit == edit
    for arm in found.arms:
        groups = [group.value for group in arm.scores.groups]
        if arm.kind != "random":
            assert arm.scores.worst.value == pytest.approx(min(groups))
        assert arm.scores.overall.value == pytest.approx(sum(groups) / 4)
        moved = (arm.scores.to_right - arm.scores.to_wrong) / 40
        assert arm.scores.overall.value == pytest.approx(none.scores.overall.value + moved)
        assert ("other" in arm.collateral) == (arm.kind not in ("none", "retrained", "unbiased"))


def test_the_size_is_the_best_on_choice_images(found: DebiasResult) -> None:
    for kind in ("circuits", "heads", "coactivation"):
        arm = found.arm(kind)
        assert 0 in arm.sizes
        assert arm.sizes[len(arm.chosen)] == max(arm.sizes.values())


def test_results_are_plain_and_told(found: DebiasResult) -> None:
    content = json.loads(json.dumps(found.to_json()))
    assert content["groups"] == list(found.groups)
    assert len(content["arms"]) == len(found.arms)
    lines = debias_lines(found, 100)
    assert all(len(line) <= 100 for line in lines)
    assert any(line.startswith("1: circuits, regress") for line in lines)
    narrow = debias_lines(found, 80)
    assert all(len(line) <= 80 for line in narrow)
    # names are whole, and each block has all arms
    assert sum("2: coactivation, ablate" in line for line in narrow) == sum(line.startswith("edit") for line in narrow)
    assert "group 2: cat corner, 10 images" in narrow
    assert "run 2: per layer" in narrow


def test_an_auc_is_told_beside_that_of_how_often_a_feature_is_on(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = torch.zeros(clt.n_layers, clt.n_features)
    truth[1, :5] = 1.0
    on = torch.ones_like(truth, dtype=torch.bool)
    monkeypatch.setattr(FeatureArms, "_truth", lambda _: (truth, on))
    run = SimpleNamespace(clip=clip, transcoder=clt, datamodule=Corner())
    asked = DebiasOptions(sizes=(1,), group_images=4, images=8, random=0, draws=5, ways=("codes",), edits=("regress",))
    found = debias({"r": run}, options=asked)
    auc = found.arm("codes").auc
    assert auc is not None
    assert 0 <= auc <= 1
    assert [note for note in found.notes if "how often a feature is on" in note]


def test_without_labels_of_groups_or_unbiased_data(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(data: Any, unbiased: Any = None, **options: Any) -> DebiasResult:
        run = SimpleNamespace(clip=clip, transcoder=clt, datamodule=data)
        asked = DebiasOptions(sizes=(1,), group_images=4, images=8, random=0, draws=5, **options)
        return debias({"r": run}, unbiased=unbiased, options=asked)

    empty = Corner()
    empty.groupnames = [*(empty.groupnames or ()), "bird plain", "bird corner"]
    others = Corner(0.5)
    others.classnames = ["bird", "fish"]
    unlabelled = of(Corner(), others, ways=("coactivation",), edits=("regress",), progress=True)
    assert len(unlabelled.arm("coactivation").chosen) == 8
    assert not {"unbiased", "difference"} & {arm.kind for arm in unlabelled.arms}
    assert "memory: about" in "".join(capsys.readouterr())
    kept = of(Corner(), ways=("coactivation",), edits=("regress",))
    assert any("--unbiased" in note for note in kept.notes)
    assert "coactivation" not in [arm.kind for arm in kept.arms]
    for data, said in (
        (Corner(groups=False), "train has no groups"),
        (Corner(1.0), "one group alone"),
        (empty, "train has no image of group 'bird plain'"),
    ):
        with pytest.raises(UserError, match=said):
            of(data)
    one = Corner()
    one.classnames = ["cat"]
    with pytest.raises(UserError, match="one class"):
        of(one)
    with pytest.raises(UserError, match="no way 'guess'"):
        of(Corner(), ways=("guess",))
    with pytest.raises(UserError, match="no edit 'guess'"):
        of(Corner(), edits=("guess",))


def test_a_class_is_erased(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    data = Corner()
    head = torch.nn.functional.normalize(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), dim=0)
    run = SimpleNamespace(
        clip=clip, transcoder=clt, datamodule=data, batches=data.eval_dataloader, require_head=lambda _: head
    )
    curve = erase(run, "dog", sizes=(0, 2), images=8, others=10, random=1, draws=10)
    assert curve.images == (20, 10)
    assert len(curve.features) == 2
    # nothing at its mean is the untouched model, in both arms
    for part in ("class", "others"):
        assert curve.accuracy["upstream"][part][0] == curve.accuracy["random"][part][0]
    assert json.loads(json.dumps(curve.to_json()))["sizes"] == [0, 2]
    assert len(erase_lines(curve, 80)) >= 4
    alone = erase(run, "dog", sizes=(0,), images=8, others=10, random=0, draws=10)
    assert list(alone.accuracy) == ["upstream"]
    assert len(erase_lines(alone, 80)) >= 2
    with pytest.raises(UserError, match="no class 'dogs'"):
        erase(run, "dogs")
