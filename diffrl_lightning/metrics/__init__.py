"""Torchmetrics of reinforcement learning."""

from diffrl_lightning.metrics.rollout import RolloutMetrics
from diffrl_lightning.metrics.synthesis import SampleQuality, kolmogorov_smirnov
