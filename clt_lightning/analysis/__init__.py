"""What a trained transcoder explains: replacement, contributions, faithfulness, features, single images.

Everything here is usable from Python on any batches; the `test` command writes the same results into the run's folder
(docs/analysis.md, docs/results-schema.md).
"""

from __future__ import annotations

from clt_lightning.analysis import dense, probes
from clt_lightning.analysis.arms import Arm, ArmRunner, CascadeOptions, plan_arms
from clt_lightning.analysis.contributions import Contributions, ContributionScores
from clt_lightning.analysis.decomposition import Decomposition, decompose
from clt_lightning.analysis.evaluate import EvaluateOptions, Evaluator, evaluate
from clt_lightning.analysis.faithfulness import Faithfulness, FaithfulnessOptions, FaithfulnessResult
from clt_lightning.analysis.features import FeatureCollector, FeatureOptions, Features, load_features
from clt_lightning.analysis.image import ActiveFeature, ImageExplanation, explain_image, strongest
from clt_lightning.analysis.intervals import Interval
from clt_lightning.analysis.population import PopulationCheck, PopulationOptions
from clt_lightning.analysis.results import ArmResult, Evaluation, load_arrays, load_evaluation
from clt_lightning.analysis.retrieval import Retrieval, RetrievalCollector
from clt_lightning.analysis.run import Run, open_run
from clt_lightning.analysis.steering import Edit, SteeringResult, steer, steered
from clt_lightning.analysis.studies import StudyUse, study_use
from clt_lightning.analysis.suite import Analysis, Batch, Subject, Suite
from clt_lightning.analysis.tags import load_metrics, tags
from clt_lightning.analysis.tower import Observation, finish, observe

__all__ = [
    "ActiveFeature",
    "Analysis",
    "Arm",
    "ArmResult",
    "ArmRunner",
    "Batch",
    "CascadeOptions",
    "ContributionScores",
    "Contributions",
    "Decomposition",
    "Edit",
    "EvaluateOptions",
    "Evaluation",
    "Evaluator",
    "Faithfulness",
    "FaithfulnessOptions",
    "FaithfulnessResult",
    "FeatureCollector",
    "FeatureOptions",
    "Features",
    "ImageExplanation",
    "Interval",
    "Observation",
    "PopulationCheck",
    "PopulationOptions",
    "Retrieval",
    "RetrievalCollector",
    "Run",
    "SteeringResult",
    "StudyUse",
    "Subject",
    "Suite",
    "decompose",
    "dense",
    "evaluate",
    "explain_image",
    "finish",
    "load_arrays",
    "load_evaluation",
    "load_features",
    "load_metrics",
    "observe",
    "open_run",
    "plan_arms",
    "probes",
    "steer",
    "steered",
    "strongest",
    "study_use",
    "tags",
]
