"""The full evaluation of a run on the test split."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning.analysis import Analysis, Evaluation, Evaluator
from clt_lightning.analysis.arms import Arm, CascadeOptions, plan_arms
from clt_lightning.analysis.attention_units import UnitsResult
from clt_lightning.analysis.effects import EffectCheck
from clt_lightning.analysis.evaluate import EffectOptions, EvaluateOptions
from clt_lightning.analysis.faithfulness import FaithfulnessOptions
from clt_lightning.analysis.features import FeatureOptions
from clt_lightning.analysis.intervals import Interval
from clt_lightning.analysis.population import PopulationOptions
from clt_lightning.analysis.suite import check_analyses
from clt_lightning.analysis.tags import tags
from clt_lightning.callbacks.base import run_folder, say_not_written, weights_at
from clt_lightning.callbacks.measuring import Measuring, log_all, measuring, training_batches
from clt_lightning.callbacks.record import describe_run
from clt_lightning.callbacks.zero_shot import ZeroShot
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import TOKEN_SETS


class Evaluate(Measuring):
    """On `test`: replacement with controls, contributions, faithfulness, population check and features, in one pass.

    Writes `evaluation.<split>` in `<run>/results.json`, `<run>/evaluation/`, `<run>/features/` and `<run>/retrieval/`
    (docs/results-schema.md): all of them, or none if it is killed. The numbers are the same for any batch size and
    number of processes. It does nothing in other stages. On `test` it measures for all callbacks that measure, with the
    windows of `ZeroShot` beside its own, and logs their tags under `test/`; results.json holds every number once, in
    `evaluation.<split>`.

    Args:
        enabled: run it at all.
        token_sets: token sets of the reconstruction: cls, patch, all.
        cascade: which windows of MLPs are replaced.
        faithfulness: which terms are taken away, where.
        population: the pass over training images.
        features: what is collected of every feature.
        effects: what every feature does to the logits, and the check by ablation.
        retrieval: entries kept of each image's sparse code in a layer, for its neighbours; 0 keeps none.
        bootstrap: resamples behind the intervals.
        seed: seed of resamples and random orders.
        classnames: class names, in the order of the labels; null takes the data's own.
        templates: prompt templates; null takes the data's own.
        extra: analyses of your own, by class path (`clt_lightning.analysis.Analysis`); they see the same forwards, and
            their results stand in `evaluation.<split>.extra`.

    Raises:
        UserError: on unknown token sets, layers or controls.
    """

    def __init__(
        self,
        enabled: bool = True,
        token_sets: list[str] = list(TOKEN_SETS),  # noqa: B006  (never changed; the types carry the help texts)
        cascade: CascadeOptions = CascadeOptions(),  # noqa: B008
        faithfulness: FaithfulnessOptions = FaithfulnessOptions(),  # noqa: B008
        population: PopulationOptions = PopulationOptions(),  # noqa: B008
        features: FeatureOptions = FeatureOptions(),  # noqa: B008
        effects: EffectOptions = EffectOptions(),  # noqa: B008
        retrieval: int = 64,
        bootstrap: int = 1000,
        seed: int = 0,
        classnames: list[str] | None = None,
        templates: list[str] | None = None,
        extra: list[Analysis] | None = None,
    ) -> None:
        self.classnames, self.templates, self.extra = classnames, templates, list(extra or [])
        self.enabled = enabled
        self.options = EvaluateOptions(
            list(token_sets), cascade, faithfulness, population, features, effects, retrieval, bootstrap, seed
        )
        self.result: Evaluation | None = None
        self._evaluator: Evaluator | None = None

    def takes_over(self, stage: str) -> bool:
        return stage == "test" and self.enabled

    def analyses(self, trainer: pl.Trainer, pl_module: Any) -> list[Analysis]:
        return []  # of a validation

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # in fit as well: a mistake in the config must not wait for the test after it
        if self.enabled:
            clt = pl_module.transcoder
            plan_arms(self.options.cascade, clt.n_layers, clt.skip, tokens_of(pl_module.clip, clt))
            if self.options.faithfulness.layers is not None:
                pl_module.clip.check_layers(self.options.faithfulness.layers)
            check_analyses(self.extra, pl_module.clip)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.stored = frozenset()
        if not self.enabled:
            return super().on_test_epoch_start(trainer, pl_module)
        data = getattr(trainer, "datamodule", None)
        names = self.classnames or getattr(data, "classnames", None)
        templates = self.templates or getattr(data, "templates", None)
        self._evaluator = evaluator = Evaluator(
            *(pl_module.clip, pl_module.transcoder, names, templates, self.options, self.extra, _windows(trainer)),
            attention=pl_module.attention,
        )
        batches = training_batches(trainer, self.options.population.images)
        if batches is None and self.options.population.images:
            rank_zero_info("the data has no training split: no population check, mean ablation or dataset ranking")
        for batch in batches or ():
            evaluator.reference(batch)
        evaluator.start()
        pl_module.needs = evaluator.suite.needs

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._evaluator is None:
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        elif len(batch["image"]):  # else a process that has run out of images
            self._evaluator.suite.update(batch, outputs["seen"], outputs["codes"], outputs["y_hat"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._evaluator is None:
            return super().on_test_epoch_end(trainer, pl_module)
        rank_zero_info("computing intervals, features and neighbours from what was seen ...")
        found, folder = self._evaluator.result(), run_folder(trainer)
        self._evaluator = None
        arms = {arm.name for arm in _windows(trainer)}  # the others are in results.json alone
        numbers = trainer.strategy.broadcast({} if found is None else tags(found[0].entry(), arms))
        log_all(pl_module, "test", numbers)
        if folder is None:
            say_not_written(trainer, "the evaluation")
        else:
            self.stored = frozenset(numbers)
        if found is None:
            return
        self.result, features, retrieval = found
        step, checkpoint = weights_at(trainer)[0], str(trainer.ckpt_path or "")
        self.result.info.update(step=step, checkpoint=checkpoint, run=describe_run(trainer, pl_module))
        width = line_width()
        told = [textwrap.fill(line, width, subsequent_indent="  ") for line in summary(self.result, width)]
        trainer.print("\n".join(["", *told, ""]), flush=True)
        if folder is None:
            return
        rank_zero_info("writing the evaluation ...")
        self.result.save(folder, features, retrieval)
        rank_zero_info(f"evaluation written to {folder / 'results.json'}")


def _windows(trainer: pl.Trainer) -> list[Arm]:
    """What `ZeroShot` compares."""
    return [arm for callback in measuring(trainer) if isinstance(callback, ZeroShot) for arm in callback.arms]


def summary(evaluation: Evaluation, width: int | None = None) -> list[str]:
    """A few lines for the terminal: reconstruction, the arms, the population check.

    Args:
        evaluation: what was measured.
        width: characters that a line of a table may have; None: any number.
    """
    fvu = {name: float(values.mean()) for name, values in evaluation.reconstruction["fvu"].items()}
    lines = [f"FVU, mean over layers: {', '.join(f'{name} {value:.4f}' for name, value in fvu.items())}"]
    if evaluation.arms:
        lines += ["", *_arms(evaluation, width), ""]
    if evaluation.attention is not None:
        lines += [*unit_lines(evaluation.attention, width), ""]
    if evaluation.shares is not None:
        lines += [*logit_lines(evaluation.shares, width), ""]
    if evaluation.effect_check is not None:
        lines += [*effect_lines(evaluation.effect_check, width), ""]
    for check in evaluation.population:
        lines.append(
            f"population check, {check.discrepancy}: held out {check.held_out:.4g}, training {check.train:.4g}, "
            f"p = {check.p_value:.3f}, two-sided {check.p_two_sided:.3f}"
        )
    return lines


def unit_lines(found: UnitsResult, width: int | None = None) -> list[str]:
    """Sparse attention, or an autoencoder of it, by layer, for the terminal."""
    fvu, l0 = found.tables["fvu"]["all"], found.tables["l0"]["all"]
    columns = [Column("FVU", [f"{v:.4f}" for v in fvu.tolist()], 8), Column("L0", [f"{v:.1f}" for v in l0.tolist()], 7)]
    if "fvu_z" in found.tables:
        columns.insert(1, Column("of heads", [f"{v:.4f}" for v in found.tables["fvu_z"]["all"].tolist()], 10))
    if found.spans is not None:
        rows, group = found.spans.numbers(), "units that explain anything"
        columns += [
            Column("units", [f"{row['units']:.0f}" for row in rows], 7, group=group),
            Column("heads", ["-" if row["median"] is None else f"{row['median']:.2f}" for row in rows], 7, group=group),
            Column("two or more", [_percent(row["several"]) for row in rows], 12, group=group),
            Column("own head", [_percent(row["own"]) for row in rows], 9, group=group),
        ]
    return lay_out(Column("attention", [str(layer) for layer in range(len(fvu))]), columns, width)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _arms(evaluation: Evaluation, width: int | None) -> list[str]:
    arms = [result for result in evaluation.arms if not result.arm.sampled]
    columns = [
        Column("top-1 %", [f"{100 * arm.top1.value:.2f}" for arm in arms], 10),
        Column("95 % interval", [f"{100 * arm.top1.low:.2f} .. {100 * arm.top1.high:.2f}" for arm in arms], 18),
        Column("KL", [f"{arm.kl.value:.4f}" for arm in arms], 10),
    ]
    lines = lay_out(Column("zero-shot", [arm.arm.name for arm in arms], left=True), columns, width)
    others = [result for result in evaluation.arms if result.arm.sampled]
    if others:
        lines.append(f"and {len(others)} more controls, on {others[0].n:,} images: in results.json and the report")
    return lines


def logit_lines(shares: Mapping[str, Mapping[str, Interval]], width: int | None = None) -> list[str]:
    """Who makes the logit of the predicted class and its margin over the runner-up, in the mean, for the terminal."""
    names = {"norm_bias": "last LayerNorm's bias", "sum": "together"}
    parts = list(next(iter(shares.values())))
    columns = []
    for target, values in shares.items():
        whole = values["sum"].value
        columns.append(Column(target, [f"{values[part].value:.2f}" for part in parts], 10))
        told = [f"{100 * values[part].value / whole:.1f} %" if whole else "" for part in parts]
        columns.append(Column("share", told, 9))
    return lay_out(Column("who makes it", [names.get(part, part) for part in parts], left=True), columns, width)


def effect_lines(check: EffectCheck, width: int | None = None) -> list[str]:
    """How predicted effects of features go with real ablation, for the terminal."""
    names = {"gradient": "one gradient", "integrated": "integrated"}
    targets = {"class": "class - mean", "margin": "class - runner-up"}
    found = {
        f"{targets[target]}, {names[method]}": parts["all"]
        for target, methods in check.agreements.items()
        for method, parts in methods.items()
        if parts.get("all") is not None
    }
    if not found:
        return []
    all_of = list(found.values())
    columns = [
        Column("correlation", [f"{a.correlation.value:.3f}" for a in all_of], 13),
        Column("95 % interval", [f"{a.correlation.low:.3f} .. {a.correlation.high:.3f}" for a in all_of], 17),
        Column("slope", [f"{a.slope:.2f}" for a in all_of], 8),
        Column("equal signs", [f"{100 * a.signs:.1f} %" for a in all_of], 13),
        Column("n", [f"{a.n}" for a in all_of], 8),
        Column("images", [f"{a.images}" for a in all_of], 8),
    ]
    return lay_out(Column("effects against ablation", list(found), left=True), columns, width)
