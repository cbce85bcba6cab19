"""Datasets of offline reinforcement learning as LightningDataModules."""

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.datamodule import SequenceData, TransitionData
from diffrl_lightning.data.datasets import Transitions, Windows
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.futures import FutureData, Futures
from diffrl_lightning.data.replay import ReplayData, TransitionBuffer
from diffrl_lightning.data.skills import SkillData, Skills

__all__ = [
    "Episodes",
    "FutureData",
    "Futures",
    "OfflineData",
    "ReplayData",
    "SequenceData",
    "SkillData",
    "Skills",
    "TransitionBuffer",
    "TransitionData",
    "Transitions",
    "Windows",
]
