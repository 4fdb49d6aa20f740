"""Files of weights are read by what they are: OpenAI's own archive, and everything that only looks like weights."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.weights import read_weights
from clt_lightning.core.errors import UserError

from .archives import TEXT, VISION, ExactNode, openai_state, write_archive
from .tiny import tiny_config, write_tiny


def own_loader(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_clip.load_openai_model(str(path), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("openai") / "ViT-Tiny-8.pt", openai_state())


def test_openais_archive_gives_the_embeddings_of_open_clips_own_loader(archive: Path) -> None:
    clip, expected = FrozenCLIP("of-its-own", str(archive)), own_loader(archive)
    assert (clip.name, clip.quick_gelu, clip.n_layers, clip.d_model) == ("ViT-Tiny-8", True, 3, 128)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    texts = ["a cat", "two dogs on a roof"]
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(images, normalize=False), expected.encode_image(images))
        embedded = expected.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True)
    torch.testing.assert_close(clip.encode_text(texts), embedded)
    assert clip.mean == tuple(expected.visual.image_mean)


def test_an_archive_in_fp32_is_not_rounded(tmp_path: Path) -> None:
    state = openai_state(seed=2, half=False)
    clip = FrozenCLIP("of-its-own", str(write_archive(tmp_path / "fp32.pt", state)))
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("marks", [True, False])
def test_an_archive_for_a_name_of_open_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: bool) -> None:
    path = write_archive(tmp_path / "mine.pt", openai_state(), marks=marks)
    read = read_weights(path).state
    config = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
    (tmp_path / "Tiny-8.json").write_text(json.dumps(config))
    (tmp_path / "Tiny-8-quickgelu.json").write_text(json.dumps(config | {"quick_gelu": True}))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path)
    clip = FrozenCLIP("Tiny-8-quickgelu", str(path))
    assert torch.equal(clip.model.visual.proj, read["visual.proj"].float())
    with pytest.raises(
        UserError, match=r"mine\.pt.*QuickGELU, but 'Tiny-8' computes GELU.*use the name 'Tiny-8-quickg"
    ):
        FrozenCLIP("Tiny-8", str(path))
    # without one of open_clip's names the architecture is read from the shapes, and its name found by them
    assert FrozenCLIP("whatever", str(path)).name == "Tiny-8-quickgelu"


def test_the_archives_code_says_which_gelu(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "exact.pt", openai_state(), ExactNode)
    assert not FrozenCLIP("exact", str(path)).quick_gelu
    assert read_weights(path).quick_gelu is False


def test_a_config_that_contradicts_the_archives_code(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "mine.pt", openai_state())
    config = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": False}
    (tmp_path / "mine.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(UserError, match=r"trained with QuickGELU, but 'mine' computes GELU"):
        FrozenCLIP("of-its-own", str(path))
    (tmp_path / "mine.json").write_text(json.dumps({"model_cfg": config | {"quick_gelu": True}}))
    assert FrozenCLIP("of-its-own", str(path)).quick_gelu


def test_openais_marks_in_a_state_dict_say_quick_gelu(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, tiny_config(quick_gelu=False))
    state = FrozenCLIP("tiny", str(path)).model.state_dict()
    marked = dict(state, input_resolution=torch.tensor(32), context_length=torch.tensor(12), vocab_size=torch.tensor(9))
    torch.save(marked, tmp_path / "marked.pt")
    assert read_weights(tmp_path / "marked.pt").quick_gelu is True
    assert set(read_weights(tmp_path / "marked.pt").state) == set(state)


def test_an_archive_that_does_not_fit_the_name(archive: Path) -> None:
    with pytest.raises(UserError) as caught:
        FrozenCLIP("ViT-B-32-quickgelu", str(archive))
    text = str(caught.value)
    assert "do not fit the architecture 'ViT-B-32-quickgelu'" in text
    assert "(77, 64), expected (77, 512)" in text
    assert "3 blocks of width 128, patches of 8, images of 32" in text
    assert "any name that open_clip does not know" in text


@pytest.mark.slow
def test_a_whole_vit_b_32(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
    open_clip.convert_weights_to_fp16(model)
    path = write_archive(tmp_path / "ViT-B-32.pt", dict(model.state_dict()))
    clip, expected = FrozenCLIP("ViT-B-32-quickgelu", str(path)), own_loader(path)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(images, normalize=False), expected.encode_image(images))
    with pytest.raises(UserError, match="use the name 'ViT-B-32-quickgelu'"):
        FrozenCLIP("ViT-B-32", str(path))
    with pytest.raises(UserError, match="they were trained with: ViT-B-32 or ViT-B-32-quickgelu"):
        FrozenCLIP("ViT-B-16-quickgelu", str(path))


# -- nothing is run ----------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


def replaced(path: Path, target: Path, record: str, content: bytes) -> Path:
    """A copy of a zip with one record replaced."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = content if info.filename.endswith(record) else old.read(info.filename)
            new.writestr(zipfile.ZipInfo(info.filename), data, info.compress_type)
    return target


