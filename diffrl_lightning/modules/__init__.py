"""Roles: what the diffusion is over, what conditions it, what is done with a sample."""

from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.decision_diffuser import DecisionDiffuser
from diffrl_lightning.modules.diffuser import Diffuser
from diffrl_lightning.modules.trajectory_value import TrajectoryValue

__all__ = ["DecisionDiffuser", "Diffuser", "DiffusionModule", "TrajectoryValue"]
