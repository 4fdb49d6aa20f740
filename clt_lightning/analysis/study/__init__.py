"""Images studied: why this class and not that one, and what happens without the features that decide it."""

from clt_lightning.analysis.study.images import study_images
from clt_lightning.analysis.study.types import Ablation, LayerCodes, Study, StudyOptions

__all__ = ["Ablation", "LayerCodes", "Study", "StudyOptions", "study_images"]
