"""Behaviour cloning without diffusion: the ordinary baseline."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from diffrl_lightning.diffusion import randn
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, mlp
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import Generators, InputError, TransitionBatch


class BehaviourCloning(DiffusionModule):
    """An MLP from a state to an action, or to a Gaussian over actions.

    The deterministic one minimises the squared error, and so averages what the data do in a state; the
    Gaussian one maximises the likelihood, its variance depending on the state.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        distribution: of the actions.
        hidden_dim: width of the network.
        num_layers: hidden layers.
        normalizer: of states; actions are scaled to their range in the data.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        compile: compile the network for training.

    Raises:
        InputError: if there are goals, or an argument is unknown.
    """

    learns_from = "transitions"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        distribution: Literal["deterministic", "gaussian"] = "deterministic",
        hidden_dim: int = 256,
        num_layers: int = 2,
        normalizer: NormalizerKind = "gaussian",
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        if distribution not in ("deterministic", "gaussian"):
            raise InputError(f"{distribution=} is unknown: choose deterministic or gaussian.")
        self.gaussian = distribution == "gaussian"
        self.observation_dim, self.action_dim = observation_dim, action_dim
        outputs = 2 * action_dim if self.gaussian else action_dim
        self.actor = mlp(observation_dim, hidden_dim, outputs, num_layers=num_layers)
        self.ema = EMA(self.actor, decay=ema_decay)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The average follows the actor."""
        return [(self.ema, self.actor)]

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error, or negative log likelihood up to a constant, a dimension."""
        output = self.actor(self.trajectory.observations.normalize(batch["observations"]))
        actions = self.trajectory.actions.normalize(batch["actions"])
        if not self.gaussian:
            return (output - actions).square().mean(), {}
        mean, log_std = _split(output)
        return (0.5 * ((actions - mean) / log_std.exp()).square() + log_std).mean(), {}

    def decide(
        self, states: Tensor, *, temperature: float = 0.0, generator: Generators = None
    ) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units.

        Args:
            states: current states.
            temperature: factor of the Gaussian's standard deviation; 0 plays the mean.
            generator: source of noise, one for all or one a state.
        """
        output = self.ema(self.trajectory.observations.normalize(states))
        if self.gaussian:
            output, log_std = _split(output)
            if temperature:
                noise = randn(output.shape, generator=generator, like=output)
                output = output + temperature * log_std.exp() * noise
        return self.trajectory.actions.unnormalize(output.clamp(-1, 1))[:, None]

    def make_policy(self, *, temperature: float = 0.0) -> ChunkedPolicy:
        """A policy that acts in N environments as one batch.

        Args:
            temperature: factor of the Gaussian's standard deviation; 0 plays the mean.
        """
        if temperature and not self.gaussian:
            raise InputError(f"{temperature=} needs distribution=gaussian: leave it at 0.")
        return self.chunked_policy(partial(self.decide, temperature=temperature))


def _split(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the standard deviation, each (B, A)."""
    mean, log_std = output.chunk(2, -1)
    return mean, log_std.clamp(-5, 2)
