"""Stateful acting objects, made fresh for each evaluation."""

from diffrl_lightning.policies.chunked import ChunkedPolicy, ChunkFn
from diffrl_lightning.policies.planner import PlannerPolicy
from diffrl_lightning.policies.skills import ChooseFn, DecodeFn, SkillPolicy
