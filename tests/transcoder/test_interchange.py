"""Files of other tools compute what the transcoder computes, read by formulas of theirs; and come back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import Sites
from clt_lightning.transcoder import AbsTopK, BatchTopK, CrossLayerTranscoder, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.activations import Activation
from clt_lightning.transcoder.files import FORMATS, export, read, what_maps
from tests.transcoder.conftest import MakeCLT

ABOUT = {"clip": {"name": "ViT-B-32-quickgelu"}}
THRESHOLDS = [ReLU(), JumpReLU(0.4), BatchTopK(5)]


def tokens(seed: int = 1) -> Tensor:
    return torch.randn(3, 30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(make_clt: MakeCLT, **options: Any) -> CrossLayerTranscoder:
    clt = make_clt(**options)
    clt(tokens(2))  # BatchTopK stores a threshold of other data
    return clt.eval()


def circuit_tracer_clt(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction as its CrossLayerTranscoder has them, its skip set by hand."""
    encoders = [load_file(folder / f"W_enc_{i}.safetensors") for i in range(len(x))]
    skips = load_file(folder / "W_skip.safetensors") if (folder / "W_skip.safetensors").exists() else {}
    codes = []
    y = torch.stack([part[f"b_dec_{i}"] for i, part in enumerate(encoders)])[:, None].repeat(1, x.shape[1], 1)
    for i, part in enumerate(encoders):
        pre = torch.einsum("bd,fd->bf", x[i], part[f"W_enc_{i}"]) + part[f"b_enc_{i}"]
        threshold = part.get(f"threshold_{i}")
        codes.append(torch.relu(pre) if threshold is None else pre * (pre > threshold))
        y[i:] += torch.einsum("bf,fld->lbd", codes[i], load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"])
        if skips:
            y[i] += x[i] @ skips[f"W_skip_{i}"]
    return torch.stack(codes), y


def circuit_tracer_set(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """As its TranscoderSet has them."""
    codes, y = [], []
    for i in range(len(x)):
        part = load_file(folder / f"layer_{i}.safetensors")
        pre = torch.nn.functional.linear(x[i], part["W_enc"], part["b_enc"])
        threshold = part.get("activation_function.threshold")
        codes.append(torch.relu(pre) if threshold is None else pre * (pre > threshold))
        y.append(codes[i] @ part["W_dec"] + part["b_dec"])
        if "W_skip" in part:
            y[i] = y[i] + x[i] @ part["W_skip"].T
    return torch.stack(codes), torch.stack(y)


def sae_lens(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """As its SAEs and transcoders have them."""
    codes, y = [], []
    for i in range(len(x)):
        config = json.loads((folder / f"layer_{i}" / "cfg.json").read_text())
        part = load_file(folder / f"layer_{i}" / "sae_weights.safetensors")
        assert config["apply_b_dec_to_input"] is False
        pre = x[i] @ part["W_enc"] + part["b_enc"]
        kind = config["architecture"]
        if "topk" in kind:
            chosen = torch.topk(pre.abs() if kind == "abstopk" else pre, config["k"], dim=-1).indices
            kept = pre if kind == "abstopk" else torch.relu(pre)
            codes.append(torch.zeros_like(pre).scatter(-1, chosen, kept.gather(-1, chosen)))
        else:
            codes.append(torch.relu(pre) * (pre > part.get("threshold", torch.zeros(()))))
        y.append(codes[i] @ part["W_dec"] + part["b_dec"])
        if "skip" in kind:
            y[i] = y[i] + x[i] @ part["W_skip"].T
    return torch.stack(codes), torch.stack(y)


def cases() -> list[Any]:
    """Everything that maps: format, topology, skip, activation, reader of the files, architecture of SAELens."""
    found: list[Any] = []
    for skip in (False, True):
        for a in THRESHOLDS:
            found.append(("circuit-tracer", "cross_layer", skip, a, circuit_tracer_clt, None))
            found.append(("circuit-tracer", "per_layer", skip, a, circuit_tracer_set, None))
            name = "transcoder" if isinstance(a, ReLU) else "jumprelu_transcoder"
            name = name.replace("transcoder", "skip_transcoder") if skip else name
            found.append(("sae-lens", "per_layer", skip, a, sae_lens, name))
    names = {"ReLU": "standard", "JumpReLU": "jumprelu", "BatchTopK": "jumprelu", "TopK": "topk", "AbsTopK": "abstopk"}
    for a in (*THRESHOLDS, TopK(4), AbsTopK(4)):
        found.append(("sae-lens", "sae", False, a, sae_lens, names[type(a).__name__]))
    return [
        pytest.param(*case, id=f"{case[0]}-{case[1]}{'-skip' * case[2]}-{type(case[3]).__name__}") for case in found
    ]


@pytest.mark.parametrize(("form", "topology", "skip", "activation", "reader", "architecture"), cases())
def test_what_maps_computes_the_same_and_comes_back(
    make_clt: MakeCLT,
    tmp_path: Path,
    form: str,
    topology: str,
    skip: bool,
    activation: Activation,
    reader: Any,
    architecture: str | None,
) -> None:
    clt, x = trained(make_clt, topology=topology, skip=skip, activation=activation), tokens()
    assert FORMATS[form].refusal(clt) is None
    folder = export(clt, tmp_path / "out", form, ABOUT)
    codes, y = reader(folder, x)
    expected = clt.encode(x).dense().detach()
    assert 0 < float((expected != 0).double().mean()) < 1
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(y, clt(x).y_hat.detach(), rtol=0, atol=1e-12)
    if architecture is not None:
        config = json.loads((folder / "layer_2" / "cfg.json").read_text())
        assert config["architecture"] == architecture
        assert config["metadata"]["model_name"] == "ViT-B-32-quickgelu"
        assert config["metadata"]["hook_name"] == f"blocks.2.mlp.hook_{'out' if topology == 'sae' else 'in'}"

    again = CrossLayerTranscoder.from_pretrained(folder)
    assert (again.topology, again.skip, again.n_layers) == (topology, skip, 3)
    single = clt.float()
    torch.testing.assert_close(again(x.float()).y_hat, single(x.float()).y_hat, rtol=0, atol=2e-5)
    again.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(
        CrossLayerTranscoder.from_pretrained(tmp_path / "ours").encode(x.float()).dense(),
        again.encode(x.float()).dense(),
    )
    check = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    assert check.returncode == 0


class Mine(ReLU):
    """A function of somebody's own, which other tools would take for ReLU."""


@pytest.mark.parametrize(
    ("form", "options", "reason"),
    [
        ("circuit-tracer", {"activation": TopK(3)}, "this transcoder has TopK"),
        ("circuit-tracer", {"activation": AbsTopK(3), "topology": "per_layer"}, "this transcoder has AbsTopK"),
        ("circuit-tracer", {"activation": Mine()}, "this transcoder has Mine"),
        ("circuit-tracer", {"activation": ReLU(), "topology": "sae"}, "topology sae"),
        (
            "circuit-tracer",
            {"activation": ReLU(), "topology": "per_layer", "sites": Sites("resid_mid", "mlp_out")},
            "reads resid_mid and rebuilds mlp_out",
        ),
        ("circuit-tracer", {"activation": ReLU(), "sites": Sites(layers=[1, 2, 3])}, "stands at blocks"),
        ("circuit-tracer", {"activation": ReLU(), "topology": "per_layer", "d_out": 4}, "reads 8 and writes 4"),
        ("sae-lens", {"activation": ReLU(), "topology": "sae", "normalize": "token"}, "normalisation of tokens"),
        ("sae-lens", {"activation": ReLU()}, "several layers"),
        ("sae-lens", {"activation": TopK(3), "topology": "per_layer"}, "transcoders know ReLU, JumpReLU, BatchTopK"),
        ("sae-lens", {"activation": Mine(), "topology": "sae"}, "this one has Mine"),
    ],
)
def test_what_does_not_map_is_refused_with_the_reason(
    make_clt: MakeCLT, tmp_path: Path, form: str, options: dict[str, Any], reason: str
) -> None:
    clt = make_clt(**options)
    with pytest.raises(UserError, match=reason):
        export(clt, tmp_path / "out", form, ABOUT)
    assert not (tmp_path / "out").exists()
    assert reason in what_maps(clt)  # what fit says in its first lines


def test_what_maps_is_said_in_one_line(make_clt: MakeCLT) -> None:
    line = what_maps(make_clt(activation=BatchTopK(4)))
    assert "circuit-tracer: yes (export --format circuit-tracer)" in line
    assert "SAELens: no, it has no form for features that write to several layers" in line
    assert "\n" not in line


def test_the_names_that_its_loaders_ask_for(make_clt: MakeCLT, tmp_path: Path) -> None:
    clt = trained(make_clt, activation=BatchTopK(5))
    config = yaml.safe_load((export(clt, tmp_path / "a", "circuit-tracer", ABOUT) / "config.yaml").read_text())
    assert config == {
        "model_name": "ViT-B-32-quickgelu",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "scan": "clt-lightning/ViT-B-32-quickgelu",
    }
    clt = trained(make_clt, activation=ReLU(), topology="per_layer")
    folder = export(clt, tmp_path / "b", "circuit-tracer", ABOUT, torch.bfloat16, "me/mine")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set"
    assert config["scan"] == "me/mine"
    assert config["transcoders"] == [f"hf://me/mine/layer_{i}.safetensors" for i in range(3)]
    assert load_file(folder / "layer_1.safetensors")["W_enc"].dtype == torch.bfloat16
    clt = trained(make_clt, activation=ReLU(), topology="sae")
    folder = export(clt, tmp_path / "c", "sae-lens", ABOUT, torch.bfloat16)
    assert json.loads((folder / "layer_0" / "cfg.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("form", ["circuit-tracer", "sae-lens"])
def test_a_stale_folder_is_replaced_whole_or_refused(make_clt: MakeCLT, tmp_path: Path, form: str) -> None:
    """Their loaders count files: a layer left over from a deeper export would be read."""
    deep, flat = (make_clt(activation=ReLU(), topology="per_layer", n_layers=n) for n in (4, 2))
    export(deep, tmp_path / "out", form, ABOUT)
    export(flat, tmp_path / "out", form, ABOUT)
    assert len(list((tmp_path / "out").glob("layer_*"))) == 2
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="already holds something else"):
        export(flat, tmp_path / "out", form, ABOUT)
    assert (tmp_path / "out" / "mine.txt").exists()


# -- what others have written ------------------------------------------------------------------------------------------


def write_sae(folder: Path, config: dict[str, Any], seed: int = 0, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (8, 20), "b_enc": (20,), "W_dec": (20, 8), "b_dec": (8,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | more
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 8, "d_sae": 20, "architecture": "standard"} | config))
    return tensors


def test_the_defaults_of_saelens(tmp_path: Path) -> None:
    """b_dec is taken off the input where nothing is said; pre-activations are weighted by decoder norms where asked."""
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(5))
    part = write_sae(tmp_path / "a", {})
    clt = CrossLayerTranscoder.from_pretrained(tmp_path / "a")
    codes = torch.relu((x - part["b_dec"]) @ part["W_enc"] + part["b_enc"])
    assert (clt.topology, clt.n_layers) == ("sae", 1)
    torch.testing.assert_close(clt.encode(x[None]).dense()[0], codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clt(x[None]).y_hat[0], codes @ part["W_dec"] + part["b_dec"], atol=1e-4, rtol=1e-5)

    topk = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}
    part = write_sae(tmp_path / "b" / "layer_0", topk)
    write_sae(tmp_path / "b" / "layer_1", topk, seed=1)
    clt = CrossLayerTranscoder.from_pretrained(tmp_path / "b")
    norms = part["W_dec"].norm(dim=1)
    pre = (x @ part["W_enc"] + part["b_enc"]) * norms
    kept = torch.relu(torch.where(pre >= pre.topk(3).values[:, -1:], pre, 0.0))
    torch.testing.assert_close(clt.encode(torch.stack([x, x])).dense()[0], kept, atol=1e-5, rtol=1e-5)
    y = (kept / norms) @ part["W_dec"] + part["b_dec"]
    torch.testing.assert_close(clt(torch.stack([x, x])).y_hat[0], y, atol=1e-4, rtol=1e-5)


def test_sites_come_from_hook_names_and_go_back(tmp_path: Path) -> None:
    """A residual SAE at blocks 3 and 11, and a transcoder between other sites and widths."""
    for number, block in enumerate((3, 11)):
        place = tmp_path / "a" / f"layer_{number}"
        write_sae(place, {"metadata": {"hook_name": f"blocks.{block}.hook_resid_post"}}, seed=number)
    clt = CrossLayerTranscoder.from_pretrained(tmp_path / "a")
    assert clt.sites == Sites("resid_post", "resid_post", [3, 11])
    folder = export(clt, tmp_path / "b", "sae-lens", ABOUT)
    config = json.loads((folder / "layer_1" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.11.hook_resid_post"
    assert CrossLayerTranscoder.from_pretrained(folder).sites == clt.sites

    names = {"hook_name": "blocks.2.hook_resid_mid", "hook_name_out": "blocks.2.mlp.hook_out"}
    more = {"architecture": "transcoder", "d_out": 5, "metadata": names}
    generator = torch.Generator().manual_seed(0)
    wide: dict[str, Any] = {
        "W_dec": torch.randn(20, 5, generator=generator),
        "b_dec": torch.randn(5, generator=generator),
    }
    part = write_sae(tmp_path / "c", more, **wide)
    clt = CrossLayerTranscoder.from_pretrained(tmp_path / "c")
    assert (clt.sites, clt.d_out) == (Sites("resid_mid", "mlp_out", [2]), 5)
    x = torch.randn(30, 8, generator=generator)
    y = torch.relu(x @ part["W_enc"] + part["b_enc"]) @ part["W_dec"] + part["b_dec"]
    torch.testing.assert_close(clt(x[None]).y_hat[0], y, atol=1e-4, rtol=1e-5)
    again = CrossLayerTranscoder.from_pretrained(export(clt, tmp_path / "d", "sae-lens", ABOUT))
    torch.testing.assert_close(again(x[None]).y_hat, clt(x[None]).y_hat)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "gated"}, "architecture 'gated' has no counterpart"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"architecture": "topk"}, "needs a whole number k"),
        ({"architecture": "jumprelu"}, "no tensor threshold"),
    ],
)
def test_what_has_no_counterpart_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_sae(tmp_path, config)
    with pytest.raises(UserError, match=message):
        CrossLayerTranscoder.from_pretrained(tmp_path)


