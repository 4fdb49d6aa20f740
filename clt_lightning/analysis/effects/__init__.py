"""What features do: their direct effect through the read-out, their total effect in the live model, and its check."""

from clt_lightning.analysis.effects.check import Agreement, EffectCheck, ImageSample, check_effects
from clt_lightning.analysis.effects.collect import TARGETS, EffectCollector, Effects, image_directions
from clt_lightning.analysis.effects.live import ablation_effects, integrated_effects, total_effects

__all__ = [
    "TARGETS",
    "Agreement",
    "EffectCheck",
    "EffectCollector",
    "Effects",
    "ImageSample",
    "ablation_effects",
    "check_effects",
    "image_directions",
    "integrated_effects",
    "total_effects",
]
