"""Models that a role builds on: loaded, checked to fit, and frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch

from diffrl_lightning.modules.checkpoints import CheckpointedModule
from diffrl_lightning.normalizers import Normalizer
from diffrl_lightning.types import InputError

SAME_TRAJECTORIES = (
    "observation_dim",
    "action_dim",
    "horizon",
    "stride",
    "num_train_timesteps",
    "beta_schedule",
    "normalizer",
)
"""Hyper-parameters that must match between a Diffuser and the network that guides it."""

SAME_SKILLS = ("observation_dim", "action_dim", "goal_dim", "horizon", "latent_dim")
"""Hyper-parameters that must match between the three stages of latent skills."""


class CompanionModule(CheckpointedModule):
    """A module that may act by another role's frozen model, which travels in its checkpoint.

    ``companions`` names such models by attribute, each with a method that it must have and the
    hyper-parameters that must match; the argument ``NAME_ckpt`` is its checkpoint. A model that is
    needed for training alone is loaded by :meth:`load_companion` and stays out of the checkpoint.
    """

    companions: ClassVar[dict[str, tuple[str, Sequence[str]]]] = {}

    def load_companion(self, path: str, ability: str, *, same: Sequence[str]) -> Any:
        """Another role's model: frozen, on this one's device, and checked to fit.

        Args:
            path: its checkpoint.
            ability: a method that it must have.
            same: hyper-parameters that must be equal; so must normalisers of trajectories, as far as
                both have them.

        Raises:
            InputError: if it does not fit.
        """
        name = type(self).__name__
        with torch.inference_mode(False):  # its input is to have gradients
            other: Any = CheckpointedModule.load_from_checkpoint(path, map_location=self.device)
        if not hasattr(other, ability):
            raise InputError(
                f"{path!r} holds a {type(other).__name__}, which has no {ability}: give the checkpoint "
                "of a role that has."
            )
        for key in same:
            if other.hparams[key] != self.hparams[key]:
                raise InputError(
                    f"{path!r} has {key}={other.hparams[key]}, this {name} {self.hparams[key]}: train "
                    "both with the same."
                )
        theirs = other.state_dict()
        for key, ours in self.state_dict().items():
            if not (key.startswith("trajectory.") and key in theirs and self.is_fitted()):
                continue
            # Either may have been trained in a lower precision.
            low = [x.to("cpu", torch.bfloat16) for x in (ours, theirs[key])]
            if not torch.equal(*low):
                raise InputError(
                    f"{path!r} was trained on other data than this {name}: train both on the same "
                    "dataset, with the same val_fraction and seed of the data."
                )
        with torch.inference_mode(False):
            return other.to(self.device, self.float_dtype).requires_grad_(False)

    def embed_companions(self) -> None:
        """Load each companion from the argument ``NAME_ckpt``, unless a checkpoint has brought it.

        Raises:
            InputError: if the argument is missing, or the companion does not fit.
        """
        for name, (ability, same) in self.companions.items():
            if getattr(self, name) is not None:
                continue
            path = self.hparams[f"{name}_ckpt"]
            if path is None:
                raise InputError(
                    f"{type(self).__name__} needs model.{name}_ckpt, the checkpoint it builds on."
                )
            setattr(self, name, self.load_companion(path, ability, same=same))

    def embedded(self) -> dict[str, CheckpointedModule]:
        """The companions that are here."""
        return {name: found for name in self.companions if (found := getattr(self, name))}

    def train(self, mode: bool = True) -> Self:
        """Companions stay in evaluation mode."""
        super().train(mode)
        for companion in self.embedded().values():
            companion.eval()
        return self

    @property
    def float_dtype(self) -> torch.dtype:
        """That of its weights."""
        return next(self.parameters()).dtype

    def is_fitted(self) -> bool:
        """Whether all normalisers have statistics."""
        return all(bool(m.fitted) for m in self.modules() if isinstance(m, Normalizer))
