"""Sets whose table tells a class, an attribute and a split: their groups, and what is said of a table that is wrong."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.data import Waterbirds

from ..world import picture, to_tensor, write_tar
from .test_shard import shard

Row = Mapping[str, object]


def put(folder: Path, rows: Sequence[Row], *, images: bool = True) -> Path:
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for i, row in enumerate(rows if images else ()):
        path = folder / str(next(value for name, value in row.items() if name.endswith(("filename", "image"))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    return folder


def birds(count: int = 24) -> list[dict[str, object]]:
    """Bird i on place i // 2, in split i // 4."""
    return [
        {
            "img_id": i,
            "img_filename": f"00{i % 3}.Bird/Bird_{i}.png",
            "y": i % 2,
            "split": i // 4 % 3,
            "place": i // 2 % 2,
            "place_filename": "/o/ocean/1.jpg",
        }
        for i in range(count)
    ]


def read(root: Path, split: str) -> dict[str, tuple[int, int]]:
    """Label and group by the picture's brightness."""
    dm = Waterbirds(root=root, batch_size=4, num_workers=0)
    dm.transform = to_tensor
    found = {}
    for batch in dm.eval_dataloader(split):
        for image, label, group in zip(batch["image"], batch["label"], batch["group"]):
            found[str(round(float(image[0, 0, 0]) * 255))] = (int(label), int(group))
    return found


def test_labels_groups_splits_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", birds())
    (source / "left over.png").write_bytes(picture(99))
    shard("waterbirds", source, tmp_path / "out")
    for number, split in enumerate(("train", "val", "test")):
        rows = [i for i in range(24) if i // 4 % 3 == number]
        assert read(tmp_path / "out", split) == {str(i): (i % 2, 2 * (i % 2) + i // 2 % 2) for i in rows}
    dm = Waterbirds(root=tmp_path / "out")
    dm.setup()
    assert dm.classnames == ["landbird", "waterbird"]
    assert dm.groupnames == ["landbird, land", "landbird, water", "waterbird, land", "waterbird, water"]
    told = capsys.readouterr().err
    assert "1 images are left out" in told
    assert "test: 2 landbird / land, 2 landbird / water, 2 waterbird / land, 2 waterbird / water" in told


def test_a_table_with_other_columns_and_values(tmp_path: Path) -> None:
    """CelebA's: -1 and 1 for no and yes; no validation split, so that one is held out."""
    rows = [
        {"image": f"{i}.png", "Blond": 1 if i % 4 == 0 else -1, "Male": ("no", "yes")[i % 2], "part": i // 30}
        for i in range(60)
    ]
    for row in rows:
        row["part"] = "train" if row["part"] == 0 else "test"
    source = put(tmp_path / "s", rows)
    called = {"file": "image", "label": "Blond", "attribute": "Male", "split": "part"}
    columns = [word for what, name in called.items() for word in (f"--{what}-column", name)]
    shard("waterbirds", source, tmp_path / "out", *columns, "--class-names", "dark, blond", "--val-fraction", "0.2")
    dm = Waterbirds(root=tmp_path / "out")
    dm.setup()
    assert dm.classnames == ["dark", "blond"]
    assert dm.groupnames == ["dark, no", "dark, yes", "blond, no", "blond, yes"]
    both = read(tmp_path / "out", "train") | read(tmp_path / "out", "val")
    assert both == {str(i): (int(i % 4 == 0), 2 * (i % 4 == 0) + i % 2) for i in range(30)}
    # of each group its share: of 7, 15, 8 and none
    groups = [group for _, group in read(tmp_path / "out", "val").values()]
    assert [groups.count(group) for group in (1, 3)] == [3, 0]
    assert {groups.count(0), groups.count(2)} <= {1, 2}
    shard("waterbirds", source, tmp_path / "named", *columns)
    assert (tmp_path / "named" / "classnames.txt").read_text() == "Blond -1\nBlond 1\n"


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        ({"y": ""}, (), "line 4: y is empty"),
        ({"split": 3}, (), "line 4: split is '3', but must be 0, 1 or 2"),
        ({"img_filename": "nowhere.png"}, (), "line 4: there is no image 'nowhere.png'"),
        ({"img_filename": "001.Bird/Bird_1.png"}, (), "line 4: 001.Bird/Bird_1.png is on line 3, too"),
        ({"img_filename": "metadata.csv"}, (), "there is no image 'metadata.csv'"),
        ({}, ("--label-column", "kind"), "has no column 'kind', but img_id, img_filename"),
        ({}, ("--class-names", "a,b,c"), r"--class-names must be 2 different names, one for each value of y \(0, 1\)"),
        ({}, ("--attribute-names", "a,a"), "--attribute-names must be 2 different names"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, change: Row, more: Sequence[str], told: str) -> None:
    rows = birds()
    source = put(tmp_path / "s", rows)
    rows[2] |= change
    put(tmp_path / "t", rows, images=False)
    (source / "metadata.csv").write_bytes((tmp_path / "t" / "metadata.csv").read_bytes())
    with pytest.raises(UserError, match=told):
        shard("waterbirds", source, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_other_faults_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"has no metadata\.csv"):
        shard("waterbirds", tmp_path / "none", tmp_path / "out")
    source = put(tmp_path / "s", birds())
    (source / "000.Bird" / "Bird_0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 image is empty.*Bird_0\.png"):
        shard("waterbirds", source, tmp_path / "out")
    (source / "metadata.csv").write_text("img_filename,y,place,split\na.png,0\n")
    with pytest.raises(UserError, match="line 2: it has not as many fields"):
        shard("waterbirds", source, tmp_path / "out")
    with pytest.raises(UserError, match="lies in --source"):
        shard("waterbirds", source, source / "out")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"4", r"`group` is 4, but must be 0\.\.3 \(4 group names\)"),
        (b"x", "`group` must hold one integer"),
        (None, "there is no `group` member"),
    ],
)
def test_a_group_that_is_none_is_a_bad_sample(tmp_path: Path, content: bytes | None, told: str) -> None:
    group = {} if content is None else {"group": content}
    samples = [("a", {"png": picture(1), "cls": b"0", "group": b"3"}), ("b", {"png": picture(2), "cls": b"0", **group})]
    write_tar(tmp_path / "test" / "0.tar", samples)
    (tmp_path / "groupnames.txt").write_text("a\nb\nc\nd\n")
    dm = Waterbirds(root=tmp_path, batch_size=2, num_workers=0)
    dm.transform = to_tensor
    with pytest.raises(UserError, match=f"0/b.*{told}"):
        list(dm.test_dataloader())
    dm = Waterbirds(root=tmp_path, batch_size=2, num_workers=0, on_error="skip")
    dm.transform = to_tensor
    (batch,) = dm.test_dataloader()
    assert torch.equal(batch["group"], torch.tensor([3]))
