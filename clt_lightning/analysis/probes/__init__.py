"""Linear read-outs: of pooled features and codes for an image's class, and of single patches (`analysis.dense`)."""

from clt_lightning.analysis.probes.fit import Probe, Rows, fit_classes, fit_numbers, spearman
from clt_lightning.analysis.probes.images import ProbeResult, classifier_head, collect, probe_head, probe_images

__all__ = [
    "Probe",
    "ProbeResult",
    "Rows",
    "classifier_head",
    "collect",
    "fit_classes",
    "fit_numbers",
    "probe_head",
    "probe_images",
    "spearman",
]
