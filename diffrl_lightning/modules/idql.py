"""IDQL: implicit Q-learning critics over a cloned diffusion policy (Hansen-Estruch et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    Sampler,
    Sampling,
    choose,
    draw,
    make_betas,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, ResidualMLP, TwinQ, mlp
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.types import Generators, TransitionBatch


@dataclass(frozen=True, kw_only=True)
class IDQLActing(Sampling):
    """How an IDQL acts: candidates of the cloned actor, of which the critics choose one.

    Args:
        num_candidates: actions drawn for each state; 1 clones.
        choice: ``argmax`` takes the candidate of the highest Q, the lesser of the target critics;
            ``expectile`` draws one by its weight in V's loss: the policy that V is the value of.
    """

    sampler: Sampler = "ddpm"
    num_candidates: int = 64
    choice: Literal["argmax", "expectile"] = "argmax"


class IDQL(DiffusionModule):
    """The action, given the state, is diffused and cloned; critics choose among samples.

    V is the ``expectile`` of Q over the data's actions, Q learns from V of the next state (implicit
    Q-learning, Kostrikov et al. 2022), and neither ever sees an action that is not in the data. The
    sampler adds noise of variance beta, as the original; it bounds the estimate of the clean action
    at every step, where the original bounds the noised action itself.

    Args:
        expectile: 0.5 is the mean; towards 1, the best action of the data.
        hidden_dim: width of the actor's residual stream.
        num_blocks: residual blocks of the actor, four times as wide inside.
        dropout: of the actor.
        critic_hidden_dim: width of the critics.
        critic_layers: hidden layers of the critics.
        num_critics: Q is the least of so many; more of them see through samples that one overrates.
        critic_layer_norm: normalise the critics' hidden layers, so that they overrate less.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        normalizer: of states; actions are scaled to their range in the data.
        discount: of a step.
        tau: share of the new weights that the target critics take at a step.
        critic_lr_schedule: ``lr_schedule`` of critics and value.
        critic_steps: optimiser steps that critics and value learn for; then they stay, and the actor
            learns on. Default as many as the actor's.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = TransitionBatch
    needs_rewards = True
    acting = IDQLActing
    monitor = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        expectile: float = 0.7,
        hidden_dim: int = 256,
        num_blocks: int = 3,
        dropout: float = 0.1,
        critic_hidden_dim: int = 256,
        critic_layers: int = 2,
        num_critics: int = 2,
        critic_layer_norm: bool = False,
        num_train_timesteps: int = 5,
        beta_schedule: BetaSchedule = "vp",
        normalizer: NormalizerKind = "none",
        discount: float = 0.99,
        tau: float = 0.005,
        critic_lr_schedule: Literal["constant", "cosine"] = "constant",
        critic_steps: int | None = None,
        weight_decay: float = 1e-4,
        ema_decay: float = 0.999,
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
            **training,
        )
        self.expectile, self.discount = expectile, discount
        self.diffusion = GaussianDiffusion(make_betas(beta_schedule, num_train_timesteps))
        self.denoiser = ResidualMLP(
            action_dim,
            cond_dim=observation_dim,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            dropout=dropout,
        )
        self.critic = TwinQ(
            observation_dim,
            action_dim,
            hidden_dim=critic_hidden_dim,
            num_layers=critic_layers,
            activation="relu",
            num_heads=num_critics,
            layer_norm=critic_layer_norm,
        )
        self.value = mlp(observation_dim, critic_hidden_dim, 1, num_layers=critic_layers)
        self.ema = self.average(self.denoiser)
        self.target_critic = EMA(self.critic, decay=1 - tau)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def averages(self) -> list[EMA]:
        """The actor's and, while these learn, the critics'."""
        return [self.ema, self.target_critic] if self._critics_learn() else [self.ema]

    def _critics_learn(self) -> bool:
        last = self.hparams["critic_steps"]
        return last is None or self.global_step < last

    def param_groups(self) -> list[dict[str, Any]]:
        """Actor, critics and value; the actor's weights alone decay."""
        options = {
            "weight_decay": 0.0,
            "lr_schedule": self.hparams["critic_lr_schedule"],
            "lr_steps": self.hparams["critic_steps"],
        }
        critics = ({"params": list(n.parameters()), **options} for n in (self.critic, self.value))
        return [{"params": list(self.denoiser.parameters())}, *critics]

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cloning, expectile regression of V, and Q towards V; each reaches its own network alone."""
        states = self.trajectory.observations.normalize(batch["observations"])
        actions = self.trajectory.actions.normalize(batch["actions"])
        bc_loss = self.diffusion.loss(lambda x, t: self.denoiser(x, t, states), actions).mean()
        info = {"bc_loss": bc_loss.detach()}
        if not self._critics_learn():
            # Processes side by side wait for a gradient of every weight: theirs is 0, as is their rate.
            stay = [p.sum() for net in (self.critic, self.value) for p in net.parameters()]
            return bc_loss + 0.0 * torch.stack(stay).sum(), info
        value_loss, critic_loss, q = self._critic_losses(batch, states, actions)
        info |= {
            "value_loss": value_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "q_mean": q.detach().mean(),
        }
        return bc_loss + value_loss + critic_loss, info

    def _critic_losses(
        self, batch: TransitionBatch, states: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_V and L_Q (Kostrikov et al. 2022, eq. 5 and 6), and Q (K, B), at normalised inputs."""
        following = self.trajectory.observations.normalize(batch["next_observations"])
        with torch.no_grad():
            wanted = self.target_critic(states, actions).amin(0)
            beyond = self.discount ** batch["steps"] * (1 - batch["terminations"])
            target = batch["rewards"] + beyond * self.value(following)[:, 0]
        advantage = wanted - self.value(states)[:, 0]
        value_loss = (self._weight(advantage) * advantage.square()).mean()
        q = self.critic(states, actions)
        return value_loss, (q - target).square().mean(1).sum(), q

    def _weight(self, advantage: Tensor) -> Tensor:
        """Expectile weight |expectile - 1(Q - V < 0)|, (B,) (Kostrikov et al. 2022, eq. 5)."""
        return torch.where(advantage < 0, 1 - self.expectile, self.expectile)

    def decide(self, states: Tensor, how: IDQLActing, *, generator: Generators = None) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units."""
        states = self.trajectory.observations.normalize(states)
        many = states.repeat_interleave(how.num_candidates, 0)
        x = draw(
            self.diffusion,
            lambda x, t: self.ema(x, t, many),
            (len(many), self.action_dim),
            how,
            like=many,
            variance="beta",
            clip=1.0,
            generator=generator,
        )
        candidates = x.unflatten(0, (-1, how.num_candidates))
        q = self.target_critic(many, x).amin(0).unflatten(0, (-1, how.num_candidates)).float()
        if how.choice == "argmax":
            chosen = choose(q)
        else:
            chosen = choose(self._weight(q - self.value(states)).log(), 1.0, generator)
        return self.trajectory.actions.unnormalize(
            candidates.take_along_dim(chosen[:, None, None], 1)
        )
