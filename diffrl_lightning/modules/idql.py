"""IDQL: implicit Q-learning critics over a cloned diffusion policy (Hansen-Estruch et al. 2023)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    Sampler,
    check_sampling,
    choose,
    draw,
    make_betas,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, ResidualMLP, TwinQ, mlp
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import Generators, InputError, TransitionBatch

Choice = Literal["argmax", "expectile"]


class IDQL(DiffusionModule):
    """The action, given the state, is diffused and cloned; critics choose among samples.

    V is the ``expectile`` of Q over the data's actions, Q learns from V of the next state (implicit
    Q-learning, Kostrikov et al. 2022), and neither ever sees an action that is not in the data. The
    sampler adds noise of variance beta, as the original; it bounds the estimate of the clean action
    at every step, where the original bounds the noised action itself.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
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
        lr: learning rate.
        lr_schedule: keep the actor's rate, or let it fall to 0 along a cosine over the whole run.
        critic_lr_schedule: the same for critics and value.
        critic_steps: optimiser steps that critics and value learn for; then they stay, and the actor
            learns on. Default as many as the actor's.
        weight_decay: decoupled weight decay of the actor.
        ema_decay: share of the actor's average that each update keeps.
        ema_update_every: optimiser steps from one update of it to the next.
        ema_start: optimiser steps before averaging begins; until then the average is the actor.
        compile: compile the networks for training.

    Raises:
        InputError: if there are goals, or an argument is out of range.
    """

    learns_from = "transitions"
    chosen_by = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
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
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        critic_lr_schedule: Literal["constant", "cosine"] = "constant",
        critic_steps: int | None = None,
        weight_decay: float = 1e-4,
        ema_decay: float = 0.999,
        ema_update_every: int = 1,
        ema_start: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        self.check_shares(tau=tau, discount=discount)
        if num_critics < 1:
            raise InputError(f"{num_critics=} must be at least 1.")
        if critic_steps is not None and critic_steps < 1:
            raise InputError(f"{critic_steps=} must be at least 1, or null for the whole run.")
        if not 0 < expectile < 1:
            raise InputError(f"{expectile=} must lie in (0, 1).")
        self.observation_dim, self.action_dim = observation_dim, action_dim
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
        self.ema = EMA(
            self.denoiser, decay=ema_decay, update_every=ema_update_every, start=ema_start
        )
        self.target_critic = EMA(self.critic, decay=1 - tau)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The averages of the actor and, while these learn, of the critics."""
        critics = [(self.target_critic, self.critic)] if self._critics_learn() else []
        return [(self.ema, self.denoiser), *critics]

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
        """Losses of V and of Q, and Q (K, B), at normalised states and actions."""
        following = self.trajectory.observations.normalize(batch["next_observations"])
        with torch.no_grad():
            wanted = self.target_critic(states, actions).amin(0)
            beyond = self.discount ** batch["steps"] * (1 - batch["terminations"])
            target = batch["rewards"] + beyond * self.value(following)[:, 0]
        short = wanted - self.value(states)[:, 0]
        value_loss = (self._weight(short) * short.square()).mean()
        q = self.critic(states, actions)
        return value_loss, (q - target).square().mean(1).sum(), q

    def _weight(self, short: Tensor) -> Tensor:
        """Of a sample by how much V falls short of its Q: ``|expectile - 1(Q < V)|``."""
        return torch.where(short < 0, 1 - self.expectile, self.expectile)

    def decide(
        self,
        states: Tensor,
        *,
        num_candidates: int = 64,
        choice: Choice = "argmax",
        sampler: Sampler = "ddpm",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        generator: Generators = None,
    ) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units.

        Keywords are those of :meth:`make_policy`.
        """
        states = self.trajectory.observations.normalize(states)
        many = states.repeat_interleave(num_candidates, 0)
        x = draw(
            self.diffusion,
            lambda x, t: self.ema(x, t, many),
            (len(many), self.action_dim),
            like=many,
            sampler=sampler,
            variance="beta",
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            clip=1.0,
            generator=generator,
        )
        q = self.target_critic(many, x).amin(0).unflatten(0, (-1, num_candidates)).float()
        if choice == "argmax":
            chosen = choose(q)
        else:
            chosen = choose(self._weight(q - self.value(states)).log(), 1.0, generator)
        candidates = x.unflatten(0, (-1, num_candidates))
        return self.trajectory.actions.unnormalize(
            candidates.take_along_dim(chosen[:, None, None], 1)
        )

    def make_policy(
        self,
        *,
        num_candidates: int = 64,
        choice: Choice = "argmax",
        sampler: Sampler = "ddpm",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
    ) -> ChunkedPolicy:
        """A policy that acts in N environments as one batch.

        Args:
            num_candidates: actions drawn for each state, of which the critics choose one; 1 clones.
            choice: ``argmax`` takes that of the highest Q, the lesser of the target critics;
                ``expectile`` draws one by its weight in V's loss: the policy that V is the value of.
            sampler: how to denoise.
            num_inference_steps: network evaluations, default T.
            temperature: standard deviation of the noise, 1 as in training.
        """
        if num_candidates < 1 or choice not in ("argmax", "expectile"):
            raise InputError(
                f"{num_candidates=} must be at least 1, {choice=} argmax or expectile."
            )
        check_sampling(self.diffusion, sampler, num_inference_steps)
        decide = partial(
            self.decide,
            num_candidates=num_candidates,
            choice=choice,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
        )
        return self.chunked_policy(decide)
