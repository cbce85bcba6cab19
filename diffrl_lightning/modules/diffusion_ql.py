"""Diffusion-QL: a diffusion policy that is improved by critics (Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    Sampler,
    Sampling,
    choose,
    ddpm_sample,
    draw,
    make_betas,
    randint,
)
from diffrl_lightning.inputs import one_of
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, DenoisingMLP, TwinQ, frozen
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.types import Generators, TransitionBatch


@dataclass(frozen=True, kw_only=True)
class QActing(Sampling):
    """How a DiffusionQL acts: candidates of the actor, of which the critics choose one.

    Args:
        num_candidates: actions drawn for each state.
        choice_temperature: one is drawn with probability proportional to exp(Q / choice_temperature),
            Q the lesser of the target critics; 0 takes the best.
        average: draw actions from the averaged actor, not from the last one.
    """

    sampler: Sampler = "ddpm"
    num_candidates: int = 50
    choice_temperature: float = 1.0
    average: bool = False


class DiffusionQL(DiffusionModule):
    """The action, given the state, is diffused; twin critics improve it.

    The actor's loss is that of the diffusion, which clones, and ``-q_weight Q_i / mean |Q_j|``, the
    value of its own actions by one critic, drawn anew for every batch, over the size of the other. Its
    gradient goes back through all steps of the sampler (``chain``), or through the estimate of the
    action that one step makes of a noised action of the data (``one_step``; EDP, Kang et al. 2023).
    The critics learn from actions of the averaged actor and from averaged critics.

    Args:
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
        critic_lr: learning rate of the critics; default the same.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = TransitionBatch
    needs_rewards = True
    acting = QActing
    monitor = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
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
        critic_lr: float | None = None,
        ema_update_every: int = 5,
        ema_start: int = 1000,
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            ema_update_every=ema_update_every,
            ema_start=ema_start,
            **training,
        )
        one_of(("chain", "one_step"), actor_loss=actor_loss)
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
        self.ema = self.average(self.denoiser)
        self.target_critic = EMA(self.critic, decay=1 - tau)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")

    def param_groups(self) -> list[dict[str, Any]]:
        """Actor and critics."""
        critic: dict[str, Any] = {"params": list(self.critic.parameters())}
        if self.hparams["critic_lr"] is not None:
            critic["lr"] = self.hparams["critic_lr"]
        return [{"params": list(self.denoiser.parameters())}, critic]

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss and the actor's, L_d + q_weight L_q (Wang et al. 2023, section 4)."""
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

    def decide(self, states: Tensor, how: QActing, *, generator: Generators = None) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units."""
        states = self.trajectory.observations.normalize(states)
        states = states.repeat_interleave(how.num_candidates, 0)
        net = self.ema if how.average else self.denoiser
        x = draw(
            self.diffusion,
            lambda x, t: net(x, t, states),
            (len(states), self.action_dim),
            how,
            like=states,
            clip=1.0,
            generator=generator,
        )
        candidates = x.unflatten(0, (-1, how.num_candidates))
        if how.num_candidates > 1:
            q = self.target_critic(states, x).amin(0).unflatten(0, (-1, how.num_candidates)).float()
            chosen = choose(q, how.choice_temperature, generator)
            candidates = candidates.take_along_dim(chosen[:, None, None], 1)
        return self.trajectory.actions.unnormalize(candidates)