def test_no_pickle_is_executed(tmp_path: Path, archive: Path) -> None:
    mark = tmp_path / "ran"
    bad = Malicious(mark)
    torch.save({"state_dict": openai_state(), "more": bad}, tmp_path / "zip.pt")
    torch.save({"state_dict": {}, "more": bad}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(bad))
    (tmp_path / "two.pt").write_bytes(pickle.dumps(bad, protocol=2))
    replaced(archive, tmp_path / "script.pt", "/data.pkl", pickle.dumps(bad, protocol=2))
    replaced(archive, tmp_path / "constants.pt", "/constants.pkl", pickle.dumps(bad, protocol=2))
    for name in ("zip.pt", "old.pt", "plain.pkl", "two.pt", "script.pt"):
        for ending in (name, "renamed.safetensors"):
            (tmp_path / name).rename(tmp_path / ending)
            with pytest.raises(UserError, match=r"run|cannot be read"):
                FrozenCLIP("of-its-own" if name == "script.pt" else "ViT-B-32", str(tmp_path / ending))
            (tmp_path / ending).rename(tmp_path / name)
    FrozenCLIP("of-its-own", str(tmp_path / "constants.pt"))  # what is not needed is not read
    assert not mark.exists()


def test_setstate_of_an_archive_is_not_called(tmp_path: Path) -> None:
    """`torch.jit.load` runs it; it stands for whatever TorchScript can do, such as writing files."""

    class WithState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.zeros(3)

        @torch.jit.export
        def __getstate__(self) -> tuple[torch.Tensor, bool]:
            return self.weight, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
            self.weight = state[0]
            self.training = state[1]
            assert False, "this code ran"  # noqa: B011, PT015

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(WithState()).save(str(tmp_path / "state.pt"))
        with pytest.raises(torch.jit.Error, match="this code ran"):
            torch.jit.load(str(tmp_path / "state.pt"))
    with pytest.raises(UserError, match="holds no tensors"):
        read_weights(tmp_path / "state.pt")


# -- what is no weights ------------------------------------------------------------------------------------------------


def transformers_state() -> dict[str, torch.Tensor]:
    names = ("vision_model.embeddings.class_embedding", "text_model.final_layer_norm.bias", "visual_projection.weight")
    return {name: torch.zeros(4) for name in names}


def write_cut_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(3000)}, path)
    path.write_bytes(path.read_bytes()[:5000])


