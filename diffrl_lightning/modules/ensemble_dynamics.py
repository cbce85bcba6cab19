"""The ordinary model of dynamics: an ensemble of networks, one step at a time (Chua et al. 2018)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, EnsembleMLP
from diffrl_lightning.normalizers import TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import Imagined, InputError, TransitionBatch


class EnsembleDynamics(DiffusionModule):
    """Gaussians of the state's change and of the reward, and the chance of an end; K networks each.

    The members begin apart and see the same batches (Lakshminarayanan et al. 2017). A prediction is
    their mean, fed back to them for the next step. There is no diffusion in it: it is here to compare
    with.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        num_members: K.
        hidden_dim: width.
        num_layers: hidden layers.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        compile: compile the networks for training.

    Raises:
        InputError: if there are goals, or no members.
    """

    learns_from = "transitions"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        num_members: int = 5,
        hidden_dim: int = 200,
        num_layers: int = 4,
        lr: float = 1e-3,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 1e-5,
        ema_decay: float = 0.995,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        if num_members < 1:
            raise InputError(f"{num_members=} must be at least 1.")
        self.observation_dim = observation_dim
        # Mean and spread of each change and of the reward, and the end's log odds.
        self.members = EnsembleMLP(
            observation_dim + action_dim,
            2 * (observation_dim + 1) + 1,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_members=num_members,
        )
        self.ema = EMA(self.members, decay=ema_decay)
        self.trajectory = TrajectoryNormalizer("gaussian", observation_dim, action_dim)
        self.rewards = make_normalizer("gaussian", 1)

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The average follows all members."""
        return [(self.ema, self.members)]

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states, actions and rewards.

        Raises:
            InputError: if the data's rewards are not those of the environment.
        """
        self.refuse_mapped_rewards(datamodule)
        super().fit_normalizers(datamodule)
        self.rewards.fit(*datamodule.training_rows("rewards"))

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log likelihood of changes, rewards and ends, up to a constant."""
        data = self.trajectory
        states = data.observations.normalize(batch["observations"])
        change = data.observations.normalize(batch["next_observations"]) - states
        rewards = self.rewards.normalize(batch["rewards"][:, None])
        found = self.members(torch.cat([states, data.actions.normalize(batch["actions"])], -1))
        mean, std, ends = self._split(found)
        error = ((mean - torch.cat([change, rewards], -1)) / std).square()
        likelihood = (0.5 * error + std.log()).mean()
        wanted = batch["terminations"].expand_as(ends)
        end_loss = binary_cross_entropy_with_logits(ends, wanted)
        info = {"nll": likelihood.detach(), "end_loss": end_loss.detach()}
        return likelihood + end_loss, info

    def _split(self, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and standard deviations (K, B, O + 1), and log odds of the end (K, B)."""
        width = self.observation_dim + 1
        mean, spread, ends = found.split([width, width, 1], -1)
        return mean, softplus(spread) + 1e-3, ends[..., 0]

    @torch.no_grad()
    def predict(self, states: Tensor, actions: Tensor) -> Imagined:
        """What given actions (N, L, A) lead to from states (N, O), in environment units.

        After an end the state stays, and no reward follows.
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
