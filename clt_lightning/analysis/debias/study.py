"""The protocol: a biased predictor, one edit chosen on train and val, made on all test images, beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clt_lightning.analysis.debias.control_arms import control_arms
from clt_lightning.analysis.debias.feature_arms import FeatureArms
from clt_lightning.analysis.debias.measure import told
from clt_lightning.analysis.debias.memory import memory_of
from clt_lightning.analysis.debias.options import DebiasOptions
from clt_lightning.analysis.debias.result import DebiasResult
from clt_lightning.analysis.debias.setting import Setting
from clt_lightning.core.errors import UserError
from clt_lightning.core.people import size
from clt_lightning.core.say import say
from clt_lightning.interventions.mean_ablation import Feature


def debias(
    runs: Mapping[str, Any],
    data: Any = None,
    unbiased: Any = None,
    collateral: Mapping[str, Any] | None = None,
    nodes: Sequence[Feature] = (),
    options: DebiasOptions | None = None,
) -> DebiasResult:
    """Measure every arm on the test split of some data whose groups are known.

    Args:
        runs: opened runs by name, on the same backbone: arms of features are made with each one's transcoder.
        data: the data module, with the backbone's transform; None: the first run's.
        unbiased: a data module in which the cue does not go with the class: for `coactivation`, and for the predictor
            that the biased one is held against. None leaves both out.
        collateral: other data modules by name.
        nodes: features named by hand, for the first run.
        options: what is measured.

    Raises:
        UserError: no labels, no groups, one class, an empty group, a feature that does not exist, or other backbones.
    """
    first = next(iter(runs.values()))
    weights = first.clip.describe().get("weights_sha256")
    for name, run in runs.items():
        if run.clip.describe().get("weights_sha256") != weights:
            raise UserError(f"{name}: its backbone is another one than the first run's: arms are compared on one")
    o, data = options or DebiasOptions(), data or first.datamodule
    if o.progress:
        data.transform = first.clip.preprocess  # its splits are counted
        clts = [run.transcoder for run in runs.values()]
        say(f"memory: about {size(memory_of(first.clip, clts, data, o, unbiased))} beside backbone and transcoders")
    of = Setting(first.clip, data, unbiased, collateral or {}, o)
    arms = [told(of, "no edit", "none", [of.before])]
    for name, run in runs.items():
        arms += FeatureArms(of, name, run).measure(nodes if run is first else ())
    arms += control_arms(of)
    before = {name: float(right.mean()) for name, (_, right) in of.collateral.items()}
    return DebiasResult(arms, of.groups.names, of.counts(), of.head.name, before, of.notes)
