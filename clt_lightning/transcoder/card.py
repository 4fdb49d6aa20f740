"""The card of a transcoder on the Hugging Face Hub: what it is, how it was made, how well it does, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.core.people import count

_TAGS = ("torch", "clip", "vision", "interpretability", "sparse-autoencoder")
_KINDS = {
    "cross_layer": "a cross-layer transcoder: a feature reads one layer and writes to that and all later ones",
    "per_layer": "per-layer transcoders: a feature reads one layer's input and writes to its output",
    "sae": "sparse autoencoders: a feature reads and writes the same site",
}
_CITE = """```bibtex
@inproceedings{chatzoudis2026clt,
  title     = {Can Cross-Layer Transcoders Replace Vision Transformer Activations?
               An Interpretable Perspective on Vision},
  author    = {Chatzoudis and others},
  booktitle = {CVPR Workshop on Explainable AI for Computer Vision (XAI4CV)},
  year      = {2026},
  note      = {arXiv:2604.13304}
}
```"""


_CITE_UNITS = """```bibtex
@article{he2025lorsa,
  title   = {Towards Understanding the Nature of Attention with Low-Rank Sparse Decomposition},
  author  = {He and others},
  journal = {arXiv:2504.20938},
  year    = {2025}
}
```"""


@dataclass(frozen=True)
class Upload:
    """What is said of an upload, whatever is uploaded.

    Attributes:
        place: `ORG/NAME`, or `ORG/NAME/SUBFOLDER`.
        metadata: `{"clip": ..., "step": ...}` as beside the weights.
        results: a run's results.json.
        licence: of the weights, as the hub names it; None: not stated.
        revision: branch or tag, for the snippet that loads it.
    """

    place: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    revision: str | None = None

    @property
    def run(self) -> Mapping[str, Any]:
        return self.results.get("run") or {}

    @property
    def clip(self) -> Mapping[str, Any]:
        return self.metadata.get("clip") or self.run.get("clip") or {}

    def rows(self) -> dict[str, str]:
        """How it was made."""
        licence = self.licence or "not stated by who uploaded it"
        return {"backbone": _backbone(self.clip), **_training(self.run, self.metadata), "licence": licence}


def read_results(results: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """A run's record: from its folder, its results.json, or as it is; empty for None.

    Raises:
        UserError: no such file, or no table in it.
    """
    if results is None or isinstance(results, Mapping):
        return dict(results or {})
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"results={str(results)!r}: there is no {path}")
    return read_json(path)


def card(config: Mapping[str, Any], parameters: int, upload: Upload) -> str:
    """README.md of a transcoder's repository.

    Args:
        config: `CrossLayerTranscoder.config()`.
        parameters: how many.
        upload: what is said of it.
    """
    rows = {
        "form": _KINDS[config["topology"]],
        "size": _size(config, "features", parameters),
        "activation": _activation(config),
        **_sites(config),
        "linear skip": "yes: it carries a part of the output that no feature names" if config["skip"] else "no",
        **upload.rows(),
    }
    tag = config["topology"].replace("_", "-") + "-transcoder"
    return _page(upload, tag, rows, _measured(upload.results), _snippet(upload), _CITE)


def units_card(config: Mapping[str, Any], parameters: int, upload: Upload) -> str:
    """The same of sparse attention; `config` is `SparseAttention.config()`."""
    own = config["d_qk"] is not None
    rows = {
        "form": "sparse attention: units of rank one in the place of every attention layer",
        "size": _size(config, "units", parameters),
        "activation": _activation(config),
        "patterns": f"{config['n_heads']} "
        + (f"of their own, d_qk {config['d_qk']}" if own else "of the model's heads"),
        **upload.rows(),
    }
    measured = _measured_units(upload.results)
    return _page(upload, "sparse-attention", rows, measured, _units_snippet(upload), _CITE_UNITS)


def _size(config: Mapping[str, Any], units: str, parameters: int) -> str:
    return (
        f"{config['n_layers']} layers x {config['n_features']:,} {units} of width {config['d_model']}, "
        f"{count(parameters)} parameters"
    )


def _page(upload: Upload, tag: str, rows: Mapping[str, str], measured: str, snippet: str, cite: str) -> str:
    licence = upload.licence
    front = ["---", "library_name: clt-lightning", *([f"license: {licence}"] if licence else []), "tags:"]
    front += [f"- {name}" for name in (*_TAGS, tag)]
    parts = [
        "\n".join([*front, "---"]),
        f"# {upload.place}",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]),
        "## Measured",
        measured,
        "## Load it",
        snippet,
        "## Cite",
        cite,
    ]
    return "\n\n".join(parts) + "\n"


def _activation(config: Mapping[str, Any]) -> str:
    activation = config["activation"]
    arguments = ", ".join(f"{key} {value}" for key, value in activation["init_args"].items())
    return str(activation["class_path"]) + (f" ({arguments})" if arguments else "")


def _sites(config: Mapping[str, Any]) -> dict[str, str]:
    """Where it stands, unless at the MLPs of all layers."""
    sites = config.get("sites") or {}
    usual = ("mlp_out", "mlp_out") if config["topology"] == "sae" else ("mlp_in", "mlp_out")
    if (sites.get("read"), sites.get("write")) in (usual, (None, None)) and sites.get("layers") is None:
        return {}
    where = "all blocks" if sites.get("layers") is None else f"blocks {', '.join(map(str, sites['layers']))}"
    return {"sites": f"reads {sites.get('read')}, rebuilds {sites.get('write')}, {where}"}


def _backbone(clip: Mapping[str, Any]) -> str:
    if not clip:
        return "not recorded"
    words = [f"{clip.get('name')} ({clip.get('pretrained') or 'random weights'}), frozen"]
    if clip.get("weights_sha256"):
        words.append(f"SHA-256 of its weights `{str(clip['weights_sha256'])[:16]}…`")
    return ", ".join(words)


def _training(run: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    description = (run.get("data") or {}).get("description") or {}
    train = (description.get("splits") or {}).get("train") or {}
    if description.get("set"):
        images = f", {train['samples']:,} images" if train.get("samples") else ""
        rows["trained on"] = f"{description['set']}{images}"
    step = run.get("step") or metadata.get("step")
    if step:
        rows["steps"] = f"{step:,}" + ("" if run.get("seed") is None else f", seed {run['seed']}")
    if run.get("versions"):
        wanted = ("clt-lightning", "torch", "lightning", "open_clip_torch")
        rows["made with"] = ", ".join(f"{name} {run['versions'][name]}" for name in wanted if run["versions"].get(name))
    return rows


def _measured(results: Mapping[str, Any]) -> str:
    evaluations = results.get("evaluation") or {}
    if evaluations:
        split = "test" if "test" in evaluations else next(iter(evaluations))
        return _evaluated(split, evaluations[split])
    values = ((results.get("metrics") or {}).get("val") or {}).get("values") or {}
    if not values:
        return "Nothing was recorded: `python -m clt_lightning test --run RUN` measures it, and the card then says it."
    rows = [
        ("FVU, mean over layers, all tokens", _number(values.get("fvu/all"))),
        ("L0", _number(values.get("l0/all"), 1)),
    ]
    rows.append(("features that never fired", _percent(values.get("dead/all"))))
    rows.append(("features' share of the centred reconstruction", _percent(values.get("share/features"))))
    rows.append(("zero-shot top-1, original", _percent(values.get("zero_shot/original"))))
    for name, value in values.items():
        if name.startswith("zero_shot/replaced/"):
            window, tokens = name.split("/")[2:]
            rows.append((f"zero-shot top-1, MLPs {window} replaced at {tokens} tokens", _percent(value)))
    return _table("validation split, without intervals", rows)


def _measured_units(results: Mapping[str, Any]) -> str:
    """Of sparse attention, where it was evaluated with the run that trained it."""
    for split, found in sorted((results.get("evaluation") or {}).items(), key=lambda item: item[0] != "test"):
        if not found.get("attention"):
            continue
        tables = found["attention"]
        rows = [
            ("FVU of attn_out, mean over layers", _number(tables["fvu"]["all"]["mean"])),
            ("L0", _number(tables["l0"]["all"]["mean"], 1)),
            ("units that never fired", _percent(tables["dead"]["all"]["mean"])),
        ]
        names = {"attention": "every attention", "with_attention": "every MLP and every attention"}
        for arm in (found.get("zero_shot") or {}).get("arms", []):
            if arm["kind"] in names:
                rows.append((f"points lost, {names[arm['kind']]} replaced", _interval(arm["drop"], unit="")))
        return _table(f"{split} split, {found.get('images', 0):,} images; 95 % intervals over images", rows)
    return "Nothing was recorded: `python -m clt_lightning test --run RUN` measures it, and the card then says it."


def _evaluated(split: str, found: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    reconstruction = found.get("reconstruction") or {}
    for name in found.get("token_sets") or ["all"]:

        def mean(kind: str, name: str = name) -> Any:
            return ((reconstruction.get(kind) or {}).get(name) or {}).get("mean")

        shares = ((found.get("shares") or {}).get("features") or {}).get(name) or {}
        rows += [
            (f"FVU, mean over layers, {name} tokens", _number(mean("fvu"))),
            (f"L0, {name} tokens", _number(mean("l0"), 1)),
            (f"features that never fired, {name} tokens", _percent(mean("dead"))),
            (f"features' share of the centred reconstruction, {name} tokens", _percent(shares.get("mean"))),
        ]
    for arm in (found.get("zero_shot") or {}).get("arms", []):
        if arm["kind"] == "original":
            rows.append(("zero-shot top-1, original", _interval(arm["top1"])))
        elif arm["kind"] == "replaced" and arm["tokens"] == "all":
            window = f"MLPs {arm['first']}-{arm['last']} replaced at all tokens"
            rows.append((f"zero-shot top-1, {window}", _interval(arm["top1"])))
            rows.append((f"points lost, {window}", _interval(arm["drop"], unit="")))
        elif arm["kind"] == "with_attention":
            rows.append(
                ("points lost, sparse attention in every attention's place too", _interval(arm["drop"], unit=""))
            )
    images = f"{found.get('images', 0):,} images"
    return _table(f"{split} split, {images}; 95 % intervals over images", rows)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _number(value: Any, digits: int = 4) -> str:
    return "not measured" if not isinstance(value, int | float) else f"{value:.{digits}f}"


def _percent(value: Any) -> str:
    return "not measured" if not isinstance(value, int | float) else f"{100 * value:.1f} %"


def _interval(interval: Mapping[str, Any], unit: str = " %") -> str:
    value, low, high = (interval.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "not measured"
    text = f"{100 * value:.2f}{unit}"
    return text if low is None or high is None else f"{text} ({100 * low:.2f} to {100 * high:.2f})"


def _made(clip: Mapping[str, Any]) -> str:
    """What makes the backbone in Python."""
    pretrained = clip.get("pretrained")
    backbone = '"demo"' if pretrained == "demo" else repr(clip.get("name") or "ViT-B-32-quickgelu").replace("'", '"')
    weights = "" if pretrained == "demo" else f', pretrained="{pretrained}"' if pretrained else ""
    return f"cl.FrozenCLIP(pretrained={backbone})" if pretrained == "demo" else f"cl.FrozenCLIP({backbone}{weights})"


def _units_snippet(upload: Upload) -> str:
    at = f', revision="{upload.revision}"' if upload.revision else ""
    return f"""```python
import clt_lightning as cl          # pip install clt-lightning

clip = {_made(upload.clip)}
units = cl.SparseAttention.from_pretrained("{upload.place}"{at})
with cl.replaced(clip, None, attention=units) as trace:     # units in the place of every attention
    embeddings = clip.encode_image(images)                  # preprocessed (n, 3, size, size)
trace.attention[0].dense()                                  # codes of block 0, (1, images x positions, units)
```"""


def _snippet(upload: Upload) -> str:
    at = f', revision="{upload.revision}"' if upload.revision else ""
    return f"""```python
import clt_lightning as cl          # pip install clt-lightning

clip = {_made(upload.clip)}
clt = cl.CrossLayerTranscoder.from_pretrained("{upload.place}"{at})
acts = clip.capture(images)         # preprocessed (n, 3, size, size), a PIL image, or a list of them
codes = clt.encode(acts.x)          # sparse; codes.dense() is (layers, tokens, features)
with cl.replaced(clip, clt):        # the transcoder in the place of every MLP
    embeddings = clip.encode_image(images)
```"""
