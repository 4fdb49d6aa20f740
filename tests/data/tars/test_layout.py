"""Finding the tars of a split."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.layout import expand, find_split, name_shards

from ..world import images, samples, write_root, write_split, write_tar


def files(root: Path, split: str = "train") -> list[str]:
    found = find_split(str(root), split)
    assert found is not None
    return [Path(s.url).relative_to(root).as_posix() for s in found.shards]


def test_the_public_layout(tmp_path: Path) -> None:
    write_root(tmp_path, train=[1] * 12, test=[1])
    assert files(tmp_path) == [f"train/{i}.tar" for i in range(12)]
    found = find_split(str(tmp_path), "train")
    assert found is not None
    assert [s.name for s in found.shards] == [str(i) for i in range(12)]


@pytest.mark.parametrize(("there", "asked"), [("test", "val"), ("val", "test"), ("validation", "test")])
def test_val_and_test_stand_in_for_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str, asked: str
) -> None:
    write_split(tmp_path / there, [2])
    found = find_split(str(tmp_path), asked)
    assert found is not None
    assert (found.asked, found.found) == (asked, there)
    assert images(tmp_path).split(asked) is not None  # the data module says it, with the consequence
    assert f"'{there}' is read in its place" in caplog.text


def test_a_folder_without_nshards_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in (0, 1, 10, 2):
        write_tar(tmp_path / "train" / f"{i:05d}.tar", [])
    with caplog.at_level(logging.INFO):
        assert files(tmp_path) == [f"train/{i:05d}.tar" for i in (0, 1, 2, 10)]
    assert "no nshards.txt" in caplog.text


def test_a_flat_folder_with_split_names(tmp_path: Path) -> None:
    for name in ("imagenet1k-train-0001", "imagenet1k-train-0000", "imagenet1k-validation-00"):
        write_tar(tmp_path / f"{name}.tar", [])
    assert files(tmp_path) == ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"]
    assert files(tmp_path, "test") == ["imagenet1k-validation-00.tar"]


def test_a_flat_folder_without_split_names_is_training_data(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [])
    assert files(tmp_path) == ["00000.tar"]
    assert find_split(str(tmp_path), "val") is None


@pytest.mark.parametrize(
    ("stated", "message"), [("3", "1 shards, |2.tar missing"), ("1", "1.tar extra"), ("0", "empty"), ("two", "integer")]
)
def test_nshards_that_disagrees_is_refused(tmp_path: Path, stated: str, message: str) -> None:
    write_split(tmp_path / "train", [1, 1])
    (tmp_path / "train" / "nshards.txt").write_text(stated)
    with pytest.raises(UserError, match=message) as caught:
        find_split(str(tmp_path), "train", hint="Make the tars with: X")
    assert "nshards.txt" in str(caught.value)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*Make the tars with: shard"):
        find_split(str(tmp_path / "nowhere"), "train", hint="Make the tars with: shard")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="holds no tar"):
        find_split(str(tmp_path), "train")


def test_braces_globs_folders_and_lists(tmp_path: Path) -> None:
    write_split(tmp_path / "a", [1] * 12)
    write_split(tmp_path / "b", [1])
    found = expand([f"{tmp_path}/a/{{0..2}}.tar", f"{tmp_path}/a/1?.tar", f"{tmp_path}/b"], "train")
    assert [s.name for s in found.shards] == ["a/0", "a/1", "a/2", "a/10", "a/11", "b/0"]


def test_patterns_that_match_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches .*x\*\.tar"):
        expand(f"{tmp_path}/x*.tar", "train")
    with pytest.raises(UserError, match=r"no file .*x1\.tar.*pattern"):
        expand(f"{tmp_path}/x{{1..2}}.tar", "train")


def test_commands_need_leave() -> None:
    with pytest.raises(UserError, match="allow_pipe=true"):
        expand("pipe:cat {0..1}.tar", "train")
    with pytest.raises(UserError, match="allow_pipe=true"):
        expand("s3://bucket/0.tar", "train")
    assert [s.name for s in expand("pipe:cat x/{0..1}.tar", "train", allow_pipe=True).shards] == ["0", "1"]
    assert [s.url for s in expand("https://host/{0..1}.tar", "train").shards] == [
        "https://host/0.tar",
        "https://host/1.tar",
    ]


def test_names_are_unique_and_short() -> None:
    assert [s.name for s in name_shards(["d/train/0.tar", "d/train/1.tar.gz"])] == ["0", "1"]
    assert [s.name for s in name_shards(["d/a/0.tar", "d/b/0.tar"])] == ["a/0", "b/0"]
    with pytest.raises(UserError, match="listed twice"):
        name_shards(["0.tar", "0.tar"])


def test_a_file_that_is_named_like_a_command_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "pipe:touch ran; cat x.tar"
    write_tar(tmp_path / name, samples(0, 3))
    write_tar(tmp_path / "d" / name, samples(3, 2))
    write_tar(tmp_path / "s3:" / "0.tar", samples(5, 1))
    for allow_pipe in (False, True):
        for pattern, count in (
            ("*.tar", 3),
            ("pipe:*", None),
            ("d", 2),
            ("d/*.tar", 2),
            ("**/*.tar", 6),
            ("?ipe:*", 3),
        ):
            if count is None:  # an address, as the user wrote it
                if not allow_pipe:
                    with pytest.raises(UserError, match="runs a shell command"):
                        expand(pattern, "train")
                continue
            found = expand(pattern, "train", allow_pipe=allow_pipe)
            assert all(shard.local for shard in found.shards)
            loader = images(train=pattern, allow_pipe=allow_pipe).eval_dataloader("train")
            assert sum(len(batch["key"]) for batch in loader) == count
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "d" / "ran").exists()


def test_the_same_file_under_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path / "a", [1, 1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a/0\.tar' is listed twice, once as"):
        expand(["a", "./a/0.tar"], "train")
    with pytest.raises(UserError, match=r"listed twice, once as 'a/1\.tar'"):
        expand(["a/*.tar", str(tmp_path / "a" / "1.tar")], "train")


def test_keys_are_unique_whatever_the_names_of_tars() -> None:
    urls = ["a.tar", "a/b.tar", "x/a.tar"]  # sample b/s of the first, and s of the second
    names = [shard.name for shard in name_shards(urls)]
    assert len({f"{names[0]}/b/s", f"{names[1]}/s", f"{names[2]}/s"}) == 3


def test_a_folder_that_was_not_finished(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [1, 1], nshards=False)
    (tmp_path / "train" / ".shards.partial.json").write_text("{}")
    with pytest.raises(UserError, match=r"train is not complete: `shard` was interrupted"):
        find_split(str(tmp_path), "train")


def test_a_recorded_tar_that_is_not_there(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [1, 1], nshards=False)
    rows = [{"name": f"{i}.tar", "samples": 1} for i in range(3)]
    (tmp_path / "train" / "shards.json").write_text(json.dumps({"shards": rows}))
    with pytest.raises(UserError, match=r"shards\.json lists 2\.tar, which the folder lacks"):
        find_split(str(tmp_path), "train")


def test_tars_of_no_split_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("set-train-0", "set-test-0", "set-more-0"):
        write_tar(tmp_path / f"{name}.tar", [])
    assert files(tmp_path) == ["set-train-0.tar"]
    assert "set-more-0.tar have no split in their names and are not read" in caplog.text


def test_a_tar_that_leads_nowhere(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [1], nshards=False)
    (tmp_path / "train" / "1.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"1\.tar cannot be read: No such file"):
        images(tmp_path).setup("fit")
    (tmp_path / "train" / "1.tar").unlink()
    (tmp_path / "train" / "1.tar").mkdir()
    with pytest.raises(UserError, match=r"1\.tar cannot be read: Is a directory"):
        images(tmp_path).setup("fit")
