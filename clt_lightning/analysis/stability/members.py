"""The runs that are compared: their transcoders, their features' rates, and what their trainings differ in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clt_lightning.analysis.features import load_features
from clt_lightning.analysis.run import Run
from clt_lightning.core.config_file import read_config
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.core.values import flat
from clt_lightning.runs.folder import RunFolder, find_run
from clt_lightning.runs.together import settle_to_read
from clt_lightning.transcoder import CrossLayerTranscoder

#: What trainings can differ in beside their settings, by the keys that decide it; the first that is set counts
SEEDS = {
    "initial weights": ("model.seed", "seed_everything"),
    "data order": ("data.init_args.seed", "seed_everything"),
}
SETTINGS, IMAGES = "settings", "images"
#: Keys that change nothing in what is learned: places, machines, what is measured and said
_APART = (
    *("model.parallel.", "model.transcoder.backend", "model.tokens.max_tokens_per_chunk"),
    *(f"data.init_args.{key}" for key in ("root", "num_workers", "prefetch", "start_method", "verify", "allow_pipe")),
    *(f"data.init_args.{key}" for key in ("eval_batch_size", "n_val", "n_test", "val", "test", "val_samples")),
    *("data.init_args.world", "data.init_args.shard_counts", "data.init_args.max_pixels"),
)
#: Where the arguments of one of several sets stand (`data.Studies`)
_OF_A_SET = re.compile(r"^data\.init_args\.sets\.[^.]+\.init_args\.")
_OF_TRAINER = (
    *("max_epochs", "max_steps", "max_time", "precision", "limit_train_batches", "overfit_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)


@dataclass(frozen=True)
class Member:
    """One of the transcoders that are compared.

    Attributes:
        title: name and version of the run, or the folder's name.
        transcoder: it.
        rates: `(L, F)` share of tokens on which each feature is active; None where that was not collected.
        settings: keys of the config that decide what is learned, without the seeds; None where there is no config.
        seeds: by what they decide (`initial weights`, `data order`, `images`); empty without a config.
        backbone: name, pretrained and weights_sha256; empty where nobody wrote them down.
        power: `(L, F)` about the mean square of each feature's code over tokens; None where that was not collected.
    """

    title: str
    transcoder: CrossLayerTranscoder = field(repr=False)
    rates: np.ndarray | None = field(default=None, repr=False)
    settings: dict[str, str] | None = field(default=None, repr=False)
    seeds: dict[str, str] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict, repr=False)
    power: np.ndarray | None = field(default=None, repr=False)

    @property
    def alive(self) -> np.ndarray | None:
        """`(L, F)` bool: features that fired; None where that is not known."""
        return None if self.rates is None else self.rates > 0


def member(run: str | Path | Run | CrossLayerTranscoder, number: int = 0, *, trust: bool = False) -> Member:
    """A run's folder, an opened run, a transcoder, or a folder of a transcoder, ready to be compared.

    Args:
        run: which.
        number: names a transcoder that has no other name.
        trust: whether config.json may name an activation of another package, whose code is then run.

    Raises:
        UserError: there is no such folder, no transcoder in it, or features of another size.
    """
    if isinstance(run, CrossLayerTranscoder):
        return Member(f"transcoder {number}", run)
    if isinstance(run, Run):
        return of_folder(run.folder, run.transcoder, trust=trust)
    folder = Path(run)
    above = folder.resolve().parent
    if folder.name == "transcoder" and (above / "config.yaml").is_file():
        folder = above  # the run that it is of knows its rates and settings
    is_run = any((folder / name).exists() for name in ("config.yaml", "results.json", "transcoder"))
    if (folder / "config.json").is_file() and not is_run:
        return Member(folder.resolve().name, CrossLayerTranscoder.from_pretrained(folder, trust=trust))
    return of_folder(find_run(folder, "compare").path, trust=trust)


def of_folder(folder: Path, clt: CrossLayerTranscoder | None = None, *, trust: bool = False) -> Member:
    """A run's folder.

    Raises:
        UserError: no transcoder in it, or features of another size.
    """
    run = RunFolder(folder)
    settle_to_read(folder)
    if clt is None:
        if not run.transcoder.is_dir():
            raise UserError(f"{run.shown} has no transcoder/ folder: its weights are not there to compare")
        clt = CrossLayerTranscoder.from_pretrained(run.transcoder, trust=trust)
    rates = power = None
    if (folder / "features" / "features.json").is_file():
        stats = load_features(folder).stats
        rates = checked_rates(stats["frequency"], clt, folder)
        power = rates * stats["mean_code"].astype(np.float64) ** 2
    settings, seeds = None, {}
    if run.config.is_file():
        content = read_config(run.config).content
        settings, seeds = training_settings(content), training_seeds(content)
    record = read_json(run.results).get("run") or {} if run.results.is_file() else {}
    return Member(run.title, clt, rates, settings, seeds, record.get("clip") or {}, power)


def checked_rates(rates: np.ndarray, clt: CrossLayerTranscoder, folder: Path) -> np.ndarray:
    """The rates.

    Raises:
        UserError: they are of another number of features than the transcoder's.
    """
    if rates.shape != (clt.n_layers, clt.n_features):
        raise UserError(
            f"{folder}: features/ has {rates.shape[0]} x {rates.shape[1]} features, transcoder/ "
            f"{clt.n_layers} x {clt.n_features}: run `python -m clt_lightning test --run {folder}` again"
        )
    return rates


def training_settings(config: dict[str, Any]) -> dict[str, str]:
    """What decides what is learned, as text by key, without the seeds."""
    rows = dict(flat({key: config.get(key) for key in ("model", "data")}))
    rows |= dict(flat({key: (config.get("trainer") or {}).get(key) for key in _OF_TRAINER}, "trainer"))
    seeds = {key for keys in SEEDS.values() for key in keys}

    def alone(key: str) -> str:
        """The key as it would be if the set were the only one."""
        return _OF_A_SET.sub("data.init_args.", key)

    return {key: text for key, text in rows.items() if alone(key) not in seeds and not alone(key).startswith(_APART)}


def training_seeds(config: dict[str, Any]) -> dict[str, str]:
    """The seeds, by what they decide."""
    rows = dict(flat(config))
    found = {name: next((rows[key] for key in keys if key in rows), "") for name, keys in SEEDS.items()}
    order, images = [found["data order"]], []
    for key in rows:
        if not key.endswith(".class_path") or not key.startswith("data."):
            continue
        place = key.removesuffix("class_path") + "init_args."
        if _OF_A_SET.match(place) and f"{place}seed" in rows:
            order.append(rows[f"{place}seed"])
        if rows[key].endswith("Demo"):  # renders are drawn anew with every seed of theirs
            images.append(rows.get(f"{place}world", rows.get(f"{place}seed", found["data order"])))
    found["data order"] = " ".join(order)
    if images:
        found[IMAGES] = " ".join(images)
    return found


def differences(a: Member, b: Member) -> list[str] | None:
    """What two trainings differ in: `settings`, `images`, `initial weights`, `data order`; None where nobody knows."""
    if a.settings is None or b.settings is None:
        return None
    found = [SETTINGS] if a.settings != b.settings else []
    names = [IMAGES, *SEEDS]
    return found + [name for name in names if a.seeds.get(name) != b.seeds.get(name)]


def differing_keys(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Settings and seeds that are not the same in all: `key`, and `values` as text, None where a run has none."""
    tables = [(m.settings or {}) | {f"seed of {name}": seed for name, seed in m.seeds.items()} for m in members]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [{"key": key, "values": [table.get(key) for table in tables]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def why_apart(titles: Sequence[str], backbones: Sequence[dict[str, Any]]) -> str:
    """Why features of two runs have nothing in common; empty where nothing speaks against comparing them.

    Args:
        titles: of the two.
        backbones: their `Member.backbone`.
    """
    hashes = [backbone.get("weights_sha256") for backbone in backbones]
    if None in hashes or hashes[0] == hashes[1]:
        return ""
    told = " and ".join(
        f"{title} on {backbone.get('name') or 'a backbone'} ({backbone.get('pretrained') or 'random weights'})"
        for title, backbone in zip(titles, backbones)
    )
    return (
        f"The runs are of different backbones ({told}): their features read and write different spaces, and are "
        "not matched."
    )
