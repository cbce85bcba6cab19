"""The ordinary model of dynamics: an ensemble of networks, one step at a time (Chua et al. 2018)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from diffrl_lightning.modules.environment_model import EnvironmentModel
from diffrl_lightning.nets import EnsembleMLP
from diffrl_lightning.normalizers import TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import Imagined, TransitionBatch


class EnsembleDynamics(EnvironmentModel):
    """Gaussians of the state's change and of the reward, and the chance of a termination; K networks.

    The members are initialised apart and see the same batches (Lakshminarayanan et al. 2017). A
    prediction is their mean, fed back to them for the next step. No diffusion: a baseline.

    Args:
        num_members: K.
        hidden_dim: width.
        num_layers: hidden layers.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = TransitionBatch

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_members: int = 5,
        hidden_dim: int = 200,
        num_layers: int = 4,
        lr: float = 1e-3,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 1e-5,
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lr=lr,
            lr_schedule=lr_schedule,
            weight_decay=weight_decay,
            **training,
        )
        # Mean and spread of each change and of the reward, and the termination's log odds.
        self.members = EnsembleMLP(
            observation_dim + action_dim,
            2 * (observation_dim + 1) + 1,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_members=num_members,
        )
        self.ema = self.average(self.members)
        self.trajectory = TrajectoryNormalizer("gaussian", observation_dim, action_dim)
        self.rewards = make_normalizer("gaussian", 1)

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log likelihood (Chua et al. 2018, eq. 1), and cross entropy of terminations."""
        data = self.trajectory
        states = data.observations.normalize(batch["observations"])
        change = data.observations.normalize(batch["next_observations"]) - states
        rewards = self.rewards.normalize(batch["rewards"][:, None])
        actions = data.actions.normalize(batch["actions"])
        mean, std, ends = self._split(self.members(torch.cat([states, actions], -1)))
        error = ((mean - torch.cat([change, rewards], -1)) / std).square()
        likelihood = (0.5 * error + std.log()).mean()
        terminations = batch["terminations"].expand_as(ends)
        end_loss = binary_cross_entropy_with_logits(ends, terminations)
        info = {"nll": likelihood.detach(), "end_loss": end_loss.detach()}
        return likelihood + end_loss, info

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and standard deviations (K, B, O + 1), and log odds of a termination (K, B)."""
        width = self.observation_dim + 1
        mean, spread, ends = output.split([width, width, 1], -1)
        return mean, softplus(spread) + 1e-3, ends[..., 0]

    @torch.no_grad()
    def predict(self, states: Tensor, actions: Tensor) -> Imagined:
        """Roll out given actions (N, L, A) from states (N, O), in environment units.

        After a termination the state stays, and no reward follows.
        """
        normalizer = self.trajectory.observations
        at = normalizer.normalize(states)
        given = self.trajectory.actions.normalize(actions)
        ended = torch.zeros_like(at[:, 0])
        steps = []
        for step in given.unbind(1):
            mean, _, ends = self._split(self.ema(torch.cat([at, step], -1)))
            mean, alive = mean.mean(0), 1 - ended
            reward = self.rewards.unnormalize(mean[:, -1:])[:, 0] * alive
            ended = torch.maximum(ended, (ends.sigmoid().mean(0) > 0.5).to(at))
            steps.append((at, reward, ended))
            at = at + mean[:, :-1] * alive[:, None]
        observations, rewards, terminations = (torch.stack(x, 1) for x in zip(*steps, strict=True))
        return Imagined(normalizer.unnormalize(observations), actions, rewards, terminations)
