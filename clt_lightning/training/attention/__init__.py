"""Training of what stands in the place of attention, beside a transcoder (`CLTModule`) or alone (`AttentionModule`)."""

from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.attention.learner import AttentionLearner
from clt_lightning.training.attention.make import attention_learner
from clt_lightning.training.attention.module import AttentionModule

__all__ = ["AttentionConfig", "AttentionLearner", "AttentionModule", "attention_learner"]
