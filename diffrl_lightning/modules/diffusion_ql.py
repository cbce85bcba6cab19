"""Diffusion-QL: a diffusion policy that is improved by critics (Wang et al. 2023)."""

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
    ddpm_sample,
    draw,
    make_betas,
    randint,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, DenoisingMLP, TwinQ, frozen
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import Generators, InputError, TransitionBatch


class DiffusionQL(DiffusionModule):
    """The action, given the state, is diffused; twin critics improve it.

    The actor's loss is that of the diffusion, which clones, and ``-q_weight Q_i / mean |Q_j|``, the
    value of its own actions by one critic, drawn anew for every batch, over the size of the other. Its
    gradient goes back through all steps of the sampler (``chain``), or through the estimate of the
    action that one step makes of a noised action of the data (``one_step``; EDP, Kang et al. 2023).
    The critics learn from actions of the averaged actor and from averaged critics.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        actor_loss: where the value's gradient goes through.
        q_weight: weight of the value against the cloning, "eta".
        max_q_backup: take, by each critic, the best of several next actions in the target.
        num_backup_actions: how many next actions that are.
        hidden_dim: width of the actor and of the critics.
        num_layers: hidden layers of each.
        critic_layer_norm: normalise the critics' hidden layers, so that they overrate less.
        num_train_timesteps: T, steps of the diffusion, all of which the chain takes.
        beta_schedule: noise schedule.
        normalizer: of states; actions are scaled to their range in the data.
        discount: of a step.
        tau: share of the new weights that the target critics take at a step.
        lr: learning rate of the actor.
        critic_lr: learning rate of the critics; default the same.
        lr_schedule: keep the rates, or let them fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the actor's average that each update keeps.
        ema_update_every: optimiser steps from one update of it to the next.
        ema_start: optimiser steps before averaging begins; until then the average is the actor.
        compile: compile the networks for training.

    Raises:
        InputError: if there are goals, or an argument is unknown or out of range.
    """

    learns_from = "transitions"
    chosen_by = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        actor_loss: Literal["chain", "one_step"] = "chain",
        q_weight: float = 1.0,
        max_q_backup: bool = False,
        num_backup_actions: int = 10,
        hidden_dim: int = 256,
        num_layers: int = 3,
        critic_layer_norm: bool = False,
        num_train_timesteps: int = 5,
        beta_schedule: BetaSchedule = "vp",
        normalizer: NormalizerKind = "none",
        discount: float = 0.99,
        tau: float = 0.005,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        ema_update_every: int = 5,
        ema_start: int = 1000,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        self.check_shares(tau=tau, discount=discount)
        if actor_loss not in ("chain", "one_step"):
            raise InputError(f"{actor_loss=} is unknown: choose chain or one_step.")
        if num_backup_actions < 1:
            raise InputError(f"{num_backup_actions=} must be at least 1.")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.actor_loss, self.q_weight, self.discount = actor_loss, q_weight, discount
        self.num_next_actions = num_backup_actions if max_q_backup else 1
        self.diffusion = GaussianDiffusion(make_betas(beta_schedule, num_train_timesteps))
        self.denoiser = DenoisingMLP(
            action_dim, cond_dim=observation_dim, hidden_dim=hidden_dim, num_layers=num_layers
        )
        self.critic = TwinQ(
            observation_dim,
            action_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            layer_norm=critic_layer_norm,
        )
        self.ema = EMA(
            self.denoiser, decay=ema_decay, update_every=ema_update_every, start=ema_start
        )
        self.target_critic = EMA(self.critic, decay=1 - tau)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The averages of the actor and of the critics."""
        return [(self.ema, self.denoiser), (self.target_critic, self.critic)]

    def param_groups(self) -> list[dict[str, Any]]:
        """Actor and critics."""
        critic: dict[str, Any] = {"params": list(self.critic.parameters())}
        if self.hparams["critic_lr"] is not None:
            critic["lr"] = self.hparams["critic_lr"]
        return [{"params": list(self.denoiser.parameters())}, critic]

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss and the actor's; each reaches its own network alone."""
        states = self.trajectory.observations.normalize(batch["observations"])
        actions = self.trajectory.actions.normalize(batch["actions"])
        q = self.critic(states, actions)
        critic_loss = (q - self._target(batch)).square().mean(1).sum()
        bc_loss, chosen = self._clone(states, actions)
        one = randint(2, q[:1])
        value = frozen(self.critic)(states, chosen, one)
        with torch.no_grad():
            size = self.critic(states, chosen, 1 - one).abs().mean()
        q_loss = -value.mean() / size
        info = {
            "critic_loss": critic_loss.detach(),
            "bc_loss": bc_loss.detach(),
            "q_loss": q_loss.detach(),
            "q_mean": q.detach().mean(),
        }
        return critic_loss + bc_loss + self.q_weight * q_loss, info

    def sample_actions(
        self, denoise: nn.Module, states: Tensor, *, differentiable: bool = False
    ) -> Tensor:
        """Normalised actions (B, A) for normalised states (B, O), by all steps of the chain.

        Args:
            denoise: the actor, or its average.
            states: normalised.
            differentiable: keep the graph.
        """
        x = torch.randn(len(states), self.action_dim, device=states.device, dtype=states.dtype)
        return ddpm_sample(
            self.diffusion,
            lambda x, t: denoise(x, t, states),
            x,
            clip=1.0,
            differentiable=differentiable,
        )

    def _clone(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the diffusion, and the actor's actions (B, A) with their graph."""
        t = randint(self.diffusion.num_train_timesteps, actions)
        eps = torch.randn_like(actions)
        xt = self.diffusion.add_noise(actions, eps, t)
        prediction = self.denoiser(xt, t, states)
        bc_loss = (prediction - eps).square().mean()
        if self.actor_loss == "one_step":
            return bc_loss, self.diffusion.to_x0(prediction, xt, t).clamp(-1, 1)
        return bc_loss, self.sample_actions(self.denoiser, states, differentiable=True)

    @torch.no_grad()
    def _target(self, batch: TransitionBatch) -> Tensor:
        """Reward and discounted value of the next state, by the averages; (B,)."""
        states = self.trajectory.observations.normalize(batch["next_observations"])
        states = states.repeat_interleave(self.num_next_actions, 0)
        q = self.target_critic(states, self.sample_actions(self.ema, states))
        value = q.unflatten(1, (-1, self.num_next_actions)).amax(-1).amin(0)
        beyond = self.discount ** batch["steps"] * (1 - batch["terminations"])
        return batch["rewards"] + beyond * value

    def decide(
        self,
        states: Tensor,
        *,
        num_candidates: int = 50,
        choice_temperature: float = 1.0,
        average: bool = False,
        sampler: Sampler = "ddpm",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        generator: Generators = None,
    ) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units.

        Keywords are those of :meth:`make_policy`.
        """
        states = self.trajectory.observations.normalize(states)
        states = states.repeat_interleave(num_candidates, 0)
        net = self.ema if average else self.denoiser
        x = draw(
            self.diffusion,
            lambda x, t: net(x, t, states),
            (len(states), self.action_dim),
            like=states,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            clip=1.0,
            generator=generator,
        )
        candidates = x.unflatten(0, (-1, num_candidates))
        if num_candidates > 1:
            q = self.target_critic(states, x).amin(0).unflatten(0, (-1, num_candidates)).float()
            chosen = choose(q, choice_temperature, generator)
            candidates = candidates.take_along_dim(chosen[:, None, None], 1)
        return self.trajectory.actions.unnormalize(candidates)

    def make_policy(
        self,
        *,
        num_candidates: int = 50,
        choice_temperature: float = 1.0,
        average: bool = False,
        sampler: Sampler = "ddpm",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
    ) -> ChunkedPolicy:
        """A policy that acts in N environments as one batch.

        Args:
            num_candidates: actions drawn for each state, of which the critics choose one.
            choice_temperature: it is drawn with probability proportional to exp(Q /
                choice_temperature), Q the lesser of the target critics; 0 takes the best.
            average: draw actions from the averaged actor, not from the last one.
            sampler: how to denoise.
            num_inference_steps: network evaluations, default T.
            temperature: standard deviation of the noise, 1 as in training.
        """
        if num_candidates < 1 or choice_temperature < 0:
            raise InputError(
                f"{num_candidates=} must be at least 1, {choice_temperature=} at least 0."
            )
        check_sampling(self.diffusion, sampler, num_inference_steps)
        decide = partial(
            self.decide,
            num_candidates=num_candidates,
            choice_temperature=choice_temperature,
            average=average,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
        )
        return self.chunked_policy(decide)
