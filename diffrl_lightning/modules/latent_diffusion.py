"""A diffusion prior over skills (the second stage of LDCQ, Venkatraman et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    classifier_free,
    draw,
    make_betas,
)
from diffrl_lightning.modules.acting import SkillSampling
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.companions import SAME_SKILLS
from diffrl_lightning.nets import ConditionalDenoiser, ResidualMLP
from diffrl_lightning.normalizers import make_normalizer
from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import ChunkBatch, Generators, InputError, TrainingData

_MOST_ENCODED = 20_000  # chunks that the latents' statistics are of
_MOST_SIGNAL = 1e-2


@dataclass(frozen=True, kw_only=True)
class SkillPlanActing(SkillSampling):
    """How a LatentDiffusion acts: by a skill that is drawn or, towards a goal, planned.

    Args:
        num_candidates: with a goal, sequences of skills that are imagined; default 50.
        planning_depth: with a goal, skills of a sequence.
    """

    num_candidates: int | None = None
    planning_depth: int = 3


class LatentDiffusion(DiffusionModule):
    """Skills given the state, diffused: p(z | s_0) with as many modes as the data have.

    The data are the means that the encoder of a ``LatentSkills`` has for all chunks; that model is
    frozen, and travels in this one's checkpoint. The state is dropped at random in training, for
    classifier-free guidance. Acting draws a skill, which the decoder then plays; where the environment
    has a goal, several are drawn, others are drawn where these are expected to end, and so on, and
    the first skill of the sequence that comes closest to the goal is played.

    Args:
        horizon: H, steps of a skill, taken from the data.
        skills_ckpt: checkpoint of the LatentSkills.
        latent_dim: D, that of the skills.
        hidden_dim: width of the denoiser's residual stream.
        num_blocks: its residual blocks, four times as wide inside.
        embed_dim: width of the state's embedding.
        cond_drop_prob: chance that a sample's state is dropped in training.
        num_train_timesteps: T.
        beta_schedule: noise schedule, whose last step leaves less than 1e-2 of the signal.
        prediction_type: what the denoiser predicts.
        snr_gamma: weigh steps by min(SNR, snr_gamma); that is small at noisy steps, where the shares of
            modes are decided: with few updates None, for equal weights, keeps them better.
        training: keywords of :class:`DiffusionModule`; goals are about the state's first entries.

    Raises:
        InputError: if the schedule leaves a signal, or an argument is out of range.
    """

    batch_type = ChunkBatch
    takes_goals = True
    acting = SkillPlanActing
    companions: ClassVar = {"skills": ("skill_prior", SAME_SKILLS)}

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 10,
        skills_ckpt: str | None = None,
        latent_dim: int = 16,
        hidden_dim: int = 256,
        num_blocks: int = 3,
        embed_dim: int = 64,
        cond_drop_prob: float = 0.1,
        num_train_timesteps: int = 100,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "x0",
        snr_gamma: float | None = 5.0,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, lr_schedule=lr_schedule, **training)
        betas = make_betas(beta_schedule, num_train_timesteps)
        self.diffusion = GaussianDiffusion(betas, prediction_type)
        left = self.diffusion.alphas_cumprod[-1].item()
        if left >= _MOST_SIGNAL:
            raise InputError(
                f"{beta_schedule=} with {num_train_timesteps=} leaves {left:.2g} of the signal at its "
                "last step, where sampling begins from noise alone: use cosine, or more steps, for "
                f"less than {_MOST_SIGNAL}."
            )
        self.horizon, self.latent_dim, self.snr_gamma = horizon, latent_dim, snr_gamma
        net = ResidualMLP(
            latent_dim, cond_dim=embed_dim, hidden_dim=hidden_dim, num_blocks=num_blocks
        )
        self.denoiser = ConditionalDenoiser(
            net,
            condition_dims={"state": observation_dim},
            embed_dim=embed_dim,
            drop_prob=cond_drop_prob,
        )
        self.ema = self.average(self.denoiser)
        self.latents = make_normalizer("gaussian", latent_dim)
        self.skills: Any = None
        self._encoded: Tensor | None = None  # (N, D) of all training chunks

    def setup(self, stage: str) -> None:
        """Refuse goals that are not about the state."""
        super().setup(stage)
        if self.goal_dim:
            self.trainer.datamodule.check_goal_leads_state()  # type: ignore[attr-defined]

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training chunks' skills."""
        count = data.train_data.num_starts
        rows = torch.linspace(0, count - 1, min(count, _MOST_ENCODED)).long()
        self.latents.fit(self._means(data.train_data, rows))

    def on_fit_start(self) -> None:
        """Encode all training chunks, once."""
        super().on_fit_start()
        chunks = self.trainer.datamodule.train_data  # type: ignore[attr-defined]
        self._encoded = self.encode_all(chunks, show_progress=self.trainer.is_global_zero)

    @torch.no_grad()
    def encode_all(self, chunks: Any, *, show_progress: bool = False) -> Tensor:
        """The skills of all chunks of a dataset (N, D), normalised."""
        rows = torch.arange(chunks.num_starts)
        return self.latents.normalize(self._means(chunks, rows, show_progress=show_progress))

    @torch.no_grad()
    def _means(self, chunks: Any, rows: Tensor, *, show_progress: bool = False) -> Tensor:
        """The encoder's means for some chunks of a dataset (N, D)."""
        silent = None if show_progress else True  # None: where no one looks
        means = []
        for part in tqdm(
            rows.split(4096), desc="Encoding", unit="batch", leave=False, disable=silent
        ):
            batch: Any = {name: value.to(self.device) for name, value in chunks[part].items()}
            means.append(self.skills.encode(batch).mean)
        return torch.cat(means)

    @torch.no_grad()
    def encode(self, batch: ChunkBatch) -> Tensor:
        """The skills (B, D) of chunks, normalised: the encoder's means."""
        return self.latents.normalize(self.skills.encode(batch).mean)

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the denoised skill (Ho et al. 2020, eq. 14), by min(SNR, gamma) (Hang et al. 2023).

        That is LDCQ's prior (section 4.1): gamma is ``snr_gamma``, 5 as published.
        """
        if self.training and self._encoded is not None:
            latents = self._encoded[batch["chunks"]]
        else:
            latents = self.encode(batch)
        condition = self._condition(batch["observations"][:, 0])
        loss = self.diffusion.loss(
            lambda x, t: self.denoiser(x, t, condition), latents, snr_gamma=self.snr_gamma
        )
        return loss.mean(), {}

    def sample_skills(
        self,
        states: Tensor,
        num_samples: int = 1,
        how: SkillSampling | None = None,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """Skills (N, num_samples, D), normalised, in states (N, O) in environment units.

        Args:
            states: current states.
            num_samples: skills of each.
            how: ways to sample.
            generator: source of noise, one for all or one a state.
        """
        how = how or SkillSampling()
        condition = self._condition(states.repeat_interleave(num_samples, 0))
        net: Any = self.ema.net
        conditional, unconditional = (net.bind(c, condition["state"]) for c in (condition, {}))
        x = draw(
            self.diffusion,
            classifier_free(conditional, unconditional, how.guidance_scale),
            (len(states) * num_samples, self.latent_dim),
            how,
            like=condition["state"],
            generator=generator,
        )
        return x.unflatten(0, (len(states), num_samples))

    def decode(self, states: Tensor, skills: Tensor, steps: Tensor, **options: Any) -> Tensor:
        """Actions (N, A) of normalised skills (N, D) in states (N, O), as the decoder's."""
        return self.skills.decode(states, self.latents.unnormalize(skills), steps, **options)

    def ends(self, states: Tensor, skills: Tensor) -> Tensor:
        """The mean end (N, O) of normalised skills (N, D) from states (N, O)."""
        return self.skills.ends(states, self.latents.unnormalize(skills))

    def choose(
        self,
        states: Tensor,
        goals: Tensor | None,
        how: SkillPlanActing,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """Skills (N, D) in states (N, O): drawn, or the first of those that come closest to the goal.

        Args:
            states: current states.
            goals: (N, G), if there are any.
            how: ways to sample and to plan.
            generator: source of noise, one for all or one a state.
        """
        num_candidates = how.num_candidates or (50 if self.goal_dim else 1)
        first = self.sample_skills(states, num_candidates, how, generator=generator)
        if goals is None:
            return first[:, 0]
        wanted = goals.repeat_interleave(num_candidates, 0)
        at = states.repeat_interleave(num_candidates, 0)
        skills = first.flatten(0, 1)
        nearest = at.new_full((len(at),), torch.inf)
        for depth in range(how.planning_depth):
            if depth:
                skills = self.sample_skills(at, 1, how, generator=generator)[:, 0]
            at = self.ends(at, skills)
            distance = (at[:, : goals.shape[1]] - wanted).norm(dim=1)
            nearest = nearest.minimum(distance)
        best = nearest.unflatten(0, (len(states), -1)).argmin(1)
        return first.take_along_dim(best[:, None, None], 1)[:, 0]

    def build_policy(self, how: SkillPlanActing) -> SkillPolicy:
        """A policy that chooses a skill, and lets it act.

        Raises:
            InputError: if there is no goal to plan for, a skill is too short, or T is exceeded.
        """
        if not self.goal_dim and (how.num_candidates or 1) > 1:
            raise InputError(
                f"num_candidates={how.num_candidates} are chosen from by a goal, and there is none."
            )
        how.timesteps(self.diffusion)
        return SkillPolicy(
            partial(self.choose, how=how),
            partial(self.decode, temperature=how.action_temperature),
            horizon=self.horizon,
            n_action_steps=how.n_action_steps,
            **self.policy_options(),
        )

    def _condition(self, states: Tensor) -> dict[str, Tensor]:
        return {"state": self.skills.trajectory.observations.normalize(states)}
