"""The files that a transcoder travels in: no damage, swap or change of them goes unnoticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import BatchTopK, CrossLayerTranscoder, JumpReLU, ReLU, TopK, pretrained
from clt_lightning.transcoder.files.circuit_tracer import save_circuit_tracer

Damage = Callable[[Path, np.random.Generator], None]


def make(seed: int, **options: object) -> CrossLayerTranscoder:
    arguments: dict[str, Any] = {"n_layers": 3, "d_model": 8, "n_features": 20, "activation": TopK(4), **options}
    clt = CrossLayerTranscoder(**arguments, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for W in clt.W_dec:
        W.data.normal_(generator=generator)
    return clt


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs' artefacts, of one form."""
    root = tmp_path_factory.mktemp("artefacts")
    about = {
        "clip": {"name": "ViT-B-32", "precision": "fp32"},
        "step": 1100,
        "lr": 4.0e-4,
        "note": "Grüße",
        "none": None,
    }
    return tuple(make(seed).save_pretrained(root / str(seed), about | {"seed": seed}) for seed in (0, 1))  # type: ignore[return-value]


def _bytes(change: Callable[[bytearray, np.random.Generator], None]) -> Damage:
    def damage(folder: Path, rng: np.random.Generator) -> None:
        path = folder / ("config.json" if rng.random() < 0.5 else "model.safetensors")
        data = bytearray(path.read_bytes())
        change(data, rng)
        path.write_bytes(data)

    return damage


def flip(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    at, n = int(rng.integers(len(data) - 1)), int(rng.integers(1, 64))
    data[at : at + n] = bytes(rng.integers(0, 256, len(data[at : at + n]), dtype=np.uint8))


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data) - 1)) :]


def zero(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data) - 1))
    data[at:] = bytes(len(data) - at)


def insert(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    data[at:at] = bytes(rng.integers(33, 127, 3, dtype=np.uint8))


def rewrite(change: Callable[[dict[str, torch.Tensor], np.random.Generator], dict[str, torch.Tensor]]) -> Damage:
    def damage(folder: Path, rng: np.random.Generator) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path), rng), path, {"format": pretrained.FORMAT})

    return damage


def swap(tensors: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in tensors.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    pairs = [names for names in by_shape.values() if len(names) > 1]
    first, second = rng.choice(pairs[int(rng.integers(len(pairs)))], 2, replace=False)
    if torch.equal(tensors[first], tensors[second]):
        tensors[first] = tensors[first] + 1
    return tensors | {first: tensors[second], second: tensors[first]}


def nudge(tensors: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    name = str(rng.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()]))
    flat = tensors[name].flatten().clone()
    flat[int(rng.integers(len(flat)))] += 1e-3
    return tensors | {name: flat.view(tensors[name].shape)}


def edit_config(folder: Path, rng: np.random.Generator) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    choices: list[Callable[[], object]] = [
        lambda: config["metadata"].update(step=int(rng.integers(2000, 9000))),
        lambda: config["metadata"]["clip"].update(name="ViT-B-16"),
        lambda: config["metadata"].pop("note"),
        lambda: config["activation"]["init_args"].update(k=int(rng.integers(5, 20))),
        lambda: config.update(topology="per_layer"),
        lambda: config.update(skip=True),
        lambda: config.pop("skip"),
        lambda: config.pop("sha256"),
        lambda: config["sha256"].pop("config.json"),
        lambda: config["sha256"].pop("model.safetensors"),
        lambda: config["sha256"].update({"model.safetensors": "0" * 64}),
        lambda: config.update(activation={"class_path": "AbsTopK", "init_args": {"k": 4}}),
    ]
    choices[int(rng.integers(len(choices)))]()
    path.write_text(json.dumps(config, indent=2))


