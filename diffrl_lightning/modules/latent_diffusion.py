"""A diffusion prior over skills (the second stage of LDCQ, Venkatraman et al. 2024)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    Sampler,
    check_sampling,
    classifier_free,
    draw,
    make_betas,
)
from diffrl_lightning.modules.base import SAME_SKILLS, DiffusionModule
from diffrl_lightning.nets import EMA, ConditionalDenoiser, ResidualMLP
from diffrl_lightning.normalizers import make_normalizer
from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import ChunkBatch, Generators, InputError

_MOST_ENCODED = 20_000  # chunks that the latents' statistics are of
_MOST_SIGNAL = 1e-2
_STEPS = 10  # network evaluations of a skill


class LatentDiffusion(DiffusionModule):
    """Skills given the state, diffused: p(z | s_0) with as many modes as the data have.

    Learned are the means that the encoder of a ``LatentSkills`` finds for the data's chunks; that model
    is frozen, and travels in this one's checkpoint. The loss has the weight min(SNR, snr_gamma) of a
    step, and the state is dropped at random, so that guidance has an unconditional model to lead away
    from. Acting draws a skill, which the decoder then plays; where the environment has a goal, several
    are drawn, followed by others in thought, and the first skill of the line is played that comes
    closest to it.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: G, taken from the data; a goal is about the first G entries of the state.
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
        snr_gamma: bound of a step's weight, which is small at noisy steps, where the shares of modes
            are decided: with few updates None, for equal weights, keeps them better.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        compile: compile the network for training.

    Raises:
        InputError: if the schedule leaves a signal, or an argument is out of range.
    """

    learns_from = "chunks"
    companions: ClassVar = {"skills": ("skill_prior", SAME_SKILLS)}

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
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
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        betas = make_betas(beta_schedule, num_train_timesteps)
        self.diffusion = GaussianDiffusion(betas, prediction_type)
        left = self.diffusion.alphas_cumprod[-1].item()
        if left >= _MOST_SIGNAL:
            raise InputError(
                f"{beta_schedule=} with {num_train_timesteps=} leaves {left:.2g} of the signal at its "
                "last step, where sampling begins from noise alone: use cosine, or more steps, for "
                f"less than {_MOST_SIGNAL}."
            )
        if snr_gamma is not None and snr_gamma <= 0:
            raise InputError(f"{snr_gamma=} must be above 0, or null for equal weights.")
        self.latent_dim, self.snr_gamma = latent_dim, snr_gamma
        net = ResidualMLP(
            latent_dim, cond_dim=embed_dim, hidden_dim=hidden_dim, num_blocks=num_blocks
        )
        self.denoiser = ConditionalDenoiser(
            net,
            condition_dims={"state": observation_dim},
            embed_dim=embed_dim,
            drop_prob=cond_drop_prob,
        )
        self.ema = EMA(self.denoiser, decay=ema_decay)
        self.latents = make_normalizer("gaussian", latent_dim)
        self.skills: Any = None
        self._encoded: Tensor | None = None  # (N, D) of all training chunks

    def setup(self, stage: str) -> None:
        """Refuse goals that are not about the state.

        Raises:
            InputError: naming what would do.
        """
        super().setup(stage)
        if self.hparams["goal_dim"]:
            self.trainer.datamodule.check_goal_leads_state()  # type: ignore[attr-defined]

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training chunks' skills."""
        count = datamodule.train_data.num_chunks
        rows = torch.linspace(0, count - 1, min(count, _MOST_ENCODED)).long()
        self.latents.fit(self._means(datamodule.train_data, rows))

    def on_fit_start(self) -> None:
        """Encode all training chunks, once."""
        super().on_fit_start()
        data = self.trainer.datamodule.train_data  # type: ignore[attr-defined]
        self._encoded = self.encode_all(data, show_progress=self.trainer.is_global_zero)

    @torch.no_grad()
    def encode_all(self, data: Any, *, show_progress: bool = False) -> Tensor:
        """The skills of all chunks of a dataset (N, D), normalised."""
        rows = torch.arange(data.num_chunks)
        return self.latents.normalize(self._means(data, rows, show_progress=show_progress))

    @torch.no_grad()
    def _means(self, data: Any, rows: Tensor, *, show_progress: bool = False) -> Tensor:
        """Of the encoder for these chunks (N, D)."""
        silent = None if show_progress else True  # None: where no one looks
        parts = tqdm(rows.split(4096), desc="Encoding", unit="batch", leave=False, disable=silent)
        return torch.cat([self.skills.encode(_moved(data[p], self.device)).mean for p in parts])

    @torch.no_grad()
    def encode(self, batch: ChunkBatch) -> Tensor:
        """The skills (B, D) that chunks show, normalised: the means of the encoder."""
        return self.latents.normalize(self.skills.encode(batch).mean)

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the denoised skill."""
        known = self._encoded
        latents = known[batch["chunks"]] if self.training and known is not None else None
        latents = self.encode(batch) if latents is None else latents
        condition = self._condition(batch["observations"][:, 0])
        loss = self.diffusion.loss(
            lambda x, t: self.denoiser(x, t, condition), latents, snr_gamma=self.snr_gamma
        )
        return loss.mean(), {}

    def sample_skills(
        self,
        states: Tensor,
        num_samples: int = 1,
        *,
        guidance_scale: float = 1.0,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        generator: Generators = None,
    ) -> Tensor:
        """Skills (N, num_samples, D), normalised, in states (N, O) of the environment's units.

        Keywords are those of :meth:`make_policy`; ``generator`` is one for all or one a state.
        """
        if num_inference_steps is None:
            num_inference_steps = min(_STEPS, self.diffusion.num_train_timesteps)
        condition = self._condition(states.repeat_interleave(num_samples, 0))
        net: Any = self.ema.net
        given, free = (net.bind(told, condition["state"]) for told in (condition, {}))
        x = draw(
            self.diffusion,
            classifier_free(given, free, guidance_scale),
            (len(states) * num_samples, self.latent_dim),
            like=condition["state"],
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            generator=generator,
        )
        return x.unflatten(0, (len(states), num_samples))

    def decode(self, states: Tensor, skills: Tensor, steps: Tensor, **options: Any) -> Tensor:
        """Actions (N, A) of normalised skills (N, D) in states (N, O), as the decoder's."""
        return self.skills.decode(states, self.latents.unnormalize(skills), steps, **options)

    def ends(self, states: Tensor, skills: Tensor) -> Tensor:
        """The states (N, O) that normalised skills (N, D) are expected to lead to."""
        return self.skills.ends(states, self.latents.unnormalize(skills))

    def choose(
        self,
        states: Tensor,
        goals: Tensor | None,
        *,
        num_candidates: int = 1,
        planning_depth: int = 3,
        generator: Generators = None,
        **sampling: Any,
    ) -> Tensor:
        """Skills (N, D) in states (N, O): drawn, or those that come closest to goals (N, G).

        Keywords are those of :meth:`make_policy`.
        """
        first = self.sample_skills(states, num_candidates, generator=generator, **sampling)
        if goals is None:
            return first[:, 0]
        wanted = goals.repeat_interleave(num_candidates, 0)
        at = states.repeat_interleave(num_candidates, 0)
        skills = first.flatten(0, 1)
        nearest = at.new_full((len(at),), torch.inf)
        for depth in range(planning_depth):
            if depth:
                skills = self.sample_skills(at, generator=generator, **sampling)[:, 0]
            at = self.ends(at, skills)
            distance = (at[:, : goals.shape[1]] - wanted).norm(dim=1)
            nearest = nearest.minimum(distance)
        best = nearest.unflatten(0, (len(states), -1)).argmin(1)
        return first.take_along_dim(best[:, None, None], 1)[:, 0]

    def make_policy(
        self,
        *,
        n_action_steps: int | None = None,
        num_candidates: int | None = None,
        planning_depth: int = 3,
        guidance_scale: float = 1.0,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        action_temperature: float = 0.0,
    ) -> SkillPolicy:
        """A policy that draws a skill, and lets it act.

        Args:
            n_action_steps: steps that a skill acts for, default H.
            num_candidates: with a goal, lines of skills that are thought of; default 50.
            planning_depth: with a goal, skills of a line.
            guidance_scale: classifier-free; 0 is without regard to the state, 1 as the data are.
            sampler: how to denoise.
            num_inference_steps: network evaluations of a skill, default 10.
            temperature: standard deviation of the skills' noise, 1 as in training.
            action_temperature: factor of the actions' standard deviation; 0 plays the mean.
        """
        goals = self.hparams["goal_dim"] > 0
        if num_candidates is None:
            num_candidates = 50 if goals else 1
        if num_candidates < 1 or planning_depth < 1:
            raise InputError(f"{num_candidates=} and {planning_depth=} must be at least 1.")
        if not goals and num_candidates > 1:
            raise InputError(f"{num_candidates=} are chosen from by a goal, and there is none.")
        check_sampling(self.diffusion, sampler, num_inference_steps)
        choose = partial(
            self.choose,
            num_candidates=num_candidates,
            planning_depth=planning_depth,
            guidance_scale=guidance_scale,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
        )
        decode = partial(self.decode, temperature=action_temperature)
        return self.skill_policy(choose, decode, n_action_steps=n_action_steps)

    def _condition(self, states: Tensor) -> dict[str, Tensor]:
        return {"state": self.skills.trajectory.observations.normalize(states)}


def _moved(batch: Any, device: torch.device) -> Any:
    return {name: value.to(device) for name, value in batch.items()}
