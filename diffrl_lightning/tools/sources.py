"""What tools read: datasets, their environments, and checkpoints."""

from __future__ import annotations

from typing import Any, TypeVar

from diffrl_lightning.data import OfflineData
from diffrl_lightning.modules import Role
from diffrl_lightning.types import InputError

Data = TypeVar("Data", bound=OfflineData)


def read(data: Data) -> Data:
    """The datamodule with its arrays read and split."""
    data.prepare_data()
    data.setup("fit")
    return data


def load_role(checkpoint: str, kind: str, *methods: str) -> Any:
    """The role of a checkpoint; it must have these methods, by which its kind is known."""
    role = Role.load_from_checkpoint(checkpoint)
    if not all(hasattr(role, name) for name in methods):
        raise InputError(
            f"{checkpoint!r} holds a {type(role).__name__}: give the checkpoint of {kind}."
        )
    return role
