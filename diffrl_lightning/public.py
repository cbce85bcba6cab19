"""All classes that a configuration may name, as ``diffrl_lightning`` exports them."""

from diffrl_lightning.callbacks import (
    Collect,
    MazeMap,
    PlanFigure,
    Rollout,
    SampleReport,
    SampleWriter,
    SkillFigure,
    TrainingRecord,
)
from diffrl_lightning.data import ChunkData, FutureData, OnlineData, SequenceData, TransitionData
from diffrl_lightning.diffusion import Sampling
from diffrl_lightning.modules import *  # noqa: F403
from diffrl_lightning.types import Acting, InputError

__all__ = [name for name in dir() if name[0].isupper()]
