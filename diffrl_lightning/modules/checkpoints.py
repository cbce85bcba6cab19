"""Checkpoints: reading them, and whose they are."""

from __future__ import annotations

from typing import Any

import torch

from diffrl_lightning.types import InputError

ROLE_KEY = "diffrl_role"


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's dictionary, of tensors and plain values only.

    Raises:
        InputError: if there is no such file, or it is damaged, or it holds pickled objects.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"There is no checkpoint {path!r}: correct its path.") from None
    except Exception as error:  # torch raises many kinds on damaged files
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InputError(
                f"{path!r} holds pickled objects, which could run code and are not loaded: use a "
                "checkpoint that this library wrote."
            ) from error
        raise InputError(
            f"{path!r} is damaged or no checkpoint ({type(error).__name__}): use an earlier one."
        ) from error
    needed = {"state_dict", "hyper_parameters"}
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise InputError(f"{path!r} is no checkpoint of this library: give one that it wrote.")
    return checkpoint


def check_role(checkpoint: dict[str, Any], cls: type, name: str) -> None:
    """Refuse a checkpoint that is of another role.

    Raises:
        InputError: naming the role that it is of.
    """
    role = checkpoint.get(ROLE_KEY)
    if role != cls.__name__:
        raise InputError(
            f"{name!r} holds {role or 'no role of this library'}, not {cls.__name__}: give a "
            f"{cls.__name__} checkpoint, or load it with DiffusionModule.load_from_checkpoint."
        )


def roles(cls: type) -> dict[str, Any]:
    """This role, and those that are kinds of it, by name."""
    found: dict[str, Any] = {cls.__name__: cls}
    subclasses: list[type] = cls.__subclasses__()
    for sub in subclasses:
        found |= roles(sub)
    return found
