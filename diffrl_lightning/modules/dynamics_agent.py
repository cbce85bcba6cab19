"""An agent that learns in its own model of the world (PolyGRAD, Rigter et al. 2024)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import randn
from diffrl_lightning.modules.diffusion_dynamics import DiffusionDynamics
from diffrl_lightning.nets import EMA, Normal, mlp
from diffrl_lightning.normalizers import GaussianNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import ChunkBatch, Generators, InputError

_LEAST_STD = 0.1  # of the actor, of half the range of actions


class DynamicsAgent(DiffusionDynamics):
    """A model of dynamics, and an actor and a critic that learn from what it imagines they would do.

    Every optimiser step the model learns from a batch of what was recorded; every ``policy_every`` of
    them actor and critic learn too, from trajectories that begin in the batch's states and follow the
    actor (advantage actor-critic, with generalised advantages of an averaged critic). Nothing counts
    behind an imagined end. The actor is a Gaussian whose spread does not depend on the state.

    Online it learns from ``OnlineData``, with the callback ``Collect``; offline from ``ChunkData``.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        horizon: H, steps of a trajectory, taken from the data.
        backbone: of the model: ``mlp`` or ``transformer``.
        dim: width of the model.
        depth: its layers.
        num_heads: heads of the transformer.
        num_train_timesteps: T.
        schedule_power: abar = cos(pi u / 2) ** (2 power): the lower, the later comes the noise.
        follows: how imagined actions follow the actor: along its ``score``, or by ``draws`` from it.
        num_inference_steps: network evaluations of an imagined trajectory, default T.
        num_imagined: trajectories of a step of the policy, from states of the batch in turn.
        policy_every: optimiser steps from one step of the policy to the next.
        policy_start: optimiser steps before the first one.
        discount: of a step.
        gae_lambda: how far advantages look ahead before they trust the critic (Schulman et al. 2016).
        entropy_weight: weight of the actor's entropy.
        tune_lr: step of the logarithm of the guidance's step size.
        policy_dim: width of actor and critic.
        initial_std: standard deviation of the actor's Gaussian to begin with, above 0.1, its least; of
            half the range of actions.
        tau: share of the new weights that the averaged critic takes at a step.
        lr: learning rate of the model.
        actor_lr: that of the actor.
        critic_lr: that of the critic.
        lr_schedule: keep the rates, or let them fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay of the model.
        ema_decay: share of the model's average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.
        compile: compile the networks for training.

    Raises:
        InputError: if there are goals, or an argument is unknown or out of range.
    """

    learns_online = True
    chosen_by = None  # an agent's loss is no measure
    low: Tensor  # (A,) bounds of actions
    high: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        horizon: int = 10,
        backbone: Literal["mlp", "transformer"] = "mlp",
        dim: int = 1024,
        depth: int = 6,
        num_heads: int = 4,
        num_train_timesteps: int = 128,
        schedule_power: float = 0.1,
        follows: Literal["score", "draws"] = "score",
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
        lr: float = 3e-4,
        actor_lr: float = 3e-5,
        critic_lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.99,
        ema_update_every: int = 10,
        ema_start: int = 2000,
        compile: bool = False,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            goal_dim,
            horizon,
            backbone=backbone,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_train_timesteps=num_train_timesteps,
            schedule_power=schedule_power,
            follows=follows,
            lr=lr,
            lr_schedule=lr_schedule,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
            ema_update_every=ema_update_every,
            ema_start=ema_start,
            compile=compile,
        )
        self.save_hyperparameters()
        self.check_shares(discount=discount, gae_lambda=gae_lambda, tau=tau)
        if policy_every < 1 or policy_start < 0 or num_imagined < 2:
            raise InputError(
                f"{policy_every=} must be at least 1, {policy_start=} at least 0, {num_imagined=} 2."
            )

        if initial_std <= _LEAST_STD:
            raise InputError(
                f"{initial_std=} must be above {_LEAST_STD}, the least that it can be."
            )

        def layer() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(policy_dim), nn.ELU())

        self.actor = mlp(observation_dim, policy_dim, action_dim, activation=layer)
        log_std = math.log(initial_std - _LEAST_STD)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std))
        self.critic = mlp(observation_dim, policy_dim, 1, activation=layer)
        self.target_critic = EMA(self.critic, decay=1 - tau, update_every=policy_every)
        for name, bound in (("low", -1.0), ("high", 1.0)):
            self.register_buffer(name, torch.full((action_dim,), bound))

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The averages of the model and of the critic."""
        return [*super().averaged(), (self.target_critic, self.critic)]

    def param_groups(self) -> list[dict[str, Any]]:
        """Model, actor and critic; the model's weights alone decay."""
        options = self.hparams
        return [
            {"params": list(self.denoiser.parameters())},
            {"params": self._actor_parameters(), "lr": options["actor_lr"], "weight_decay": 0.0},
            {
                "params": list(self.critic.parameters()),
                "lr": options["critic_lr"],
                "weight_decay": 0.0,
            },
        ]

    def _actor_parameters(self) -> list[nn.Parameter]:
        return [*self.actor.parameters(), self.log_std]

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of what was recorded, and the environment's bounds of actions."""
        super().fit_normalizers(datamodule)
        space = datamodule.action_space()
        if space is not None:
            self.low.copy_(torch.from_numpy(space.low))
            self.high.copy_(torch.from_numpy(space.high))

    @torch.no_grad()
    def refit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics anew; what actor and critics find in a state stays as it was.

        The first layer of each takes in the change. The model has to follow it.
        """
        normalizer = self.trajectory.observations
        assert isinstance(normalizer, GaussianNormalizer)
        mean, std = normalizer.mean.clone(), normalizer.std.clone()
        self.fit_normalizers(datamodule)
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
        """The model's loss and, where it is their turn, the actor's and the critic's."""
        loss, info = super().compute_loss(batch)
        if not self._policy_steps():
            # Every parameter takes part in the graph, as processes that share gradients want it.
            idle = [*self._actor_parameters(), *self.critic.parameters()]
            return loss + 0 * torch.stack([p.sum() for p in idle]).sum(), info
        states = batch["observations"][:, 0]
        turn = torch.arange(self.hparams["num_imagined"], device=states.device) % len(states)
        states = states[turn]
        policy_loss, policy_info = self._policy_loss(states)
        return loss + policy_loss, info | policy_info

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave actor and critic out of the steps that are the model's alone."""
        if not self._policy_steps():
            for parameter in (*self._actor_parameters(), *self.critic.parameters()):
                parameter.grad = None

    def _policy_steps(self) -> bool:
        """Whether actor and critic take part in the step to come."""
        step, options = self.global_step + 1, self.hparams
        return not self.training or (
            step > options["policy_start"] and step % options["policy_every"] == 0
        )

    def _policy_loss(self, states: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of imagined trajectories from states (B, O)."""
        options = self.hparams
        imagined, spread = self.imagine(
            states, self.policy, num_inference_steps=options["num_inference_steps"]
        )
        if self.training and self.follows == "score":
            self.tune(spread, options["tune_lr"])
        seen = self.trajectory.observations.normalize(imagined.observations)
        with torch.no_grad():
            values = self._values(self.target_critic, seen)
            advantages = generalized_advantages(
                imagined.rewards,
                values,
                imagined.terminations,
                discount=options["discount"],
                gae_lambda=options["gae_lambda"],
            )
            targets = advantages + values[:, :-1]
            # What comes behind an end does not count.
            alive = torch.cat(
                [torch.ones_like(values[:, :1]), 1 - imagined.terminations[:, :-2]], 1
            )
            count = alive.sum()
            mean = (advantages * alive).sum() / count
            std = ((advantages - mean).square() * alive).sum().div(count).sqrt()
            scaled = (advantages - mean) / (std + 1e-8)
        found = self.policy(imagined.observations[:, :-1])
        gain = found.log_prob(imagined.actions[:, :-1]) * scaled
        entropy = found.std.log().sum(-1)  # up to a constant
        actor_loss = -((gain + options["entropy_weight"] * entropy) * alive).sum() / count
        value_error = (self._values(self.critic, seen[:, :-1]) - targets).square()
        critic_loss = 0.5 * (value_error * alive).sum() / count
        info = {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "spread": spread,
            "step_size": self.step_size.clone(),
            "imagined_reward": (imagined.rewards[:, :-1] * alive).sum() / count,
            "value": values.mean(),
            "policy_std": found.std.detach().mean(),
        }
        return actor_loss + critic_loss, info

    @staticmethod
    def _values(critic: Any, states: Tensor) -> Tensor:
        """Of normalised states (..., O), in full precision: small differences of large numbers."""
        with torch.autocast(states.device.type, enabled=False):
            return critic(states.float())[..., 0]

    def decide(
        self, states: Tensor, *, temperature: float = 0.0, generator: Generators = None
    ) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units.

        Args:
            states: current states.
            temperature: factor of the standard deviation; 0 plays the mean.
            generator: source of noise, one for all or one a state.
        """
        mean, std = self.policy(states)
        if temperature:
            mean = mean + temperature * std * randn(mean.shape, generator=generator, like=mean)
        return mean[:, None]

    def make_policy(self, *, temperature: float = 0.0) -> ChunkedPolicy:
        """A policy that acts in N environments as one batch.

        Args:
            temperature: factor of the standard deviation; 0 plays the mean.
        """
        return self.chunked_policy(partial(self.decide, temperature=temperature))


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
