"""Stateful acting objects, made fresh for each evaluation."""

from diffrl_lightning.policies.chunked import ChunkedPolicy
from diffrl_lightning.policies.planner import PlannerPolicy

__all__ = ["ChunkedPolicy", "PlannerPolicy"]
