"""Skills: chunks of behaviour in a latent space (the first stage of LDCQ, Venkatraman et al. 2024)."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import MeanMetric

from diffrl_lightning.diffusion import randn
from diffrl_lightning.modules.acting import SkillActing
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import Normal, SkillVAE
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import ChunkBatch, Generators

_ERRORS = ("action_error", "action_error_prior", "end_error", "end_error_prior")


class LatentSkills(DiffusionModule):
    """A beta-VAE of chunks of H steps, whose latents are skills.

    The encoder is q(z | s, a), the prior p(z | s_0) is learned with it, and the decoder is a policy
    pi(a | s, z), which acts in closed loop, one entry of the action after the other. A second decoder
    predicts the end of the chunk, the state behind its last step, from a detached z: it does not
    shape the latent.

    Validation logs root mean squared errors of decoded actions, in the states of held-out chunks, and
    of decoded ends, in normalised units: with z the encoder's mean and, as the control, the prior's.

    Args:
        horizon: H, steps of a skill, taken from the data.
        latent_dim: D, entries of a skill.
        hidden_dim: width of all networks.
        num_layers: layers of the encoder's GRU.
        kl_weight: weight of the divergence from the prior (beta).
        step_aware: condition the decoder of actions on the step within the skill. Skills may then hold
            a plan for each step, the data's noise included; as published they hold but how to act.
        min_std: least standard deviation of a decoded entry, normalised: below it nothing is gained.
        normalizer: of states; actions are scaled to their range in the data.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = ChunkBatch
    val_metrics = ("loss", *_ERRORS)
    takes_goals = True  # but goals are no part of a skill
    acting = SkillActing

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 10,
        latent_dim: int = 16,
        hidden_dim: int = 256,
        num_layers: int = 4,
        kl_weight: float = 0.05,
        step_aware: bool = False,
        min_std: float = 0.01,
        normalizer: NormalizerKind = "gaussian",
        lr: float = 5e-5,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, lr=lr, **training)
        self.horizon, self.kl_weight, self.step_aware = horizon, kl_weight, step_aware
        self.vae = SkillVAE(
            observation_dim,
            action_dim,
            latent_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            min_std=min_std,
            clock_dim=horizon if step_aware else 0,
        )
        self.ema = self.average(self.vae)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")
        self.errors = nn.ModuleDict({name: MeanMetric() for name in _ERRORS})

    def compiled_nets(self) -> list[nn.Module]:
        """The networks of the VAE, which are called one by one."""
        return list(self.vae.children())

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative evidence lower bound of the chunks, a step (beta-VAE, Higgins et al. 2017, eq. 4).

        With z drawn from q, and sums over the real steps of a chunk (LDCQ, section 4.1)::

            [ - sum_t log pi(a_t | s_t, z) - log p(s_H | s_0, sg z) + kl_weight KL(q || p) ] / H
        """
        states, actions, end = self._normalized(batch)
        mask = batch["mask"]
        posterior = self.vae.encoder(states, actions, mask)
        z = posterior.mean + posterior.std * randn(posterior.mean.shape, like=states)
        decoded = self.vae.policy(self._chunk_inputs(states, z), actions)
        likelihood = (decoded.log_prob(actions) * mask).sum(1)
        divergence = posterior.kl(self.vae.prior(states[:, 0]))
        end_likelihood = self.vae.end(states[:, 0], z.detach()).log_prob(end)
        terms = -likelihood - end_likelihood + self.kl_weight * divergence
        info = {
            "action_nll": -likelihood.detach().sum() / batch["steps"].sum(),
            "end_nll": -end_likelihood.detach().mean(),
            "kl": divergence.detach().mean(),
        }
        return terms.mean() / self.horizon, info

    def validation_step(self, batch: ChunkBatch, batch_idx: int) -> None:
        """The loss, and the errors of decoded actions and ends."""
        super().validation_step(batch, batch_idx)
        states, actions, end = self._normalized(batch)
        nets, mask = self._nets, batch["mask"]
        latents = {
            "": nets.encoder(states, actions, mask).mean,
            "_prior": nets.prior(states[:, 0]).mean,
        }
        for name, z in latents.items():
            decoded = nets.policy.act(self._chunk_inputs(states, z))  # type: ignore[operator]
            error = (decoded[mask] - actions[mask]).square().mean()
            self.errors[f"action_error{name}"].update(error)  # type: ignore[operator]
            ends = nets.end(states[:, 0], z).mean  # type: ignore[operator]
            self.errors[f"end_error{name}"].update((ends - end).square().mean())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the whole validation."""
        for name, metric in self.errors.items():
            self.log(f"val/{name}", metric.compute().sqrt())  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]

    @property
    def _nets(self) -> SkillVAE:
        """The averaged networks."""
        return cast(SkillVAE, self.ema.net)

    def encode(self, batch: ChunkBatch) -> Normal:
        """The posterior over the skills (B, D) of chunks."""
        states, actions, _ = self._normalized(batch)
        return self._nets.encoder(states, actions, batch["mask"])

    def skill_prior(self, states: Tensor) -> Normal:
        """The learned Gaussian prior over skills (N, D) in states (N, O)."""
        return self._nets.prior(self.trajectory.observations.normalize(states))

    def sample_skills(
        self, states: Tensor, num_samples: int = 1, *, generator: Generators = None
    ) -> Tensor:
        """Skills (N, num_samples, D) drawn from the learned Gaussian prior in states (N, O)."""
        prior = self.skill_prior(states.repeat_interleave(num_samples, 0))
        noise = randn(prior.mean.shape, generator=generator, like=prior.mean)
        return (prior.mean + prior.std * noise).unflatten(0, (len(states), num_samples))

    def choose(
        self, states: Tensor, goals: Tensor | None, *, generator: Generators = None
    ) -> Tensor:
        """Skills (N, D) drawn from the learned Gaussian prior, whatever the goal."""
        return self.sample_skills(states, generator=generator)[:, 0]

    def decode(
        self,
        states: Tensor,
        skills: Tensor,
        steps: Tensor,
        *,
        temperature: float = 0.0,
        generator: Generators = None,
    ) -> Tensor:
        """Actions (N, A) of skills (N, D) in states (N, O), in environment units.

        Args:
            states: current states.
            skills: latents.
            steps: how many steps each skill has acted for (N,).
            temperature: factor of the standard deviation; 0 plays the mean.
            generator: source of noise, one for all or one a state.
        """
        x = self._inputs(self.trajectory.observations.normalize(states), skills, steps)
        noise = None
        if temperature:
            shape = (len(states), self.action_dim)
            noise = temperature * randn(shape, generator=generator, like=states)
        actions = self._nets.policy.act(x, noise).clamp(-1, 1)
        return self.trajectory.actions.unnormalize(actions)

    def ends(self, states: Tensor, skills: Tensor) -> Tensor:
        """The mean end (N, O) of skills (N, D) from states (N, O), in environment units."""
        states = self.trajectory.observations.normalize(states)
        return self.trajectory.observations.unnormalize(self._nets.end(states, skills).mean)

    def build_policy(self, how: SkillActing) -> SkillPolicy:
        """A policy that draws skills from the Gaussian prior: the control of a diffused one.

        Raises:
            InputError: if a skill is to act for longer than it was learned.
        """
        return SkillPolicy(
            self.choose,
            partial(self.decode, temperature=how.action_temperature),
            horizon=self.horizon,
            n_action_steps=how.n_action_steps,
            **self.policy_options(),
        )

    def _chunk_inputs(self, states: Tensor, z: Tensor) -> Tensor:
        """Inputs of the action decoder (B, H, .) for states (B, H, O) and one skill each (B, D)."""
        steps = torch.arange(self.horizon, device=z.device).expand(len(z), -1)
        return self._inputs(states, z[:, None].expand(-1, self.horizon, -1), steps)

    def _inputs(self, states: Tensor, skills: Tensor, steps: Tensor) -> Tensor:
        """Inputs of the action decoder: states (..., O), skills (..., D) and perhaps steps (...)."""
        x = torch.cat([states, skills], -1)
        return torch.cat([x, one_hot(steps, self.horizon).to(x)], -1) if self.step_aware else x

    def _normalized(self, batch: ChunkBatch) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, H, O), actions (B, H, A) and the end (B, O)."""
        data = self.trajectory
        return (
            data.observations.normalize(batch["observations"]),
            data.actions.normalize(batch["actions"]),
            data.observations.normalize(batch["next_observations"]),
        )
