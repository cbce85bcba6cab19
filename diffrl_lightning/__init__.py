"""Diffusion models for reinforcement learning, every role on one DDPM backbone.

All classes that a configuration may name are here, so that YAML says ``class_path: Diffuser``.
"""

from diffrl_lightning.callbacks import (
    Collect,
    MazeMap,
    PlanFigure,
    Rollout,
    SampleReport,
    SampleWriter,
    SkillFigure,
)
from diffrl_lightning.data import ChunkData, FutureData, OnlineData, SequenceData, TransitionData
from diffrl_lightning.modules import (
    IDQL,
    TD3BC,
    BehaviourCloning,
    DataSynthesizer,
    DecisionDiffuser,
    DiffusedValue,
    Diffuser,
    DiffusionDynamics,
    DiffusionModule,
    DiffusionPolicy,
    DiffusionQL,
    DynamicsAgent,
    EnsembleDynamics,
    LatentDiffusion,
    LatentQ,
    LatentSkills,
    RelativeReward,
    TrajectorySynthesizer,
    TrajectoryValue,
    ValuePolicy,
)
from diffrl_lightning.types import InputError

__version__ = "0.1.0"

__all__ = [
    "IDQL",
    "TD3BC",
    "BehaviourCloning",
    "ChunkData",
    "Collect",
    "DataSynthesizer",
    "DecisionDiffuser",
    "DiffusedValue",
    "Diffuser",
    "DiffusionDynamics",
    "DiffusionModule",
    "DiffusionPolicy",
    "DiffusionQL",
    "DynamicsAgent",
    "EnsembleDynamics",
    "FutureData",
    "InputError",
    "LatentDiffusion",
    "LatentQ",
    "LatentSkills",
    "MazeMap",
    "OnlineData",
    "PlanFigure",
    "RelativeReward",
    "Rollout",
    "SampleReport",
    "SampleWriter",
    "SequenceData",
    "SkillFigure",
    "TrajectorySynthesizer",
    "TrajectoryValue",
    "TransitionData",
    "ValuePolicy",
]
