"""Diffusion models for reinforcement learning, every role on one backbone.

All classes that a configuration may name are here, so that YAML says ``class_path: Diffuser``. They
are imported when the first of them is asked for: ``diffrl --help`` waits for no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffrl_lightning.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(name)
    return getattr(import_module("diffrl_lightning.public"), name)
