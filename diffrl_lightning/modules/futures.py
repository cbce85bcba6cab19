"""Futures of a DiffusedValue: how they are drawn, and what they are conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffrl_lightning.diffusion import GaussianDiffusion, Sampling, inference_timesteps
from diffrl_lightning.inputs import between, one_of
from diffrl_lightning.normalizers import TrajectoryNormalizer
from diffrl_lightning.types import FutureBatch, InputError

_POLICIES = {
    "none": "None",
    "place": "a number from 0 to 1",
    "set": "states and actions of steps that it took",
}


@dataclass(frozen=True, kw_only=True)
class FutureSampling(Sampling):
    """How a DiffusedValue draws futures; by default by 10 network evaluations, or T if that is less.

    Args:
        num_samples: S, futures of each state.
        discount: of the futures, default that of the training; another one needs
            ``offset_condition``, and a higher one extrapolates beyond the futures of the training.
    """

    num_samples: int = 16
    discount: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        between(0, 1, discount=self.discount)

    def timesteps(self, diffusion: GaussianDiffusion) -> list[int]:
        """As of :class:`Sampling`, with a default of its own."""
        if self.num_inference_steps is not None:
            return super().timesteps(diffusion)
        total = diffusion.num_train_timesteps
        return inference_timesteps(total, min(10, total))


class FutureConditions:
    """The conditions of a DiffusedValue's networks by name: ``state``, ``action``, ``policy``.

    Args:
        trajectory: normaliser of states and actions.
        policy_condition: how the policy is represented: ``none``, ``place`` or ``set``.
        num_origins: datasets of the data's list, whose places go from 0 to 1.

    Raises:
        InputError: if the representation is unknown, or there is but one place.
    """

    def __init__(
        self, trajectory: TrajectoryNormalizer, policy_condition: str, num_origins: int
    ) -> None:
        one_of(tuple(_POLICIES), policy_condition=policy_condition)
        if policy_condition == "place" and num_origins < 2:
            raise InputError(
                "policy_condition=place needs data.dataset to be a list, one dataset a policy."
            )
        self.trajectory, self.kind, self.num_origins = trajectory, policy_condition, num_origins

    @property
    def dims(self) -> dict[str, int]:
        """The width of each condition."""
        dims = {"state": self.trajectory.observations.dim, "action": self.trajectory.actions.dim}
        policy = {"none": {}, "place": {"policy": 1}, "set": {"policy": sum(dims.values())}}
        return dims | policy[self.kind]

    def of_batch(self, batch: FutureBatch) -> dict[str, Tensor]:
        """Conditions of the steps of a batch, with the policies that took them."""
        conditions = self.of(batch["observations"], batch["actions"])
        if self.kind == "place":
            place = batch["origins"].to(batch["rewards"]) / (self.num_origins - 1)
            conditions["policy"] = place[:, None]
        elif self.kind == "set":
            steps = (batch["context_actions"], batch["context_observations"])
            conditions["policy"] = self.trajectory.join(*steps)
        return conditions

    def of(
        self,
        states: Tensor,
        actions: Tensor | None = None,
        policy: float | tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Conditions of states (N, O) and actions (N, A) in environment units.

        Args:
            states: (N, O).
            actions: (N, A); None leaves them out.
            policy: its place in the list of datasets, from 0 to 1, or states (M, O) and actions (M, A)
                of steps that it took; None leaves it out.

        Raises:
            InputError: if the model was trained with another condition on the policy.
        """
        conditions = {"state": self.trajectory.observations.normalize(states)}
        if policy is not None:
            if self.kind != ("set" if isinstance(policy, tuple) else "place"):
                raise InputError(
                    f"This model was trained with policy_condition={self.kind}: give as policy "
                    f"{_POLICIES[self.kind]}."
                )
            if isinstance(policy, tuple):
                steps = self.trajectory.join(policy[1], policy[0]).to(states)
                conditions["policy"] = steps.expand(len(states), -1, -1)
            else:
                conditions["policy"] = states.new_full((len(states), 1), policy)
        if actions is not None:
            conditions["action"] = self.trajectory.actions.normalize(actions)
        return conditions


def encode_offset(offsets: Tensor) -> Tensor:
    """Encodes the offset as log k, (B, 1)."""
    return offsets.log()[:, None]
