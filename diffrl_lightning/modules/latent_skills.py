"""Skills: chunks of behaviour in a latent space (the first stage of LDCQ, Venkatraman et al. 2024)."""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import MeanMetric

from diffrl_lightning.diffusion import randn
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, Normal, SkillVAE
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import ChunkBatch, Generators, InputError

_ERRORS = ("action_error", "action_error_prior", "end_error", "end_error_prior")


class LatentSkills(DiffusionModule):
    """A variational autoencoder of chunks of H steps, whose latents are skills.

    The loss of a chunk, with sums over its real steps::

        [ - sum_t log pi(a_t | s_t, z) - log p(s_H | s_0, sg z) + kl_weight KL(q || p) ] / H

    Here z is drawn from the encoder q(z | s, a), and p is the learned prior p(z | s_0). The policy pi
    decodes a skill in closed loop, one entry of the action after the other. The end of the chunk, the
    state behind its last step, is decoded from a z that gradients do not reach: it does not shape the
    latent.

    Validation logs how far decoded actions are from those of held-out chunks, in their own states, and
    decoded ends from theirs, given the start alone: root mean squares of normalised entries, with z the
    encoder's mean and, as the control, the prior's.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; goals are no part of a skill.
        horizon: H, steps of a skill, taken from the data.
        latent_dim: D, entries of a skill.
        hidden_dim: width of all networks.
        num_layers: layers of the encoder's GRU.
        kl_weight: weight of the divergence from the prior (beta).
        step_aware: tell the decoder of actions at which of its steps a skill is. A skill may then hold
            what happens at each one, the data's noise too; as published it holds but how to act.
        min_std: least standard deviation of a decoded entry, normalised: below it nothing is gained.
        normalizer: of states; actions are scaled to their range in the data.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.

    Raises:
        InputError: if an argument is out of range.
    """

    learns_from = "chunks"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        horizon: int = 10,
        latent_dim: int = 16,
        hidden_dim: int = 256,
        num_layers: int = 4,
        kl_weight: float = 0.05,
        step_aware: bool = False,
        min_std: float = 0.01,
        normalizer: NormalizerKind = "gaussian",
        lr: float = 5e-5,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if horizon < 1 or latent_dim < 1 or num_layers < 1:
            raise InputError(f"{horizon=}, {latent_dim=} and {num_layers=} must be at least 1.")
        if kl_weight < 0 or min_std <= 0:
            raise InputError(f"{kl_weight=} must be at least 0, {min_std=} above 0.")
        self.horizon, self.action_dim, self.kl_weight = horizon, action_dim, kl_weight
        self.step_aware = step_aware
        self.vae = SkillVAE(
            observation_dim,
            action_dim,
            latent_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            min_std=min_std,
            clock_dim=horizon if step_aware else 0,
        )
        self.ema = EMA(self.vae, decay=ema_decay)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")
        self.errors = nn.ModuleDict({name: MeanMetric() for name in _ERRORS})

    @property
    def _nets(self) -> SkillVAE:
        """The averaged networks."""
        return cast(SkillVAE, self.ema.net)

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The average follows all networks."""
        return [(self.ema, self.vae)]

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The chunks' negative log likelihood and divergence, a step."""
        states, actions, end = self._normalized(batch)
        mask = batch["mask"]
        found = self.vae.encoder(states, actions, mask)
        z = found.mean + found.std * randn(found.mean.shape, like=states)
        decoded = self.vae.policy(self._seen_in_chunk(states, z), actions)
        likelihood = (decoded.log_prob(actions) * mask).sum(1)
        divergence = found.kl(self.vae.prior(states[:, 0]))
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
            decoded = nets.policy.act(self._seen_in_chunk(states, z))  # type: ignore[operator]
            wrong = (decoded[mask] - actions[mask]).square().mean()
            self.errors[f"action_error{name}"].update(wrong)  # type: ignore[operator]
            ends = nets.end(states[:, 0], z).mean  # type: ignore[operator]
            self.errors[f"end_error{name}"].update((ends - end).square().mean())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the whole validation."""
        for name, metric in self.errors.items():
            self.log(f"val/{name}", metric.compute().sqrt())  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]

    def encode(self, batch: ChunkBatch) -> Normal:
        """The skills (B, D) that chunks show."""
        states, actions, _ = self._normalized(batch)
        return self._nets.encoder(states, actions, batch["mask"])

    def skill_prior(self, states: Tensor) -> Normal:
        """The Gaussian over skills (N, D) in states (N, O) that the encoder was held to."""
        return self._nets.prior(self.trajectory.observations.normalize(states))

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
        x = self._seen(self.trajectory.observations.normalize(states), skills, steps)
        noise = None
        if temperature:
            shape = (len(states), self.action_dim)
            noise = temperature * randn(shape, generator=generator, like=states)
        actions = self._nets.policy.act(x, noise).clamp(-1, 1)
        return self.trajectory.actions.unnormalize(actions)

    def ends(self, states: Tensor, skills: Tensor) -> Tensor:
        """The states (N, O) that skills (N, D) are expected to lead to, in environment units."""
        states = self.trajectory.observations.normalize(states)
        return self.trajectory.observations.unnormalize(self._nets.end(states, skills).mean)

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

    def make_policy(
        self, *, n_action_steps: int | None = None, action_temperature: float = 0.0
    ) -> SkillPolicy:
        """A policy that draws skills from the Gaussian prior: the control of a diffused one.

        Args:
            n_action_steps: steps that a skill acts for, default H.
            action_temperature: factor of the actions' standard deviation; 0 plays the mean.
        """
        return self.skill_policy(
            self.choose,
            partial(self.decode, temperature=action_temperature),
            n_action_steps=n_action_steps,
        )

    def _seen_in_chunk(self, states: Tensor, z: Tensor) -> Tensor:
        """What the decoder of actions sees of states (B, H, O) and a skill (B, D)."""
        steps = torch.arange(self.horizon, device=z.device).expand(len(z), -1)
        return self._seen(states, z[:, None].expand(-1, self.horizon, -1), steps)

    def _seen(self, states: Tensor, skills: Tensor, steps: Tensor) -> Tensor:
        """What the decoder of actions sees: states (..., O), skills (..., D), steps (...) if told."""
        seen = torch.cat([states, skills], -1)
        if not self.step_aware:
            return seen
        return torch.cat([seen, one_hot(steps, self.horizon).to(seen)], -1)

    def _normalized(self, batch: ChunkBatch) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, H, O), actions (B, H, A) and the end (B, O)."""
        data = self.trajectory
        return (
            data.observations.normalize(batch["observations"]),
            data.actions.normalize(batch["actions"]),
            data.observations.normalize(batch["next_observations"]),
        )
