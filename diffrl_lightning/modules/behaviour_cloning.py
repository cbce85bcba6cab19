"""Behaviour cloning without diffusion: the ordinary baseline."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from diffrl_lightning.diffusion import randn
from diffrl_lightning.inputs import one_of
from diffrl_lightning.modules.acting import GaussianActing
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import mlp
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.types import Generators, InputError, Policy, TransitionBatch


class BehaviourCloning(DiffusionModule):
    """An MLP from a state to an action, or to a Gaussian over actions.

    The deterministic one minimises the squared error, and so averages what the data do in a state; the
    Gaussian one maximises the likelihood, its variance depending on the state.

    Args:
        distribution: of the actions.
        hidden_dim: width of the network.
        num_layers: hidden layers.
        normalizer: of states; actions are scaled to their range in the data.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = TransitionBatch
    acting = GaussianActing

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        distribution: Literal["deterministic", "gaussian"] = "deterministic",
        hidden_dim: int = 256,
        num_layers: int = 2,
        normalizer: NormalizerKind = "gaussian",
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **training)
        one_of(("deterministic", "gaussian"), distribution=distribution)
        self.gaussian = distribution == "gaussian"
        outputs = 2 * action_dim if self.gaussian else action_dim
        self.actor = mlp(observation_dim, hidden_dim, outputs, num_layers=num_layers)
        self.ema = self.average(self.actor)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error (Pomerleau 1989), or a Gaussian's negative log likelihood, a dimension."""
        output = self.actor(self.trajectory.observations.normalize(batch["observations"]))
        actions = self.trajectory.actions.normalize(batch["actions"])
        if not self.gaussian:
            return (output - actions).square().mean(), {}
        mean, log_std = _split(output)
        return (0.5 * ((actions - mean) / log_std.exp()).square() + log_std).mean(), {}

    def decide(
        self, states: Tensor, how: GaussianActing, *, generator: Generators = None
    ) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units."""
        output = self.ema(self.trajectory.observations.normalize(states))
        if self.gaussian:
            output, log_std = _split(output)
            if how.temperature:
                noise = randn(output.shape, generator=generator, like=output)
                output = output + how.temperature * log_std.exp() * noise
        return self.trajectory.actions.unnormalize(output.clamp(-1, 1))[:, None]

    def build_policy(self, how: GaussianActing) -> Policy:
        """A reactive policy.

        Raises:
            InputError: if a deterministic actor is to draw.
        """
        if how.temperature and not self.gaussian:
            raise InputError(
                f"temperature={how.temperature} needs distribution=gaussian: leave it at 0."
            )
        return super().build_policy(how)


def _split(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the standard deviation, each (B, A)."""
    mean, log_std = output.chunk(2, -1)
    return mean, log_std.clamp(-5, 2)
