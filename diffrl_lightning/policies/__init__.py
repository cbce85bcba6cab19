"""Stateful acting objects, made fresh for each evaluation."""

from diffrl_lightning.policies.chunked import ChunkedPolicy
from diffrl_lightning.policies.planner import PlannerPolicy
from diffrl_lightning.policies.skills import SkillPolicy
