"""Modules that a checkpoint alone rebuilds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self

import lightning.pytorch as pl
import torch

from diffrl_lightning.modules.acting import from_plain, to_plain
from diffrl_lightning.modules.checkpoint_files import (
    ROLE_KEY,
    first_unsound,
    read_checkpoint,
)
from diffrl_lightning.types import Acting, InputError, RunError

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
        """Add the role, its companions, how it acts, and the seed of its noise.

        Raises:
            RunError: if a weight is NaN or infinite; files that are there stay as they are.
        """
        self.refuse_divergence(first_unsound(self, checkpoint["state_dict"]))
        hparams = checkpoint.get("hyper_parameters", {})
        for name in set(hparams) - set(self.arguments()) - set(_PRIVATE):
            del hparams[name]  # the command line links dimensions to every role
        checkpoint |= self._identity()
        checkpoint["noise_seed"] = self.noise_seed
        checkpoint["acting"] = to_plain(self.default_acting)

    def refuse_divergence(self, what: str | None) -> None:
        """End a run whose loss or weights are no numbers any more.

        Args:
            what: that is NaN or infinite; None where nothing is.

        Raises:
            RunError: naming the step and the checkpoint that is kept.
        """
        if what is None:
            return
        trainer = self._trainer
        saver: Any = trainer and trainer.checkpoint_callback
        paths = [getattr(saver, f"{name}_model_path", "") for name in ("last", "best")]
        kept = [path for path in paths if path and Path(path).is_file()]
        step = trainer.global_step if trainer else self.loaded_step
        raise RunError(
            f"Training diverged: at step {step} {what} is NaN or infinite; lower model.lr, or bound "
            "gradients with trainer.gradient_clip_val "
            f"({f'kept: {kept[0]}' if kept else 'no checkpoint was written'})."
        )

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
        """Take companions, noise and ways to act from a checkpoint, and compare its weights.

        Raises:
            InputError: if it is of another role, of data of other dimensions, or not whole.
        """
        check_role(checkpoint, type(self), "the checkpoint")
        hparams = checkpoint["hyper_parameters"]
        for name in ("observation_dim", "action_dim", "goal_dim", "num_origins"):
            theirs, ours = hparams.get(name), self.hparams.get(name)
            if name in hparams and theirs != ours:
                raise InputError(
                    f"The checkpoint was trained with {name}={theirs}, the data have {ours}: give "
                    "the dataset that it was trained on."
                )
        trainer = self._trainer
        resumed = {"optimizer_states", "loops"} if trainer and trainer.training else set()
        missing = ({"noise_seed"} | resumed) - checkpoint.keys()
        if missing:
            raise InputError(
                f"The checkpoint has no {', '.join(sorted(missing))}, so that it can not be "
                f"{'resumed' if resumed else 'loaded'}: use one that training wrote whole."
            )
        seed, step = checkpoint["noise_seed"], checkpoint.get("global_step")
        if not all(value is None or type(value) is int for value in (seed, step)):
            raise InputError(
                "The checkpoint's noise_seed or global_step is no number: use another."
            )
        if seed is not None:  # a tuner saves before there is one
            self.noise_seed = seed
        self.loaded_step = step
        self.default_acting = from_plain(self.acting, checkpoint.get("acting"))
        _attach(self, checkpoint.get("companions", {}))
        self._check_weights(checkpoint["state_dict"])

    def _check_weights(self, state: dict[str, Any]) -> None:
        """Refuse weights that are not this module's, or no numbers."""
        ours = {name: value.shape for name, value in self.state_dict().items()}
        theirs = {name: getattr(value, "shape", None) for name, value in state.items()}
        wrong = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        if wrong:
            raise InputError(
                f"The checkpoint does not hold the weights of this {type(self).__name__}: {len(wrong)} "
                f"entries are missing, unknown or of another shape, {wrong[0]} the first; use one that "
                "was saved with the same hyper-parameters."
            )
        unsound = first_unsound(self, state)
        if unsound is not None:
            raise InputError(
                f"The checkpoint's {unsound} is NaN or infinite: use an earlier checkpoint."
            )

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: None = None,
        strict: Literal[True] | None = None,
        weights_only: Literal[True] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Rebuild a module from its checkpoint alone; called on ``Role``, of any role.

        Args:
            checkpoint_path: a ``.ckpt`` file.
            map_location: as in ``torch.load``; default the CPU.
            hparams_file: not taken: the checkpoint has them.
            strict: always: weights that are missing would be random.
            weights_only: always: anything else could run code.
            kwargs: hyper-parameters to override.

        Raises:
            InputError: if the file can not be read, holds code, or is of another role.
        """
        if hparams_file is not None or strict is False or weights_only is False:
            raise InputError(
                "A checkpoint is loaded whole, with its own hyper-parameters and without running code: "
                "leave out hparams_file, strict and weights_only."
            )
        checkpoint = read_checkpoint(checkpoint_path, map_location or "cpu")
        if checkpoint.get(ROLE_KEY) not in roles(cls):
            check_role(checkpoint, cls, str(checkpoint_path))
        check_buildable(checkpoint, str(checkpoint_path), kwargs)
        module = _build(checkpoint, kwargs)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()  # type: ignore[return-value]


def check_buildable(
    checkpoint: dict[str, Any], name: str, overrides: Mapping[str, Any] | None = None
) -> None:
    """Refuse a checkpoint whose weights are not those of its role, before any memory is taken.

    Raises:
        InputError: naming the first difference.
    """
    try:
        with torch.device("meta"):
            _build(checkpoint, overrides or {}).on_load_checkpoint(checkpoint)
    except InputError as error:
        raise InputError(f"{name!r}: {error}") from error
    except Exception as error:  # a constructor raises anything on values that it was not made for
        raise InputError(
            f"{name!r} holds hyper-parameters that no {checkpoint[ROLE_KEY]} can be built with "
            f"({' '.join(str(error).split())[:150]}): use a checkpoint that this version wrote."
        ) from error


def _build(checkpoint: dict[str, Any], overrides: Mapping[str, Any]) -> CheckpointedModule:
    """The role of a checkpoint before its companions and weights are loaded."""
    hparams = {**checkpoint["hyper_parameters"], **overrides}
    for private in _PRIVATE:
        hparams.pop(private, None)
    return roles(CheckpointedModule)[checkpoint[ROLE_KEY]](**hparams)


def _attach(module: Any, companions: dict[str, Any]) -> None:
    """Build a module's companions, and theirs, before their weights are loaded."""
    like = next(module.parameters())
    plain = isinstance(companions, dict) and all(isinstance(p, dict) for p in companions.values())
    if not plain:
        raise InputError("The checkpoint's companions are no dictionaries: use another one.")
    for name, part in companions.items():
        known = roles(CheckpointedModule).get(part.get(ROLE_KEY))
        ability, _ = module.companions.get(name, ("", ()))
        if known is None or not hasattr(known, ability):
            raise InputError(
                f"The checkpoint has a companion {name!r}, {part.get(ROLE_KEY)}, that no "
                f"{type(module).__name__} builds on: use one that this library wrote."
            )
        if not isinstance(part.get("hyper_parameters"), dict):
            raise InputError(
                f"The companion {name!r} has no hyper_parameters: use another checkpoint."
            )
        companion = _build(part, {})
        _attach(companion, part.get("companions", {}))
        companion.to(like.device, like.dtype)
        setattr(module, name, companion.requires_grad_(False).eval())


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
