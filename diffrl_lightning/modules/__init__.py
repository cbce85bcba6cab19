"""Roles: what the diffusion is over, what conditions it, what is done with a sample."""

from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.diffuser import Diffuser

__all__ = ["Diffuser", "DiffusionModule"]
