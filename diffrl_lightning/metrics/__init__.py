"""Torchmetrics of reinforcement learning."""

from diffrl_lightning.metrics.rollout import RolloutMetrics

__all__ = ["RolloutMetrics"]
