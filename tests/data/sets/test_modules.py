"""The data modules: what they find, what they say of it, what they refuse."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.data import CIFAR100, COCO, Demo, ImageNet100, WebImages
from clt_lightning.data.lists import imagenet1k, lines
from clt_lightning.data.sets.imagenet100.classlist import load_class_list
from clt_lightning.data.worlds import renders

from ..world import images, numbers, picture, samples, to_tensor, write_root, write_split, write_tar


def test_setup_finds_names_splits_and_describes_them(tmp_path: Path) -> None:
    dm = images(write_root(tmp_path, train=[5, 6], test=[7]))
    dm.setup("fit")
    assert dm.classnames == [f"class {i}" for i in range(10)]
    assert dm.templates == ["a photo of a {c}."]
    told = dm.describe()
    assert told["splits"] == {
        "train": {"split": "train", "shards": 2, "samples": 11},
        "val": {"split": "test", "shards": 1, "samples": 7},
    }
    assert told["n_classes"] == 10
    assert len(told["classnames_sha256"]) == 64
    json.dumps(told)
    batch = next(iter(dm.val_dataloader()))
    assert numbers([batch]) == [0, 1, 2, 3]
    assert numbers(dm.eval_dataloader("train")) == list(range(11))


def test_val_samples_limits_validation_only(tmp_path: Path) -> None:
    dm = images(write_root(tmp_path, train=[8], test=[20]), val_samples=5)
    assert numbers(dm.val_dataloader()) == [0, 4, 8, 12, 16]
    assert len(numbers(dm.test_dataloader())) == 20


def test_val_and_test_of_their_own(tmp_path: Path) -> None:
    write_split(tmp_path / "val", [3])
    write_split(tmp_path / "test", [4])
    dm = images(tmp_path)
    assert len(numbers(dm.val_dataloader())) == 3
    assert len(numbers(dm.test_dataloader())) == 4
    with pytest.raises(UserError, match=r"no split 'train'"):
        dm.setup("fit")


@pytest.mark.parametrize("by", ["root", "patterns"])
def test_a_best_checkpoint_that_is_chosen_on_the_test_split_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    write_root(tmp_path, train=[8], test=[4])
    places = {name: f"{tmp_path}/{name}/*.tar" for name in ("train", "test")}
    dm = images(tmp_path) if by == "root" else images(None, **places)
    dm.setup("fit")
    dm.val_dataloader()
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 1
    assert "has no split 'val', and 'test' is read in its place" in said[0]
    assert "the best checkpoint is chosen on the test split, so its test numbers flatter" in said[0]
    assert "--val-fraction" in said[0]
    assert dm.describe()["splits"]["val"]["split"] == "test"


def test_testing_on_the_validation_split_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_split(tmp_path / "validation", [3])
    images(tmp_path).setup("validate")
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    images(tmp_path).setup("test")
    assert "'validation' is read in its place: where the best checkpoint was chosen" in caplog.text


def test_sets_with_a_val_split_are_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_root(tmp_path, train=[8], test=[4])
    write_split(tmp_path / "val", [3])
    images(tmp_path).setup()
    demo(tmp_path / "demo").setup()
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_training_alone_has_no_validation(tmp_path: Path) -> None:
    dm = images(write_root(tmp_path, train=[8]))
    dm.setup("fit")
    assert dm.val_dataloader() == []
    with pytest.raises(UserError, match="no split 'test'"):
        dm.setup("test")


def test_patterns_win_over_the_root_and_stand_in(tmp_path: Path) -> None:
    write_root(tmp_path / "a", train=[8], test=[4])
    write_split(tmp_path / "b", [2, 3])
    dm = images(tmp_path / "a", test=f"{tmp_path}/b/{{0..1}}.tar")
    assert len(numbers(dm.test_dataloader())) == 5
    assert len(numbers(dm.val_dataloader())) == 5
    assert len(numbers(dm.eval_dataloader("train"))) == 8
    alone = images(train=f"{tmp_path}/b/*.tar")
    assert len(numbers(alone.eval_dataloader("train"))) == 5


def test_names_from_the_config_and_from_files(tmp_path: Path) -> None:
    write_root(tmp_path / "a", test=[4])
    (tmp_path / "names.txt").write_text("".join(f"n{i}\n" for i in range(12)))
    dm = images(tmp_path / "a", classnames=str(tmp_path / "names.txt"), templates=["{c}!"])
    dm.setup("test")
    assert dm.n_classes == 12
    assert dm.templates == ["{c}!"]
    with pytest.raises(UserError, match=r"data\.init_args\.classnames.*nope"):
        images(tmp_path / "a", classnames=str(tmp_path / "nope.txt")).setup("test")
    with pytest.raises(UserError, match="no place for the class"):
        images(tmp_path / "a", templates=["a photo"]).setup("test")


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="root is not set"):
        WebImages()
    with pytest.raises(UserError, match="batch_size must be 1 or more"):
        WebImages(root="x", batch_size=0)
    with pytest.raises(UserError, match="on_error must be one of raise, skip"):
        WebImages(root="x", on_error="ignore")  # type: ignore[arg-type]
    dm = WebImages(root=str(write_root(tmp_path, train=[8])), num_workers=0)
    with pytest.raises(UserError, match="`transform` is not set"):
        dm.train_dataloader()
    dm.rank, dm.world_size, dm.transform = 2, 2, to_tensor
    with pytest.raises(UserError, match="rank 2 does not fit"):
        dm.train_dataloader()


@pytest.mark.parametrize(("module", "words"), [(CIFAR100, "shard cifar100"), (COCO, "shard coco")])
def test_a_missing_set_says_which_command_makes_it(tmp_path: Path, module: type[WebImages], words: str) -> None:
    root = str(tmp_path / "nowhere")
    with pytest.raises(UserError) as caught:
        module(root=root).setup("fit")
    assert f"python -m clt_lightning {words}" in str(caught.value)
    assert f"--output {root}" in str(caught.value)


def test_labels_that_do_not_fit_the_names_are_found_at_once(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[8])
    (root / "classnames.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"0\.tar, sample '0/s0000003': label 3 .*classnames\.txt has 3 class names"):
        images(root).setup("fit")
    assert len(numbers(images(root, on_error="skip").eval_dataloader("train"))) == 3


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.tar.*hold no sample"):
        images(write_root(tmp_path, train=[0, 0])).setup("fit")


def test_cifar_wants_its_hundred_names(tmp_path: Path) -> None:
    write_split(tmp_path / "test", [4])
    dm = CIFAR100(root=str(tmp_path))
    dm.setup("test")
    assert dm.n_classes == 100
    assert dm.templates is not None
    assert len(dm.templates) == 18
    (tmp_path / "classnames.txt").write_text("a\n")
    with pytest.raises(UserError, match="100 classes"):
        CIFAR100(root=str(tmp_path)).setup("test")


def test_shipped_lists_are_whole() -> None:
    assert len(imagenet1k()) == 1000
    assert list(imagenet1k()) == sorted(imagenet1k())
    assert len(set(lines("cifar100"))) == 100
    assert len(set(lines("coco"))) == 80
    assert len(set(lines("imagenet100_cmc"))) == 100
    for name, count in (("cifar18", 18), ("imagenet7", 7), ("imagenet80", 80)):
        assert len(set(lines(f"templates_{name}"))) == count
        assert all("{c}" in t for t in lines(f"templates_{name}"))


def test_class_lists(tmp_path: Path) -> None:
    cmc = load_class_list("cmc")
    assert cmc.wnids[0] == "n01558993"
    assert cmc.names[0] == "American robin"
    assert cmc.from_imagenet1k()[15] == 0
    (tmp_path / "own.txt").write_text("n02107142 dog\nn01440764\n")
    own = load_class_list(str(tmp_path / "own.txt"))
    assert own.wnids == ("n01440764", "n02107142")
    assert own.sha256 != cmc.sha256
    for text, words in (("n00000000", "n00000000"), ("n01440764\nn01440764", "twice"), ("", "empty")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            load_class_list(str(tmp_path / "bad.txt"))
    with pytest.raises(UserError, match="neither a file"):
        load_class_list("unknown")


def test_imagenet100_is_picked_from_imagenet1k_without_new_tars(tmp_path: Path) -> None:
    order = list(imagenet1k())
    (tmp_path / "classnames.txt").write_text("\n".join(imagenet1k().values()))
    (tmp_path / "list.txt").write_text("\n".join([order[7], order[3], order[501]]))
    made = [
        (f"s{i:07d}", {"png": picture(i), "cls": str(label).encode()}) for i, label in enumerate([3, 9, 501, 7, 0, 3])
    ]
    write_tar(tmp_path / "test" / "0.tar", made[:4])
    write_tar(tmp_path / "test" / "1.tar", made[4:5])
    write_tar(tmp_path / "test" / "2.tar", made[5:])
    (tmp_path / "test" / "nshards.txt").write_text("3")
    dm = ImageNet100(root=str(tmp_path), class_list=str(tmp_path / "list.txt"), num_workers=2, batch_size=2)
    dm.transform = to_tensor
    batches = list(dm.test_dataloader())
    assert numbers(batches) == [0, 2, 3, 5]
    assert torch.cat([b["label"] for b in batches]).tolist() == [0, 2, 1, 0]
    assert dm.classnames == [imagenet1k()[order[i]] for i in (3, 7, 501)]
    told = dm.describe()
    assert told["picked_from_imagenet1k"]
    assert told["class_list_sha256"] == load_class_list(str(tmp_path / "list.txt")).sha256
    assert told["splits"]["test"]["samples"] == 4


def test_imagenet100_refuses_tars_of_another_list(tmp_path: Path) -> None:
    write_split(tmp_path / "test", [2])
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    (tmp_path / "wnids.txt").write_text("n01440764\nn02107142\n")
    with pytest.raises(UserError, match="another class list"):
        ImageNet100(root=str(tmp_path)).setup("test")


# -- the demo -------------------------------------------------------------------------------------------------------


def demo(root: Path, **options: object) -> Demo:
    dm = Demo(**({"root": str(root), "n_train": 40, "n_test": 12, "size": 16, "batch_size": 8} | options))  # type: ignore[arg-type]
    dm.transform = to_tensor
    return dm


def test_the_demo_writes_its_renders_once_and_reads_them_as_any_set(tmp_path: Path) -> None:
    dm = demo(tmp_path / "d")
    dm.setup("fit")
    assert dm.classnames == renders.CLASSNAMES
    assert dm.templates == renders.TEMPLATES
    assert [len(numbers(dm.eval_dataloader(split))) for split in ("train", "val", "test")] == [40, 12, 12]
    tar = tmp_path / "d" / "val" / "0.tar"
    stamp = tar.stat().st_mtime_ns
    again = demo(tmp_path / "d")
    again.setup("validate")
    assert tar.stat().st_mtime_ns == stamp
    batch = next(iter(again.val_dataloader()))
    expected = renders.render(again.parameters["render_seeds"]["val"], 0, size=16)
    assert int(batch["label"][0]) == expected.label
    assert batch["captions"][0] == expected.captions
    assert torch.equal(batch["image"][0], to_tensor(expected.image))
    plain = images(tmp_path / "d")
    assert len(numbers(plain.eval_dataloader("train"))) == 40


def test_other_parameters_never_read_stale_renders(tmp_path: Path) -> None:
    demo(tmp_path).setup()
    other = demo(tmp_path, n_train=24)
    other.setup()
    assert other.root != str(tmp_path)
    assert len(numbers(other.eval_dataloader("train"))) == 24
    assert len(numbers(demo(tmp_path).eval_dataloader("train"))) == 40
    write_root(tmp_path / "mine", train=[3])
    foreign = demo(tmp_path / "mine")
    foreign.setup()
    assert len(numbers(foreign.eval_dataloader("train"))) == 40


def test_seed_and_world(tmp_path: Path) -> None:
    def first(**options: int) -> bytes:
        dm = demo(tmp_path, **options)
        dm.setup("validate")
        result: bytes = next(iter(dm.val_dataloader()))["image"].numpy().tobytes()
        return result

    assert first(seed=1) != first(seed=2)
    assert first(seed=1, world=5) == first(seed=2, world=5)


def test_the_pictures_of_a_set_may_have_something_in_common(tmp_path: Path) -> None:
    made = Demo(
        root=tmp_path / "a", n_train=12, n_test=1, size=16, world=5, colours=["red", "cyan"], background="water"
    )
    made.transform = to_tensor
    made.setup()
    seed = made.parameters["render_seeds"]["train"]
    seen = set()
    for sample in made.eval_dataloader("train", batch_size=1):
        name, index = renders.CLASSNAMES[int(sample["label"])], int(sample["key"][0].split("s")[-1])
        want = renders.render(seed, index, size=16, label=int(sample["label"]), cue=("background", 1))
        assert torch.equal(sample["image"][0], to_tensor(want.image))
        seen.add(name.split()[0])
    assert seen == {"red", "cyan"}
    assert made.classnames == renders.CLASSNAMES  # labels are those of all
    assert made.parameters["colours"] == ["red", "cyan"]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"background": "snow"}, "background must be sand or water, but is 'snow'"),
        ({"texture": "striped", "background": "sand"}, "texture and background cannot be set together"),
        ({"colours": ["red", "red"]}, "colours must be a list out of red, orange"),
        ({"colours": ["mauve"]}, "colours must be a list out of red, orange"),
        ({"colours": []}, "colours must be a list out of red, orange"),
        ({"colours": ["red"], "spurious": {"cue": "corner"}}, "colours and spurious cannot be set together"),
        ({"background": "sand", "spurious": {"cue": "corner"}}, "background and spurious cannot be set together"),
    )
    for arguments, said in cases:
        with pytest.raises(UserError, match=said):
            Demo(root=tmp_path / "b", **arguments)


def test_no_render_is_in_two_splits(tmp_path: Path) -> None:
    def pixels(dm: Demo) -> dict[str, set[bytes]]:
        batches = {split: dm.eval_dataloader(split) for split in ("train", "val", "test")}
        return {split: {i.numpy().tobytes() for b in found for i in b["image"]} for split, found in batches.items()}

    for world in (0, 1, 7, 2**32 - 1):
        dm = demo(tmp_path / str(world), world=world, n_val=9)
        dm.setup()
        found = pixels(dm)
        assert {split: len(images) for split, images in found.items()} == {"train": 40, "val": 9, "test": 12}
        assert not found["train"] & found["val"] | found["train"] & found["test"] | found["val"] & found["test"]
    seeds = {seed for world in range(300) for seed in demo(tmp_path, world=world).parameters["render_seeds"].values()}
    assert len(seeds) == 900
    assert min(seeds) >= 3_000_000  # below are those of the demo CLIP


def test_the_demo_s_val_split_is_part_of_its_parameters(tmp_path: Path) -> None:
    demo(tmp_path).setup()
    same = demo(tmp_path, n_val=12)
    same.setup()
    assert same.root == str(tmp_path)
    other = demo(tmp_path, n_val=5)
    other.setup()
    assert other.root != str(tmp_path)
    assert len(numbers(other.eval_dataloader("val"))) == 5
    assert other.describe()["renders"]["n_val"] == 5
    with pytest.raises(UserError, match=r"n_val must be 1 or more"):
        demo(tmp_path, n_val=0)


def test_renders_of_a_version_without_val_are_left_alone(tmp_path: Path) -> None:
    old = demo(tmp_path).parameters
    old = {key: value for key, value in old.items() if key != "n_val"}
    write_root(tmp_path, train=[3], test=[3])
    (tmp_path / "demo.json").write_text(json.dumps(old))
    dm = demo(tmp_path)
    dm.setup()
    assert dm.root != str(tmp_path)
    assert len(numbers(dm.eval_dataloader("val"))) == 12


def test_a_place_where_the_demo_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/demo cannot be written: .*Set data\.init_args\.root"):
        demo(tmp_path / "file" / "demo").setup()


def test_an_interrupted_demo_is_finished(tmp_path: Path) -> None:
    demo(tmp_path).setup()
    reference = (tmp_path / "test" / "0.tar").read_bytes()
    (tmp_path / "test" / "nshards.txt").unlink()
    (tmp_path / "test" / "0.tar").unlink()
    demo(tmp_path).setup()
    assert (tmp_path / "test" / "0.tar").read_bytes() == reference


def test_two_writers_do_not_collide(tmp_path: Path) -> None:
    modules = [demo(tmp_path / "d") for _ in range(4)]
    threads = [threading.Thread(target=dm.prepare_data) for dm in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for dm in modules:
        dm.prepare_data()
    assert {str(dm._folder()) for dm in modules} == {str(tmp_path / "d")}
    assert len(numbers(modules[0].eval_dataloader("train"))) == 40
    assert not list(tmp_path.rglob("*.tmp"))


# -- shards at an address ---------------------------------------------------------------------------------------------


def test_a_root_at_an_address_with_counts(server: tuple[Path, str]) -> None:
    folder, url = server
    write_root(folder / "set", train=[9, 7], test=[5, 3])
    for split, sizes in (("train", [9, 7]), ("test", [5, 3])):
        table = {"shards": [{"name": f"{i}.tar", "samples": n} for i, n in enumerate(sizes)]}
        (folder / "set" / split / "index.json").write_text(json.dumps(table))
    dm = WebImages(root=f"{url}/set", batch_size=4, num_workers=2)
    dm.transform = to_tensor
    dm.setup()
    assert dm.n_classes == 10
    assert numbers(dm.test_dataloader()) == list(range(8))
    seen = numbers(dm.train_dataloader())
    assert sorted(seen) == list(range(16))


def test_addresses_without_counts(server: tuple[Path, str]) -> None:
    folder, url = server
    write_root(folder / "set", train=[9, 7], test=[5, 3])
    dm = images(f"{url}/set")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="samples_per_epoch"):
        dm.train_dataloader()
    with pytest.raises(UserError, match="shard_counts"):
        dm.test_dataloader()
    counted = images(f"{url}/set", shard_counts={"test": [5, 3]})  # type: ignore[arg-type]
    assert numbers(counted.test_dataloader()) == list(range(8))
    for workers in (0, 3):
        endless = images(f"{url}/set", samples_per_epoch=40, num_workers=workers)  # type: ignore[arg-type]
        assert len(numbers(endless.train_dataloader())) == 40


def test_what_is_not_there_is_named(server: tuple[Path, str]) -> None:
    folder, url = server
    write_split(folder, [3])
    dm = images(train=f"{url}/{{0..1}}.tar", shard_counts={"train": [3, 3]})
    with pytest.raises(UserError, match=r"1\.tar answers 404"):
        numbers(dm.eval_dataloader("train"))
    wrong = images(train=f"{url}/0.tar", shard_counts={"train": [5]})
    with pytest.raises(UserError, match=r"0\.tar, sample number 3 of 5.*ends after 3 samples"):
        numbers(wrong.eval_dataloader("train"))


def test_pipes_with_leave(tmp_path: Path) -> None:
    write_split(tmp_path, [4, 4])
    pattern = f"pipe:cat {tmp_path}/{{0..1}}.tar"
    with pytest.raises(UserError, match="allow_pipe=true"):
        images(train=pattern).setup("fit")
    dm = images(train=pattern, allow_pipe=True, samples_per_epoch=8)
    assert sorted(numbers(dm.train_dataloader())) == list(range(8))
    failing = images(train="pipe:exit 3", allow_pipe=True, samples_per_epoch=8)
    with pytest.raises(UserError, match="exit 3"):
        numbers(failing.train_dataloader())


def test_multilabel_and_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import io

    import numpy as np

    out = io.BytesIO()
    np.save(out, np.array([1, 0, 1]))
    (tmp_path / "classnames.txt").write_text("a\nb\nc\n")
    (tmp_path / "dataset_type.txt").write_text("multilabel\n")
    parts = {"cls": b"-1", "npy": out.getvalue(), "txt": b"one\ntwo"}
    write_tar(tmp_path / "test" / "0.tar", [(k, p | parts) for k, p in samples(0, 3, classes=None)])
    dm = COCO(root=str(tmp_path), num_workers=0)
    dm.transform = to_tensor
    with caplog.at_level(logging.INFO):
        batch = next(iter(dm.test_dataloader()))
    assert batch["label"].tolist() == [-1, -1, -1]
    assert batch["multi_hot"].tolist() == [[1, 0, 1]] * 3
    assert batch["captions"] == [["one", "two"]] * 3
    assert dm.dataset_type == "multilabel"
