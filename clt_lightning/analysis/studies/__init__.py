"""Which features several data sets share, and which are one set's own: usage rates, tests, entropy.

The unit is the image: tokens of an image are not independent of each other. Everything is post hoc, from codes alone.
"""

from __future__ import annotations

from clt_lightning.analysis.studies.counter import StudyCounter, study_use
from clt_lightning.analysis.studies.rates import (
    LEVEL,
    benjamini_hochberg,
    explained_use,
    same_rate,
    use_entropy,
    wilson,
)
from clt_lightning.analysis.studies.use import KINDS, OWN, StudyUse

__all__ = [
    "KINDS",
    "LEVEL",
    "OWN",
    "StudyCounter",
    "StudyUse",
    "benjamini_hochberg",
    "explained_use",
    "same_rate",
    "study_use",
    "use_entropy",
    "wilson",
]
