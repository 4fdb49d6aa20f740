"""What a run's folder holds for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.analysis.features import Features, load_features
from clt_lightning.analysis.results import load_evaluation, load_step
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.report.notes import RunId
from clt_lightning.runs.folder import RunFolder, find_run
from clt_lightning.runs.together import settle_to_read


@dataclass(frozen=True)
class Source:
    """What a run has; parts that it has not are None.

    Attributes:
        run: the run's folder.
        split: the split that is shown.
        record: the training's record; where the folder holds an evaluation alone, that of the evaluation.
        evaluation: `evaluation.<split>` of results.json.
        features: what every feature responds to.
        retrieval: sparse codes of every image.
        notes: what is missing, in words for the summary page.
    """

    run: Path
    split: str
    record: dict[str, Any]
    evaluation: dict[str, Any] | None
    features: Features | None
    retrieval: Retrieval | None
    notes: list[str]

    @property
    def title(self) -> str:
        """Name and version of the run."""
        return RunFolder(self.run).title

    @property
    def id(self) -> RunId:
        """Which weights these are."""
        steps = ((self.evaluation or {}).get("step"), None if self.features is None else self.features.info.get("step"))
        return RunId(self.title, self.record.get("started"), next((s for s in steps if s is not None), None))

    @property
    def images(self) -> tuple[list[str], list[int]]:
        """Keys and labels of the images that the pages number; empty without features and codes."""
        if self.features is not None:
            return list(self.features.keys), self.features.labels.tolist()
        if self.retrieval is not None:
            return list(self.retrieval.keys), self.retrieval.labels.tolist()
        return [], []

    @property
    def classnames(self) -> list[str]:
        """Class names, if there are any."""
        if self.evaluation is not None and self.evaluation["classnames"]:
            return list(self.evaluation["classnames"])
        return [] if self.features is None else list(self.features.info["classnames"])


def read_source(run: Path, split: str, with_model: bool = False) -> Source:
    """Reads a run's folder.

    Args:
        run: e.g. `runs/quickstart/version_0`, or `runs/quickstart` for its newest finished version.
        split: `test`, `val` or `train`.
        with_model: whether `transcoder/` is to be shown at work beside the numbers.

    Raises:
        UserError: no such folder, no results.json, nothing evaluated and nothing collected, or files that do not
            belong together.
    """
    run = find_run(run).path
    settle_to_read(run)
    if not (run / "results.json").is_file():
        raise UserError(f"--run {run}: holds no results.json; is it a run's folder, and did fit or test finish?")
    results = read_json(run / "results.json")
    notes: list[str] = []
    found = results.get("evaluation", {})
    evaluation = load_evaluation(run, split) if split in found else None
    if evaluation is None:
        others = f" (there is: {', '.join(found)})" if found else ""
        notes.append(f"The split '{split}' was not evaluated{others}: tables and curves are missing.")
    features = _features(run, split, notes)
    retrieval = _retrieval(run, features, notes)
    if evaluation is None and features is None and retrieval is None:
        raise UserError(
            f"--run {run}: nothing to show for the split '{split}'{'' if not found else others}; "
            f"run `python -m clt_lightning test --run {run}` first"
        )
    _same_step(run, split, evaluation, features, retrieval, RunFolder(run).exported_at if with_model else None)
    record = results.get("run") or (evaluation or {}).get("run") or {}
    return Source(run, split, record, evaluation, features, retrieval, notes)


def _features(run: Path, split: str, notes: list[str]) -> Features | None:
    if not (run / "features" / "features.json").is_file():
        notes.append("No features were collected: the index of features and their cards are missing.")
        return None
    features = load_features(run)
    if features.info["split"] != split:
        notes.append(f"The features were collected on the split '{features.info['split']}', the numbers on '{split}'.")
    return features


def _retrieval(run: Path, features: Features | None, notes: list[str]) -> Retrieval | None:
    if not (run / "retrieval" / "index.npz").is_file():
        notes.append("No codes of images were kept: the retrieval page is missing.")
        return None
    retrieval = Retrieval.load(run)
    if features is not None and list(retrieval.keys) != list(features.keys):
        # both number images by their place in these lists
        raise UserError(
            f"{run}: features/ and retrieval/ were collected on different images; run "
            f"`python -m clt_lightning test --run {run}` again"
        )
    return retrieval


def _same_step(
    run: Path,
    split: str,
    evaluation: dict[str, Any] | None,
    features: Features | None,
    retrieval: Retrieval | None,
    transcoder: int | None,
) -> None:
    """The parts are shown side by side as one: they must be of the same weights."""
    arrays = run / "evaluation" / f"{split}.npz"
    steps = {
        f"evaluation.{split} of results.json": None if evaluation is None else evaluation.get("step"),
        f"evaluation/{split}.npz": load_step(run, split) if evaluation is not None and arrays.is_file() else None,
        "features/": None if features is None else features.info.get("step"),
        "retrieval/": None if retrieval is None else retrieval.step,
        "transcoder/": transcoder,
    }
    known = {name: step for name, step in steps.items() if step is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} of step {step:,}" for name, step in known.items())
        alone = known.pop("transcoder/", None) is not None and len(set(known.values())) == 1
        raise UserError(
            f"{run}: the parts are of different weights ({told}): run `python -m clt_lightning test --run {run}` "
            f"again{', or leave out the pictures (--no_pictures)' if alone else ''}"
        )


def read_config(run: Path) -> str | None:
    """The run's config.yaml as text; None without."""
    path = run / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None
