"""Several sets in one: batches, labels, order, resuming, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.data import Studies

from ..world import to_tensor, write_root


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("a", "b")}
    for name, root in made.items():
        root.mkdir()
        write_root(root, train=[12] if name == "a" else [30], test=[5] if name == "a" else [7])
    names = (made["b"] / "classnames.txt").read_text().split("\n")
    (made["b"] / "classnames.txt").write_text("\n".join(["another", *names[1:]]))
    return made


def studies(roots: dict[str, Path], **options: Any) -> Studies:
    more = {"num_workers": 0, "shuffle": 10}
    sets = {n: {"class_path": "WebImages", "init_args": {"root": str(r), **more}} for n, r in roots.items()}
    made = Studies(sets, **{"batch_size": 4, "seed": 1, **options})
    made.transform = to_tensor
    return made


def test_every_batch_holds_images_of_each_set(roots: dict[str, Path]) -> None:
    dm = studies(roots, weights={"a": 1, "b": 3}, batch_size=8)
    assert dm.counts == {"a": 2, "b": 6}
    dm.setup("fit")
    loader = dm.train_dataloader()
    assert len(loader) == 42 // 8
    for batch in loader:
        assert Counter(batch["study"].tolist()) == {0: 2, 1: 6}
        assert batch["image"].shape[0] == 8 == len(batch["key"]) == len(batch["label"])


def test_class_lists_are_put_together_by_name(roots: dict[str, Path]) -> None:
    dm = studies(roots)
    dm.setup("test")
    assert dm.classnames == [*(f"class {i}" for i in range(10)), "another"]
    seen: dict[int, set[int]] = {}
    for batch in dm.test_dataloader():
        for study, label in zip(batch["study"].tolist(), batch["label"].tolist()):
            seen.setdefault(study, set()).add(label)
    assert 10 in seen[1]
    assert 0 not in seen[1]
    assert 0 in seen[0]
    json.dumps(dm.describe())


def test_evaluation_reads_every_sample_of_every_set_once(roots: dict[str, Path]) -> None:
    dm = studies(roots)
    dm.setup("test")
    loader = dm.test_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    counts = Counter(s for batch in batches for s in batch["study"].tolist())
    assert counts == {0: 5, 1: 7}
    limited = dm.eval_dataloader("test", limit=3)
    assert sum(len(batch["key"]) for batch in limited) == 6


def test_a_resumed_loader_goes_on_with_the_next_batch(roots: dict[str, Path]) -> None:
    whole = studies(roots)
    whole.setup("fit")
    batches = iter(whole.train_dataloader())
    keys = [next(batches)["key"] for _ in range(6)]
    first = studies(roots)
    first.setup("fit")
    loader = first.train_dataloader()
    part = iter(loader)
    for _ in range(3):
        next(part)
    state = json.loads(json.dumps(loader.state_dict()))
    second = studies(roots)
    second.setup("fit")
    again = second.train_dataloader()
    again.load_state_dict(state)
    assert [batch["key"] for batch, _ in zip(again, range(3))] == keys[3:]
    state["studies"] = {"other": state["studies"]["a"]}
    with pytest.raises(UserError, match="in the sets other, this run reads a, b"):
        again.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"a": 1}}, "weights must name a, b"),
        ({"weights": {"a": 1, "b": 0}}, r"weights\.b must be a number above 0"),
        ({"batch_size": 1}, "batch_size must be 2 or more"),
    ],
)
def test_bad_settings_of_the_mixture_are_named(roots: dict[str, Path], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        studies(roots, **options)


def test_bad_sets_are_named(roots: dict[str, Path]) -> None:
    good = {"class_path": "WebImages", "init_args": {"root": str(roots["a"])}}
    with pytest.raises(UserError, match="two sets or more"):
        Studies({"a": good})
    with pytest.raises(UserError, match=r"sets\.b: .*unknown data set 'Nothing'"):
        Studies({"a": good, "b": {"class_path": "Nothing"}})
    with pytest.raises(UserError, match=r"sets\.b: .*takes"):
        Studies({"a": good, "b": {"class_path": "WebImages", "init_args": {"rot": "x"}}})
    with pytest.raises(UserError, match=r"sets\.b: data folder"):
        Studies({"a": good, "b": {"class_path": "WebImages", "init_args": {"root": "nowhere"}}}).check_root()