def other_runs(name: str) -> Damage:
    def damage(folder: Path, rng: np.random.Generator) -> None:
        shutil.copy(folder.parent / "other" / name, folder / name)

    return damage


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Damage] = {
    **{change.__name__: _bytes(change) for change in (flip, overwrite, cut, zero, insert)},
    "swap": rewrite(swap),
    "nudge": rewrite(nudge),
    "edit config": edit_config,
    "other run's weights": other_runs("model.safetensors"),
    "other run's config": other_runs("config.json"),
    "empty": lambda folder, rng: _empty(folder / "model.safetensors"),
    "lost": lambda folder, rng: (folder / str(rng.choice(["config.json", "model.safetensors"]))).unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_is_silent(folders: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    shutil.copytree(folders[1], tmp_path / "other")
    content = json.loads((folders[0] / "config.json").read_text())
    for seed in range(40):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(folders[0], tmp_path / "damaged")
        DAMAGES[kind](tmp_path / "damaged", np.random.default_rng(seed))
        try:
            CrossLayerTranscoder.from_pretrained(tmp_path / "damaged")
        except UserError:
            continue
        # what is left: white space of config.json, and bytes that were written over with themselves
        assert json.loads((tmp_path / "damaged" / "config.json").read_text()) == content
        weights = "model.safetensors"
        assert (tmp_path / "damaged" / weights).read_bytes() == (folders[0] / weights).read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (rewrite(swap), r"model\.safetensors has not the SHA-256 sum.*damaged, or of another run"),
        (other_runs("model.safetensors"), r"model\.safetensors has not the SHA-256 sum"),
        (other_runs("config.json"), r"model\.safetensors has not the SHA-256 sum"),
    ],
)
def test_the_message_names_file_and_remedy(
    folders: tuple[Path, Path], tmp_path: Path, damage: Damage, words: str
) -> None:
    shutil.copytree(folders[0], tmp_path / "mine")
    shutil.copytree(folders[1], tmp_path / "other")
    damage(tmp_path / "mine", np.random.default_rng(0))
    with pytest.raises(UserError, match=words):
        CrossLayerTranscoder.from_pretrained(tmp_path / "mine")


def test_metadata_that_were_changed_on_purpose_can_be_sealed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(folders[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["metadata"]["note"] = "mine"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json was changed.*pretrained\.seal"):
        CrossLayerTranscoder.from_pretrained(folder)
    pretrained.seal(folder)
    CrossLayerTranscoder.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["metadata"]["note"] == "mine"


def test_an_artefact_without_sums_is_refused_with_a_remedy(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "it's old"
    shutil.copytree(folders[0], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no sums.*export --ckpt_path.*pretrained\.seal") as caught:
        CrossLayerTranscoder.from_pretrained(folder)
    command = str(caught.value).split('python -c "')[1].removesuffix('"')
    exec(command)
    CrossLayerTranscoder.from_pretrained(folder)


def test_layout_and_line_ends_of_config_do_not_count(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(config.items())), indent=7).replace("\n", "\r\n"))
    CrossLayerTranscoder.from_pretrained(tmp_path / "mine")


def test_weights_that_git_lfs_left_out(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "mine")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1700000000\n"
    (tmp_path / "mine" / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match=r"model\.safetensors is a git-lfs pointer to 1\.7 GB.*git lfs pull"):
        CrossLayerTranscoder.from_pretrained(tmp_path / "mine")


def test_a_config_of_impossible_size_takes_no_memory(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    path.write_text(path.read_text().replace('"n_features": 20', '"n_features": 20000000000'))
    with pytest.raises(UserError, match="do not fit"):
        CrossLayerTranscoder.from_pretrained(tmp_path / "mine")


# -- what is asked for has an effect -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [TopK(4), BatchTopK(3), JumpReLU(0.5), ReLU()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, "float16", "torch.float32"])
def test_dtype_is_honoured(tmp_path: Path, dtype: torch.dtype | str, activation: torch.nn.Module) -> None:
    clt = make(3, activation=activation, skip=True)
    clt.eval().save_pretrained(tmp_path)
    kind = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    loaded = CrossLayerTranscoder.from_pretrained(tmp_path, dtype=dtype)
    floats = [t for t in loaded.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {kind}
    x = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    out = loaded(x)
    assert out.y_hat.dtype == kind
    error = (out.y_hat.float() - clt(x).y_hat).norm() / clt(x).y_hat.norm()
    assert error < {torch.float64: 1e-5, torch.float32: 1e-6}.get(kind, 0.1)


def test_double_weights_come_back_to_the_last_bit(tmp_path: Path) -> None:
    clt = make(3).double()
    clt.b_enc.data += 1e-12
    clt.save_pretrained(tmp_path)
    loaded = CrossLayerTranscoder.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded.b_enc, clt.b_enc)


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "flaot32", torch.complex64])
def test_a_dtype_that_cannot_be_is_refused(folders: tuple[Path, Path], dtype: torch.dtype | str) -> None:
    with pytest.raises(UserError, match=r"dtype=.*choose one of float32, float64, bfloat16, float16"):
        CrossLayerTranscoder.from_pretrained(folders[0], dtype=dtype)


def test_unknown_arguments_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(TypeError, match="revison"):
        CrossLayerTranscoder.from_pretrained(folders[0], revison="v1")  # type: ignore[call-arg]


@pytest.mark.parametrize("option", [{"revision": "v1"}, {"token": "x"}, {"cache_dir": "y"}, {"force_download": True}])
def test_options_of_the_hub_are_refused_for_a_folder(folders: tuple[Path, Path], option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(option))}: of use for a Hugging Face repository alone"):
        CrossLayerTranscoder.from_pretrained(folders[0], **option)


