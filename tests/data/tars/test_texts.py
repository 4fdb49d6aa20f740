"""Texts that users wrote: class names, templates, lists, counts, in folders and at addresses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.data import COCO, ImageNet100, WebImages
from clt_lightning.data.lists import imagenet1k
from clt_lightning.data.sets.imagenet100.classlist import load_class_list
from clt_lightning.data.tars.index import build_index
from clt_lightning.data.tars.layout import ShardFile, find_split
from clt_lightning.data.tars.texts import read_lines

from ..world import images, picture, to_tensor, write_root, write_split, write_tar

LATIN1 = "cat\nlöwe\n".encode("latin-1")
WRONG = [
    (LATIN1, r"line 2: byte 0xf6 is not UTF-8"),
    ("cat\nlöwe\n".encode("utf-16"), r"is UTF-16"),
    ("cat\nlöwe\n".encode("utf-16-le"), r"line 1: a zero byte"),
    (b"cat\r\n\r\ndog\r\n", r"line 2: a blank line"),
    (b"cat\r\rdog\r", r"line 2: a blank line"),
    (b"cat\n \t\ndog\n", r"line 2: a blank line"),
    (b"", r"is empty"),
    (b"\xef\xbb\xbf\n\n", r"is empty"),
]
RIGHT = [
    b"\xef\xbb\xbfcat\nl\xc3\xb6we\n",
    b"cat\r\nl\xc3\xb6we\r\n",
    b"cat\rl\xc3\xb6we\r",
    b"cat \n\tl\xc3\xb6we\n\n\n",
    b"cat\n\xef\xbb\xbfl\xc3\xb6we",  # joined files
]


@pytest.fixture(params=["folder", "address"])
def place(request: pytest.FixtureRequest, server: tuple[Path, str]) -> tuple[Path, str]:
    """A root with two classes, and how it is named."""
    folder, url = server
    write_root(folder / "set", test=[3], classes=2)
    (folder / "set" / "test" / "index.json").write_text('{"shards": [{"name": "0.tar", "samples": 3}]}')
    return folder / "set", str(folder / "set") if request.param == "folder" else f"{url}/set"


@pytest.mark.parametrize("data", RIGHT)
def test_texts_that_mean_the_same(place: tuple[Path, str], data: bytes) -> None:
    folder, root = place
    (folder / "classnames.txt").write_bytes(data)
    dm = WebImages(root=root)
    dm.setup("test")
    assert dm.classnames == ["cat", "löwe"]


@pytest.mark.parametrize(("data", "words"), WRONG)
def test_texts_that_would_shift_or_break_names(place: tuple[Path, str], data: bytes, words: str) -> None:
    folder, root = place
    (folder / "classnames.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"{root}/classnames\.txt.*{words}"):
        WebImages(root=root).setup("test")


def test_names_and_templates_in_files_of_their_own(place: tuple[Path, str]) -> None:
    folder, root = place
    (folder / "mine.txt").write_bytes(RIGHT[0])
    dm = WebImages(root=root, classnames=f"{root}/mine.txt")
    dm.setup("test")
    assert dm.classnames == ["cat", "löwe"]
    (folder / "mine.txt").write_bytes(LATIN1)
    with pytest.raises(UserError, match=r"mine\.txt, line 2"):
        WebImages(root=root, classnames=f"{root}/mine.txt").setup("test")
    with pytest.raises(UserError, match=r"data\.init_args\.classnames: there is no file"):
        WebImages(root=root, classnames=f"{root}/nope.txt").setup("test")
    with pytest.raises(UserError, match="empty list"):
        WebImages(root=root, classnames=[]).setup("test")


def test_a_blank_line_between_templates_means_nothing(place: tuple[Path, str]) -> None:
    folder, root = place
    file = folder / "zeroshot_classification_templates.txt"
    file.write_bytes(b"\xef\xbb\xbfa photo of a {c}.\n\nart of a {c}.\n")
    dm = WebImages(root=root)
    dm.setup("test")
    assert dm.templates == ["a photo of a {c}.", "art of a {c}."]
    file.write_text("a photo of a {c}.\n\nart of it.\n")
    with pytest.raises(UserError, match=r"templates\.txt, line 3: template 'art of it\.' has no place for the class"):
        WebImages(root=root).setup("test")


def test_the_type_of_a_set(place: tuple[Path, str]) -> None:
    folder, root = place
    (folder / "dataset_type.txt").write_bytes(b"\xef\xbb\xbfmultilabel\r\n")
    dm = COCO(root=root)
    dm.setup("test")
    assert dm.dataset_type == "multilabel"
    (folder / "dataset_type.txt").write_text("multi-label\n")
    with pytest.raises(UserError, match=r"dataset_type\.txt holds 'multi-label'.*multilabel, retrieval"):
        COCO(root=root).setup("test")


@pytest.mark.parametrize(("data", "words"), [(LATIN1, "line 2"), (b"two", "one integer"), (b"1_0", "one integer")])
def test_counts_of_shards(place: tuple[Path, str], data: bytes, words: str) -> None:
    folder, root = place
    (folder / "test" / "nshards.txt").write_bytes(b"\xef\xbb\xbf1\r\n")
    found = find_split(root, "test")
    assert found is not None
    assert len(found.shards) == 1
    (folder / "test" / "nshards.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"nshards\.txt.*{words}"):
        find_split(root, "test")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", r"line 1: not JSON"),
        (LATIN1, r"line 2: byte"),
        (b"[]", "no table"),
        (b'{"shards": {"0.tar": 1}}', "no list"),
        (b'{"shards": [1]}', "entry 0"),
        (b'{"shards": [{"name": "0.tar", "samples": "3"}]}', r"`samples` must be a number"),
        (b'{"shards": [{"name": "0.tar", "samples": -3}]}', r"`samples` must be a number"),
        (b'{"shards": [{"name": "0.tar", "bytes": true}]}', r"`bytes` must be a number"),
        (b'{"shards": [{"name": "0.tar", "sha256": 5}]}', r"`sha256` must be a text"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_damaged_records(place: tuple[Path, str], content: bytes, words: str) -> None:
    folder, root = place
    (folder / "test" / "shards.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"shards\.json.*{words}"):
        images(root).setup("test")  # type: ignore[arg-type]


def test_a_record_with_a_mark_is_read(place: tuple[Path, str]) -> None:
    folder, root = place
    (folder / "test" / "index.json").write_bytes(b'\xef\xbb\xbf{"shardlist": [{"url": "x/0.tar", "nsamples": 3}]}')
    dm = images(root)  # type: ignore[arg-type]
    assert sum(len(batch["key"]) for batch in dm.test_dataloader()) == 3


def test_counts_that_are_too_small_lose_nothing_in_silence(server: tuple[Path, str]) -> None:
    folder, url = server
    write_split(folder, [5])
    for counts in ({"test": [4]}, {"test": [0]}):
        dm = images(test=f"{url}/0.tar", shard_counts=counts)
        with pytest.raises(UserError, match=r"holds more than the 4 samples|hold no sample"):
            list(dm.test_dataloader())
    with pytest.raises(UserError, match="below 0"):
        build_index([ShardFile(f"{url}/0.tar", "0")], counts=[-1])


def test_class_lists_may_have_comments_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf# mine\r\n\r\nn02107142 dog\r\n\r\nn01440764\r\n")
    assert load_class_list(str(path)).wnids == ("n01440764", "n02107142")
    path.write_text("n02107142\n\nn00000000\n")
    with pytest.raises(UserError, match=r"list\.txt', line 3: 'n00000000' is not a WordNet id"):
        load_class_list(str(path))
    path.write_text("n02107142\n\nn02107142\n")
    with pytest.raises(UserError, match=r"line 3 has 'n02107142' twice: it is on line 1"):
        load_class_list(str(path))
    path.write_bytes(b"n02107142\nl\xf6we\n")
    with pytest.raises(UserError, match=r"list\.txt, line 2: byte 0xf6"):
        load_class_list(str(path))


def test_a_list_that_is_no_file(tmp_path: Path) -> None:
    assert read_lines(str(tmp_path / "nope.txt")) is None
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=r"folder\.txt cannot be read"):
        read_lines(str(tmp_path / "folder.txt"))


def test_a_text_at_an_address_has_a_largest_size(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = server
    (folder / "classnames.txt").write_text("name\n" * 1000)
    monkeypatch.setattr("clt_lightning.data.tars.texts.MAX_TEXT_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        read_lines(f"{url}/classnames.txt")


# -- labels ---------------------------------------------------------------------------------------------------------


def picked_root(tmp_path: Path, labels: list[bytes | None]) -> ImageNet100:
    order = list(imagenet1k())
    (tmp_path / "classnames.txt").write_text("\n".join(imagenet1k().values()))
    (tmp_path / "list.txt").write_text("\n".join([order[7], order[3]]))
    parts = [{"png": picture(i)} | ({} if label is None else {"cls": label}) for i, label in enumerate(labels)]
    write_tar(tmp_path / "test" / "0.tar", [(f"s{i:07d}", p) for i, p in enumerate(parts)])
    return ImageNet100(root=str(tmp_path), class_list=str(tmp_path / "list.txt"), num_workers=0)


def test_label_1000_among_1000_classes(tmp_path: Path) -> None:
    dm = picked_root(tmp_path, [b"3", b"1000", b"7"])
    with pytest.raises(UserError, match=r"sample '0/s0000001': label 1000 is out of range, since .*has 1000 class"):
        dm.setup("test")
    (tmp_path / "b").mkdir()
    dm = picked_root(tmp_path / "b", [b"1", b"1000", b"7"])
    with pytest.raises(UserError, match="counted from 1: labels begin at 0"):
        dm.setup("test")


@pytest.mark.parametrize("label", [None, b"cat", b"9" * 30, b"-5", b"1_0"])
def test_picking_classes_drops_no_bad_label_in_silence(tmp_path: Path, label: bytes | None) -> None:
    dm = picked_root(tmp_path, [b"3", label, b"7", b"0", b"-1"])
    dm.transform = to_tensor
    with pytest.raises(UserError, match="s0000001"):
        list(dm.test_dataloader())
    dm.on_error = "skip"
    dm._splits.clear()
    loader = dm.test_dataloader()
    assert [key for batch in loader for key in batch["key"]] == ["0/s0000000", "0/s0000002"]
    assert sum(loader.skipped.values()) == 1


def test_a_label_with_a_mark_and_blanks(tmp_path: Path) -> None:
    made = [
        ("s0", {"png": picture(), "cls": b"\xef\xbb\xbf 7\r\n"}),
        ("s1", {"png": picture(), "cls": b"7" + b" " * 60}),
    ]
    write_tar(tmp_path / "test" / "0.tar", made)
    dm = images(tmp_path)
    assert next(iter(dm.test_dataloader()))["label"].tolist() == [7, 7]
    split = dm.split("test")
    assert split is not None
    assert split.shards[0].labels is not None
    assert split.shards[0].labels.tolist() == [7, 7]


def test_captions_that_are_no_text(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "test" / "0.tar", [("s0", {"png": picture(), "txt": b"\xef\xbb\xbfa cat\r\n\r\na\xe2\x80\xa8dog"})]
    )
    assert next(iter(images(tmp_path).test_dataloader()))["captions"] == [["a cat", "a\u2028dog"]]
    write_tar(tmp_path / "test" / "0.tar", [("s0", {"png": picture(), "txt": LATIN1})])
    with pytest.raises(UserError, match=r"sample '0/s0': `txt`, line 2: byte 0xf6"):
        list(images(tmp_path).test_dataloader())


def test_json_of_records_is_json(tmp_path: Path) -> None:
    """Our own record, of both kinds, by which remote tars are counted."""
    write_root(tmp_path, train=[2, 3])
    rows = [{"name": f"{i}.tar", "samples": n, "bytes": 1, "sha256": "0" * 64} for i, n in enumerate([2, 3])]
    (tmp_path / "train" / "shards.json").write_text(json.dumps({"shards": rows}))
    assert images(tmp_path).split("train").samples == 5  # type: ignore[union-attr]
