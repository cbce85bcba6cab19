"""Callbacks: rollouts and pictures while a model trains."""

from diffrl_lightning.callbacks.plan_figure import PlanFigure
from diffrl_lightning.callbacks.rollout import Rollout

__all__ = ["PlanFigure", "Rollout"]
