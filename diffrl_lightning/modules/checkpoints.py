"""Checkpoints: reading them without running code, and modules that one alone rebuilds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import lightning.pytorch as pl
import torch

from diffrl_lightning.modules.acting import from_plain, to_plain
from diffrl_lightning.types import Acting, InputError

ROLE_KEY = "diffrl_role"
_PRIVATE = ("_instantiator", "_class_path")  # what Lightning's command line adds


class CheckpointedModule(pl.LightningModule):
    """A module that its checkpoint alone rebuilds: arguments, weights, companions, ways to act."""

    acting: ClassVar[type[Acting] | None] = None  # how the role acts; None where it does not
    default_acting: Acting | None = None  # how it was tested
    noise_seed: int | None = None  # of all noise of a run
    loaded_step: int | None = None  # optimiser steps of the checkpoint that the weights are from

    def embedded(self) -> dict[str, CheckpointedModule]:
        """Companions by attribute, which travel in the checkpoint."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the role, its companions, how it acts, and the seed of its noise."""
        hparams = checkpoint.get("hyper_parameters", {})
        for name in set(hparams) - set(self.arguments()) - set(_PRIVATE):
            del hparams[name]  # the command line links dimensions to every role
        checkpoint |= self._identity()
        checkpoint["noise_seed"] = self.noise_seed
        checkpoint["acting"] = to_plain(self.default_acting)

    def arguments(self) -> dict[str, Any]:
        """The hyper-parameters that the constructor takes."""
        taken = constructor_arguments(type(self))
        return {name: value for name, value in self.hparams.items() if name in taken}

    def _identity(self) -> dict[str, Any]:
        companions = {
            name: {"hyper_parameters": found.arguments(), **found._identity()}
            for name, found in self.embedded().items()
        }
        return {ROLE_KEY: type(self).__name__, "companions": companions}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another role or of data of other dimensions; go on with its noise."""
        check_role(checkpoint, type(self), "the checkpoint")
        hparams = checkpoint["hyper_parameters"]
        for name in ("observation_dim", "action_dim", "goal_dim", "num_origins"):
            theirs, ours = hparams.get(name), self.hparams.get(name)
            if name in hparams and theirs != ours:
                raise InputError(
                    f"The checkpoint was trained with {name}={theirs}, the data have {ours}: give "
                    "the dataset that it was trained on."
                )
        self.noise_seed = checkpoint["noise_seed"]
        self.loaded_step = checkpoint.get("global_step")
        self.default_acting = from_plain(self.acting, checkpoint.get("acting"))
        for name, found in checkpoint.get("companions", {}).items():
            companion = _without_weights(found).to(self.device, next(self.parameters()).dtype)
            setattr(self, name, companion.requires_grad_(False).eval())

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path | IO[bytes], map_location: Any = None, **kwargs: Any
    ) -> Self:
        """Rebuild a module from its checkpoint alone; called on ``Role``, of any role.

        Args:
            checkpoint_path: a ``.ckpt`` file.
            map_location: as in ``torch.load``; default the CPU.
            kwargs: hyper-parameters to override.

        Raises:
            InputError: if the file can not be read, holds code, or is of another role.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location or "cpu")
        if checkpoint.get(ROLE_KEY) not in roles(cls):
            check_role(checkpoint, cls, str(checkpoint_path))
        hparams = {**checkpoint["hyper_parameters"], **kwargs}
        for private in _PRIVATE:
            hparams.pop(private, None)
        module = roles(cls)[checkpoint[ROLE_KEY]](**hparams)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()  # type: ignore[return-value]


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
            f"{cls.__name__} checkpoint, or load it with Role.load_from_checkpoint."
        )


def roles(cls: type) -> dict[str, Any]:
    """This role and its subclasses, by name."""
    found: dict[str, Any] = {cls.__name__: cls}
    subclasses: list[type] = cls.__subclasses__()
    for sub in subclasses:
        found |= roles(sub)
    return found


def constructor_arguments(cls: type) -> set[str]:
    """Names that a constructor takes, with those that it hands on as ``**training``."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        keywords = [n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD]
        names |= set(parameters) - {"self", *keywords}
        if not keywords:
            break
    return names


def _without_weights(found: dict[str, Any]) -> CheckpointedModule:
    """A companion, with companions of its own, before its weights are loaded."""
    module = roles(CheckpointedModule)[found[ROLE_KEY]](**found["hyper_parameters"])
    for name, deeper in found["companions"].items():
        setattr(module, name, _without_weights(deeper))
    return module