def test_a_device_that_is_not_there(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="device='cuda:77'"):
        CrossLayerTranscoder.from_pretrained(folders[0], device="cuda:77")


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        make(0).save_pretrained(tmp_path / "ours")
        save_circuit_tracer(make(0, activation=ReLU()), tmp_path / "theirs", {})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}


def test_a_full_disk_is_one_message_and_leaves_the_old_files(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders[0], tmp_path / "mine")

    def full(*args: object) -> None:
        raise safetensors.SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be written: the disk is full"):
        make(1).save_pretrained(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written: the disk is full"):
        save_circuit_tracer(make(1, activation=ReLU()), tmp_path / "theirs", {})
    monkeypatch.undo()
    CrossLayerTranscoder.from_pretrained(tmp_path / "mine")
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    assert sorted(os.listdir(tmp_path / "mine")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, torch.zeros(2)])
def test_metadata_must_be_plain(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match="metadata must be plain"):
        make(0).save_pretrained(tmp_path / "out", {"bad": value})
    assert not (tmp_path / "out").exists()


def test_odd_metadata_survive(tmp_path: Path) -> None:
    about = {
        "loss": float("nan"),
        "pair": (1, 2.5),
        "1": {"deep": [True, None, "ß\n\u2028"]},
        "big": 2**70,
        "e": 1e-300,
    }
    make(0).save_pretrained(tmp_path, about)
    CrossLayerTranscoder.from_pretrained(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())["metadata"]
    assert found == about | {"loss": None, "pair": [1, 2.5]}


def test_an_export_for_circuit_tracer_is_replaced_whole(tmp_path: Path) -> None:
    save_circuit_tracer(make(0, activation=ReLU(), n_layers=5), tmp_path / "out", {})
    save_circuit_tracer(make(1, activation=ReLU()), tmp_path / "out", {})
    assert len(list((tmp_path / "out").glob("W_enc_*"))) == 3
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    assert subprocess.run(command, cwd=tmp_path / "out", capture_output=True, check=False).returncode == 0
    file = tmp_path / "out" / "W_dec_1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert subprocess.run(command, cwd=tmp_path / "out", capture_output=True, check=False).returncode == 1


def test_an_export_for_circuit_tracer_takes_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="already holds something else"):
        save_circuit_tracer(make(1, activation=ReLU()), tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]
