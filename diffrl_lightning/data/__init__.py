"""Datasets of offline reinforcement learning as LightningDataModules."""

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.datamodule import SequenceData, TransitionData
from diffrl_lightning.data.datasets import Transitions, Windows
from diffrl_lightning.data.episodes import Episodes

__all__ = [
    "Episodes",
    "OfflineData",
    "SequenceData",
    "TransitionData",
    "Transitions",
    "Windows",
]
