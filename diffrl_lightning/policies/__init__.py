"""Stateful acting objects, made fresh for each evaluation."""

from diffrl_lightning.policies.planner import PlannerPolicy

__all__ = ["PlannerPolicy"]