def test_missing_layers_and_files_are_named(make_clt: MakeCLT, tmp_path: Path) -> None:
    clt = make_clt(activation=ReLU())
    folder = export(clt, tmp_path / "out", "circuit-tracer", ABOUT)
    (folder / "W_dec_1.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no W_dec_1\.safetensors"):
        read(folder)
    (folder / "W_enc_1.safetensors").unlink()
    with pytest.raises(UserError, match=r"layer 1 is missing \(there are 0, 2\)"):
        read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        CrossLayerTranscoder.from_pretrained(tmp_path / "empty")


def test_other_sites_are_warned_of(make_clt: MakeCLT, tmp_path: Path) -> None:
    folder = export(make_clt(activation=ReLU()), tmp_path / "out", "circuit-tracer", ABOUT)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("mlp.hook_in", "hook_resid_mid"))
    with pytest.warns(UserWarning, match="feature_input_hook is hook_resid_mid"):
        CrossLayerTranscoder.from_pretrained(folder)


@pytest.mark.parametrize("whole_checkpoint", [False, True])
@pytest.mark.parametrize("transcoder", [False, True])
def test_prisma(tmp_path: Path, transcoder: bool, whole_checkpoint: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    part = {"W_enc": drawn(8, 20), "b_enc": drawn(20), "W_dec": drawn(20, 8), "b_dec": drawn(8)}
    if transcoder:
        part |= {"b_dec_out": drawn(8), "W_skip": drawn(8, 8)}
    config = {"d_in": 8, "d_sae": 20, "hook_point": "blocks.4.hook_resid_post", "activation_fn_str": "topk"}
    config |= {"activation_fn_kwargs": {"k": 3}, "architecture": "standard"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"state_dict": part} if whole_checkpoint else part, tmp_path / "weights.pt")
    clt = CrossLayerTranscoder.from_pretrained(tmp_path)
    assert clt.topology == ("per_layer" if transcoder else "sae")
    assert transcoder or clt.sites == Sites("resid_post", "resid_post", [4])
    x = drawn(30, 8)
    pre = (x - part["b_dec"]) @ part["W_enc"] + part["b_enc"]
    codes = torch.relu(torch.where(pre >= pre.topk(3).values[:, -1:], pre, 0.0))
    torch.testing.assert_close(clt.encode(x[None]).dense()[0], codes, atol=1e-5, rtol=1e-5)
    y = codes @ part["W_dec"] + (part["b_dec_out"] + x @ part["W_skip"].T if transcoder else part["b_dec"])
    torch.testing.assert_close(clt(x[None]).y_hat[0], y, atol=1e-4, rtol=1e-5)

    (tmp_path / "config.json").write_text(json.dumps(config | {"normalize_activations": "layer_norm"}))
    with pytest.raises(UserError, match="normalize_activations is 'layer_norm'"):
        CrossLayerTranscoder.from_pretrained(tmp_path)


def test_weights_that_want_to_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"d_in": 8, "hook_point": "x"}))
    torch.save({"cfg": Path("x"), "state_dict": {}}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="without running code of it"):
        CrossLayerTranscoder.from_pretrained(tmp_path)


def test_the_command_converts(make_clt: MakeCLT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clt = trained(make_clt, activation=BatchTopK(5), topology="per_layer", dtype=torch.float32)
    clt.save_pretrained(tmp_path / "ours", ABOUT)
    words = ["export", "--transcoder", str(tmp_path / "ours"), "--output"]
    main([*words, str(tmp_path / "theirs"), "--format", "sae-lens"])
    said = capsys.readouterr().out
    assert "note: load each layer with SAE.load_from_disk" in said
    assert "note: BatchTopK becomes one threshold per layer" in said
    main(["export", "--transcoder", str(tmp_path / "theirs"), "--output", str(tmp_path / "again")])
    x = tokens().float()
    again = CrossLayerTranscoder.from_pretrained(tmp_path / "again")
    assert torch.equal(again.encode(x).dense(), clt.encode(x).dense())