def write_flipped_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(3000)}, path)
    flip(path, 6000)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 605143884\n"),
        "git-lfs pointer to 605 MB.*git lfs pull",
    ),
    "html": (lambda path: path.write_text("<!DOCTYPE html><html>404"), "is a web page"),
    "json": (lambda path: path.write_text('{"model_cfg": {}}\n'), "is a text that begins with"),
    "zeros": (lambda path: path.write_bytes(bytes(10_000)), "zeros"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "gzip.*unpack"),
    "hdf5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "HDF5"),
    "npz": (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), r"\.npz"),
    "zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "x"), "zip archive of 1 files"),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "pickled module.*torch.nn.modules.linear.Linear"),
    "old module": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=False),
        "pickled module.*Linear",
    ),
    "numpy": (
        lambda path: torch.save({"state_dict": {"a": torch.zeros(2)}, "best": np.float64(0.5)}, path),
        r"numpy value.*multiarray\.scalar.*state_dict\(\)",
    ),
    "object": (lambda path: torch.save({"a": torch.zeros(2), "b": Path("x")}, path), "Python objects.*pathlib"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "pickle that torch.save did not write"),
    "protocol": (lambda path: torch.save({"a": torch.zeros(2)}, path, pickle_protocol=4), "pickle_protocol=4 or 5"),
    "sparse": (lambda path: torch.save({"visual.conv1.weight": torch.eye(3).to_sparse()}, path), "not a dense tensor"),
    "meta": (lambda path: torch.save({"visual.conv1.weight": torch.zeros(3, device="meta")}, path), "has no contents"),
    "number": (lambda path: torch.save(3, path), "holds a int, not a state dict"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "holds no tensors .*'epoch'"),
    "transformers": (lambda path: save_file(transformers_state(), path), "transformers' CLIPModel.*openai"),
    "timm": (lambda path: save_file({"patch_embed.proj.weight": torch.zeros(3)}, path), "timm"),
    "timm tower": (lambda path: save_file({"visual.trunk.norm.bias": torch.zeros(3)}, path), "do not fit"),
    "resnet": (lambda path: save_file({"visual.layer1.0.conv1.weight": torch.zeros(3)}, path), "ResNet"),
    "transcoder": (lambda path: save_file({"W_enc.0": torch.zeros(3)}, path), "a transcoder"),
    "other": (lambda path: save_file({"fc.weight": torch.zeros(3)}, path), "no layout.*fc.weight"),
    "cut safetensors": (
        lambda path: (save_file({"a": torch.zeros(300)}, path), path.write_bytes(path.read_bytes()[:500])),
        "safetensors file that is cut off",
    ),
    "cut zip": (write_cut_zip, "cut off or damaged"),
    "flipped zip": (write_flipped_zip, "record .*data/0 does not have its checksum"),
}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_is_no_weights_is_named(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    write, words = KINDS[kind]
    write(path)
    with pytest.raises(UserError, match=words) as caught:
        FrozenCLIP("ViT-B-32", str(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_damage_to_an_archive_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = {name: tensor[:64] if tensor.ndim else tensor for name, tensor in openai_state().items()}
    archive = write_archive(tmp_path / "small.pt", small)
    whole = archive.read_bytes()
    good = read_weights(archive).state
    refused = 0
    path = tmp_path / "damaged.pt"
    for _ in range(150):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        kind = rng.integers(3)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        else:
            data[at : at + 100] = bytes(rng.integers(0, 256, min(100, len(data) - at), dtype=np.uint8))
        path.write_bytes(data)
        try:
            found = read_weights(path).state
        except UserError:
            refused += 1
            continue
        # a byte that nothing reads: padding, code, dates
        assert all(torch.equal(found[name], good[name]) for name in good)
    assert refused > 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("visual.proj"), r"lacks visual\.proj"),
        (lambda s: s.update(extra=torch.zeros(1)), "it has also extra"),
        (lambda s: s.update({"visual.proj": torch.zeros(3, 3)}), r"visual\.proj is \(3, 3\), expected \(32, 24\)"),
        (lambda s: s["visual.proj"].fill_(float("nan")), r"visual\.proj holds NaN"),
        (lambda s: s.update({"visual.proj": torch.zeros(32, 24, dtype=torch.int8)}), r"quantised \(visual\.proj"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Any, words: str) -> None:
    path = write_tiny(tmp_path, tiny_config())
    state = dict(FrozenCLIP("tiny", str(path)).model.state_dict())
    change(state)
    save_file(state, path)
    with pytest.raises(UserError, match=words):
        FrozenCLIP("tiny", str(path))


@pytest.mark.parametrize("wrapped", ["state_dict", "model", None])
def test_usual_wrappings_are_taken_off(tmp_path: Path, wrapped: str | None) -> None:
    path = write_tiny(tmp_path, tiny_config())
    expected = FrozenCLIP("tiny", str(path)).model.state_dict()
    state = {f"module.{name}": tensor for name, tensor in expected.items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "open_clip_model.pt")
    found = FrozenCLIP("tiny", str(tmp_path / "open_clip_model.pt")).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_position_embedding_that_is_interpolated_is_said(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, tiny_config())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_config(image_size=48)}))
    with pytest.warns(UserWarning, match=r"visual\.positional_embedding.*17 positions.*37"):
        assert FrozenCLIP("tiny", str(path)).n_positions == 37


def test_a_buffer_that_the_model_makes_itself_may_be_in_the_file(tmp_path: Path) -> None:
    state = openai_state(half=False)
    state["attn_mask"] = torch.zeros(77, 77)
    clip = FrozenCLIP("of-its-own", str(write_archive(tmp_path / "mask.pt", state)))
    assert clip.model.attn_mask[0, 1] == float("-inf")
