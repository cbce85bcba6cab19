"""TD3+BC: a deterministic actor-critic that stays near the data (Fujimoto & Gu 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffrl_lightning.modules.base import Role
from diffrl_lightning.nets import EMA, TwinQ, frozen, mlp
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.types import Acting, Generators, TransitionBatch


class TD3BC(Role):
    """TD3 whose actor also clones: ``-alpha Q(s, pi(s)) / mean |Q| + (pi(s) - a)^2``.

    The ordinary baseline of offline reinforcement learning, and a judge of datasets; no diffusion.

    Args:
        hidden_dim: width of the actor and of the critics.
        num_layers: hidden layers of each.
        normalizer: of states; actions are scaled to their range in the data.
        discount: of a step.
        tau: share of the new weights that a target takes at an update.
        alpha: weight of the value against the cloning.
        policy_noise: standard deviation of the noise on the target's actions.
        noise_clip: bound of that noise.
        policy_delay: critic updates for one update of the actor and of the targets.
        training: keywords of :class:`Role`.
    """

    batch_type = TransitionBatch
    needs_rewards = True
    acting = Acting
    monitor = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden_dim: int = 256,
        num_layers: int = 2,
        normalizer: NormalizerKind = "gaussian",
        discount: float = 0.99,
        tau: float = 0.005,
        alpha: float = 2.5,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_delay: int = 2,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **training)
        self.policy_delay = policy_delay
        self.actor = nn.Sequential(
            mlp(observation_dim, hidden_dim, action_dim, num_layers=num_layers), nn.Tanh()
        )
        self.critic = TwinQ(
            observation_dim,
            action_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            activation="relu",
        )
        self.target_actor = EMA(self.actor, decay=1 - tau, update_every=policy_delay)
        self.target_critic = EMA(self.critic, decay=1 - tau, update_every=policy_delay)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def param_groups(self) -> list[dict[str, Any]]:
        """Actor and critics."""
        return [{"params": list(net.parameters())} for net in (self.actor, self.critic)]

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped double Q-learning, and the actor's loss (Fujimoto & Gu 2021, eq. 3 and 5)."""
        states = self.trajectory.observations.normalize(batch["observations"])
        actions = self.trajectory.actions.normalize(batch["actions"])
        q = self.critic(states, actions)
        critic_loss = (q - self._target(batch)).square().mean(1).sum()
        info = {"critic_loss": critic_loss.detach(), "q_mean": q.detach().mean()}
        if not self._actor_steps():
            # Every parameter takes part in the graph, as processes that share gradients want it.
            idle = sum(p.sum() for p in self.actor.parameters())
            return critic_loss + 0 * idle, info
        chosen = self.actor(states)
        value = frozen(self.critic)(states, chosen)[0]
        bc_loss = (chosen - actions).square().mean()
        q_loss = -value.mean() / value.detach().abs().mean()
        info |= {"bc_loss": bc_loss.detach(), "q_loss": q_loss.detach()}
        return critic_loss + self.hparams["alpha"] * q_loss + bc_loss, info

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave the actor out of the steps that are the critics' alone."""
        if not self._actor_steps():
            for parameter in self.actor.parameters():
                parameter.grad = None

    def _actor_steps(self) -> bool:
        """Whether the actor takes part in the step to come."""
        return (self.global_step + 1) % self.policy_delay == 0 or not self.training

    @torch.no_grad()
    def _target(self, batch: TransitionBatch) -> Tensor:
        """Clipped double Q of the next state, with a smoothed action; (B,)."""
        states = self.trajectory.observations.normalize(batch["next_observations"])
        mean = self.target_actor(states)
        bound = self.hparams["noise_clip"]
        noise = (self.hparams["policy_noise"] * torch.randn_like(mean)).clamp(-bound, bound)
        value = self.target_critic(states, (mean + noise).clamp(-1, 1)).amin(0)
        beyond = self.hparams["discount"] ** batch["steps"] * (1 - batch["terminations"])
        return batch["rewards"] + beyond * value

    def decide(self, states: Tensor, how: Acting, *, generator: Generators = None) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units."""
        chosen = self.actor(self.trajectory.observations.normalize(states))
        return self.trajectory.actions.unnormalize(chosen)[:, None]
