"""An agent that learns in its own model of the world (PolyGRAD, Rigter et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import randn
from diffrl_lightning.inputs import above
from diffrl_lightning.modules.acting import GaussianActing
from diffrl_lightning.modules.diffusion_dynamics import DiffusionDynamics
from diffrl_lightning.nets import EMA, Normal, mlp
from diffrl_lightning.normalizers import GaussianNormalizer
from diffrl_lightning.types import ChunkBatch, Generators, InputError, TrainingData

_LEAST_STD = 0.1  # of the actor, in half the range of actions


class DynamicsAgent(DiffusionDynamics):
    """A world model, and an actor-critic that learns from trajectories imagined in it.

    Every optimiser step the model learns from a batch of recorded chunks; every ``policy_every``-th
    actor and critic learn too, from trajectories that are imagined under the actor from the batch's
    states. The actor is a Gaussian whose standard deviation does not depend on the state.

    Online it learns from ``OnlineData``, with the callback ``Collect``; offline from ``ChunkData``.

    Args:
        num_inference_steps: network evaluations of an imagined trajectory, default T.
        num_imagined: trajectories of a step of the policy, from states of the batch in turn.
        policy_every: optimiser steps from one step of the policy to the next.
        policy_start: optimiser steps before the first one.
        discount: of a step.
        gae_lambda: how far advantages look ahead before they trust the critic, from 0 to 1.
        entropy_weight: weight of the actor's entropy.
        tune_lr: step of the logarithm of the guidance's step size.
        policy_dim: width of actor and critic.
        initial_std: standard deviation of the actor's Gaussian to begin with, above 0.1, its least; of
            half the range of actions.
        tau: share of the new weights that the target critic takes at a step.
        actor_lr: learning rate of the actor; ``lr`` is the model's.
        critic_lr: learning rate of the critic.
        model: keywords of :class:`DiffusionDynamics`.
    """

    acting = GaussianActing
    learns_online = True
    monitor = None  # an agent's loss is no measure
    low: Tensor  # (A,) bounds of actions
    high: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_inference_steps: int | None = None,
        num_imagined: int = 256,
        policy_every: int = 4,
        policy_start: int = 1000,
        discount: float = 0.99,
        gae_lambda: float = 0.9,
        entropy_weight: float = 1e-5,
        tune_lr: float = 3e-3,
        policy_dim: int = 256,
        initial_std: float = 1.0,
        tau: float = 0.005,
        actor_lr: float = 3e-5,
        critic_lr: float = 3e-4,
        **model: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **model)
        above(_LEAST_STD, initial_std=initial_std)

        def layer() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(policy_dim), nn.ELU())

        self.actor = mlp(observation_dim, policy_dim, action_dim, activation=layer)
        log_std = math.log(initial_std - _LEAST_STD)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std))
        self.critic = mlp(observation_dim, policy_dim, 1, activation=layer)
        self.target_critic = EMA(self.critic, decay=1 - tau, update_every=policy_every)
        self.register_buffer("low", torch.full((action_dim,), -1.0))
        self.register_buffer("high", torch.full((action_dim,), 1.0))

    def param_groups(self) -> list[dict[str, Any]]:
        """Model, actor and critic; the model's weights alone decay."""
        hparams, critic = self.hparams, list(self.critic.parameters())
        return [
            {"params": list(self.denoiser.parameters())},
            {"params": self._actor_parameters(), "lr": hparams["actor_lr"], "weight_decay": 0.0},
            {"params": critic, "lr": hparams["critic_lr"], "weight_decay": 0.0},
        ]

    def _actor_parameters(self) -> list[nn.Parameter]:
        return [*self.actor.parameters(), self.log_std]

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of what was recorded, and the environment's bounds of actions.

        Raises:
            InputError: if these are infinite.
        """
        super().fit_normalizers(data)
        space = data.action_space()
        if space is not None:
            if not np.isfinite([space.low, space.high]).all():
                raise InputError(
                    f"A DynamicsAgent acts between bounds, but {data.env_id!r} has the actions "
                    f"{space}: name an environment whose actions are bounded on both sides."
                )
            self.low.copy_(torch.from_numpy(space.low))
            self.high.copy_(torch.from_numpy(space.high))

    @torch.no_grad()
    def refit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics anew, without changing the functions that actor and critics compute.

        The first layer of each absorbs the change. The model has to follow it.
        """
        normalizer = self.trajectory.observations
        assert isinstance(normalizer, GaussianNormalizer)
        mean, std = normalizer.mean.clone(), normalizer.std.clone()
        self.fit_normalizers(data)
        shift, scale = (normalizer.mean - mean) / std, normalizer.std / std
        for net in (self.actor, self.critic, self.target_critic.net):
            first: Any = net[0]  # type: ignore[index]
            first.bias += first.weight @ shift
            first.weight *= scale

    def policy(self, states: Tensor) -> Normal:
        """The actor's Gaussian over actions (..., A) in states (..., O), in environment units."""
        h = self.actor(self.trajectory.observations.normalize(states)).tanh()
        scale, middle = (self.high - self.low) / 2, (self.high + self.low) / 2
        std = (self.log_std.exp() + _LEAST_STD) * scale
        return Normal(middle + scale * h, std.expand_as(h))

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss and, every ``policy_every`` steps, the actor's and the critic's."""
        loss, info = super().compute_loss(batch)
        if not self._policy_steps():
            # Every parameter takes part in the graph, as processes that share gradients want it.
            idle = [*self._actor_parameters(), *self.critic.parameters()]
            return loss + 0 * torch.stack([p.sum() for p in idle]).sum(), info
        states = batch["observations"][:, 0]
        turn = torch.arange(self.hparams["num_imagined"], device=states.device) % len(states)
        policy_loss, policy_info = self._policy_loss(states[turn])
        return loss + policy_loss, info | policy_info

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave actor and critic out of the steps that are the model's alone."""
        if not self._policy_steps():
            for parameter in (*self._actor_parameters(), *self.critic.parameters()):
                parameter.grad = None

    def _policy_steps(self) -> bool:
        """Whether actor and critic take part in the step to come."""
        step, hparams = self.global_step + 1, self.hparams
        return not self.training or (
            step > hparams["policy_start"] and step % hparams["policy_every"] == 0
        )

    def _policy_loss(self, states: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Advantage actor-critic (Mnih et al. 2016) on trajectories imagined from states (B, O).

        With standardised generalised advantages A of the target critic V', on the steps before a
        termination::

            - mean(A log pi(a | s) + entropy_weight H(pi))  +  1/2 mean (V(s) - (A + V'(s)))^2
        """
        hparams = self.hparams
        imagined, spread = self.imagine(
            states, self.policy, num_inference_steps=hparams["num_inference_steps"]
        )
        if self.training and self.follows == "score":
            self.tune(spread, hparams["tune_lr"])
        normalized = self.trajectory.observations.normalize(imagined.observations)
        with torch.no_grad():
            values = self._values(self.target_critic, normalized)
            advantages = generalized_advantages(
                imagined.rewards,
                values,
                imagined.terminations,
                discount=hparams["discount"],
                gae_lambda=hparams["gae_lambda"],
            )
            targets = advantages + values[:, :-1]
            alive = torch.ones_like(advantages)
            alive[:, 1:] = 1 - imagined.terminations[:, :-2]
            centred = advantages - _masked_mean(advantages, alive)
            scaled = centred / (_masked_mean(centred.square(), alive).sqrt() + 1e-8)
        pi = self.policy(imagined.observations[:, :-1])
        gain = pi.log_prob(imagined.actions[:, :-1]) * scaled
        entropy = pi.std.log().sum(-1)  # up to a constant
        actor_loss = -_masked_mean(gain + hparams["entropy_weight"] * entropy, alive)
        value_error = (self._values(self.critic, normalized[:, :-1]) - targets).square()
        critic_loss = 0.5 * _masked_mean(value_error, alive)
        info = {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "spread": spread,
            "step_size": self.step_size.clone(),
            "imagined_reward": _masked_mean(imagined.rewards[:, :-1], alive),
            "value": values.mean(),
            "policy_std": pi.std.detach().mean(),
        }
        return actor_loss + critic_loss, info

    @staticmethod
    def _values(critic: Any, states: Tensor) -> Tensor:
        """Values (...) of normalised states (..., O), in full precision: small differences count."""
        with torch.autocast(states.device.type, enabled=False):
            return critic(states.float())[..., 0]

    def decide(
        self, states: Tensor, how: GaussianActing, *, generator: Generators = None
    ) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units."""
        mean, std = self.policy(states)
        if how.temperature:
            mean = mean + how.temperature * std * randn(mean.shape, generator=generator, like=mean)
        return mean[:, None]


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    terminations: Tensor,
    *,
    discount: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantages (N, H - 1) of all but the last steps (Schulman et al. 2016, eq. 16).

    Args:
        rewards: (N, H).
        values: of the states (N, H).
        terminations: (N, H), 1 where a step ends the episode.
        discount: of a step.
        gae_lambda: 0 looks one step ahead, 1 to the end.
    """
    going = 1 - terminations[:, :-1]
    errors = rewards[:, :-1] + discount * going * values[:, 1:] - values[:, :-1]
    advantages, running = torch.empty_like(errors), torch.zeros_like(errors[:, 0])
    for t in reversed(range(errors.shape[1])):
        running = errors[:, t] + discount * gae_lambda * going[:, t] * running
        advantages[:, t] = running
    return advantages


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (N, L) where the mask (N, L) is 1."""
    return (x * mask).sum() / mask.sum()
