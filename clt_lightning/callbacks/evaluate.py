"""The full evaluation of a run on the test split."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from tqdm.auto import tqdm

from clt_lightning.analysis import Evaluation, Evaluator
from clt_lightning.analysis.arms import CascadeOptions, plan_arms
from clt_lightning.analysis.effects import EffectCheck
from clt_lightning.analysis.evaluate import EffectOptions, EvaluateOptions
from clt_lightning.analysis.faithfulness import FaithfulnessOptions
from clt_lightning.analysis.features import FeatureOptions
from clt_lightning.analysis.population import PopulationOptions
from clt_lightning.callbacks.base import fast_dev_run, run_folder, say_not_written, weights_at
from clt_lightning.metrics import TOKEN_SETS


class Evaluate(pl.Callback):
    """On `test`: replacement with controls, contributions, faithfulness, population check and features, in one pass.

    Writes `evaluation.<split>` in `<run>/results.json`, `<run>/evaluation/`, `<run>/features/` and `<run>/retrieval/`
    (docs/results-schema.md). The numbers are the same for any batch size and number of processes. It does nothing in
    other stages, and the transcoder runs in its own precision, whatever the trainer's is.

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
    ) -> None:
        self.enabled = enabled
        self.options = EvaluateOptions(
            list(token_sets), cascade, faithfulness, population, features, effects, retrieval, bootstrap, seed
        )
        self.result: Evaluation | None = None
        self._evaluator: Evaluator | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # in fit as well: a mistake in the config must not wait for the test after it
        if self.enabled:
            plan_arms(self.options.cascade, pl_module.clip.n_layers, pl_module.transcoder.skip)
            if self.options.faithfulness.layers is not None:
                pl_module.clip.check_layers(self.options.faithfulness.layers)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.enabled:
            return
        data = getattr(trainer, "datamodule", None)
        names, templates = (getattr(data, name, None) for name in ("classnames", "templates"))
        self._evaluator = Evaluator(pl_module.clip, pl_module.transcoder, names, templates, self.options)
        self._training_images(trainer, pl_module, data, self._evaluator)
        self._evaluator.start()

    def _training_images(self, trainer: Any, pl_module: Any, data: Any, evaluator: Evaluator) -> None:
        wanted = self.options.population.images
        if fast_dev_run(trainer):
            wanted = min(wanted, 64)  # a trial run shall end soon
        loader = getattr(data, "eval_dataloader", None)
        if wanted == 0:
            return
        if loader is None or data.split("train") is None:
            rank_zero_info("the data has no training split: no population check, mean ablation or dataset ranking")
            return
        batches = loader("train", limit=wanted)
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        for batch in tqdm(batches, desc="Training images", unit="batch", disable=hidden, leave=False):
            evaluator.reference(trainer.strategy.batch_to_device(batch))

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._evaluator is not None:
            self._evaluator.take(batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._evaluator is None:
            return
        found, folder = self._evaluator.result("test"), run_folder(trainer)
        self._evaluator = None
        if folder is None:
            say_not_written(trainer, "the evaluation")
        if found is None:
            return
        self.result, features, retrieval = found
        self.result.info.update(step=weights_at(trainer)[0], checkpoint=str(trainer.ckpt_path or ""))
        for line in summary(self.result):
            rank_zero_info(line)
        if folder is None:
            return
        self.result.save(folder)
        for part in (features, retrieval):
            if part is not None:
                part.save(folder)
        rank_zero_info(f"evaluation written to {folder / 'results.json'}")


def summary(evaluation: Evaluation) -> list[str]:
    """A few lines for the terminal: reconstruction, the arms, the population check."""
    fvu = {name: float(values.mean()) for name, values in evaluation.reconstruction["fvu"].items()}
    lines = [f"FVU, mean over layers: {', '.join(f'{name} {value:.4f}' for name, value in fvu.items())}"]
    for arm in evaluation.arms:
        top1, kl = arm.top1, arm.kl
        lines.append(
            f"{arm.arm.name:<24} top-1 {100 * top1.value:6.2f} [{100 * top1.low:6.2f}, {100 * top1.high:6.2f}]"
            f"   KL {kl.value:.4f}"
        )
    if evaluation.effect_check is not None:
        lines += effect_lines(evaluation.effect_check)
    for check in evaluation.population:
        lines.append(
            f"population check, {check.discrepancy}: held out {check.held_out:.4g}, training {check.train:.4g}, "
            f"p = {check.p_value:.3f}"
        )
    return lines


def effect_lines(check: EffectCheck) -> list[str]:
    """How predicted effects of features go with real ablation, for the terminal."""
    names = {"gradient": "one gradient", "integrated": "integrated"}
    targets = {"class": "predicted class - mean", "margin": "predicted class - runner-up"}
    lines = []
    for target, methods in check.agreements.items():
        for method, parts in methods.items():
            a = parts.get("all")
            if a is not None:
                r = a.correlation
                lines.append(
                    f"effects, {targets[target]}, {names[method]}: correlation with ablation {r.value:.3f} "
                    f"[{r.low:.3f}, {r.high:.3f}], slope {a.slope:.2f}, equal signs {100 * a.signs:.1f} % "
                    f"(n {a.n}, {a.images} images)"
                )
    return lines
