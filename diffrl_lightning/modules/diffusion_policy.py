"""Diffusion Policy: chunks of actions, diffused given the last observations (Chi et al. 2023)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    Sampler,
    check_sampling,
    draw,
    make_betas,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, ChunkBackbone, make_chunk_backbone
from diffrl_lightning.normalizers import BOUNDED, NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import Generators, InputError, SequenceBatch


class DiffusionPolicy(DiffusionModule):
    """Behaviour cloning of chunks of actions, which keeps the modes of the data apart.

    A chunk begins with the actions of the observations' own steps; played are ``n_action_steps`` from
    now on, then a new chunk is drawn. With ``horizon`` 8, ``n_obs_steps`` 2 and ``n_action_steps`` 4::

        step of the window     0    1    2    3    4    5    6    7
        time                  -1   now  +1   +2   +3   +4   +5   +6
        observations given     o    o
        actions diffused       a    a    a    a    a    a    a    a
        actions played              a    a    a    a
        a new chunk, from                               now

    Windows of the data are to begin up to ``n_obs_steps - 1`` steps before an episode
    (``data.pad_before``) and may end up to ``n_action_steps - 1`` steps after it (``data.pad_after``).

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        horizon: H, actions of a chunk, taken from the data.
        stride: taken from the data; must be 1.
        n_obs_steps: C, observations up to now that a chunk is drawn from.
        n_action_steps: actions of a chunk that are played.
        backbone: ``unet``: convolutions over the chunk, scaled and shifted by the observations (FiLM);
            ``transformer``: a causal decoder; ``mlp``: residual layers over the whole chunk at once.
        dim: width of the U-Net's first level, of the transformer, or of the MLP.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        depth: layers of the transformer, or blocks of the MLP.
        num_heads: heads of the transformer.
        dropout: of the transformer and the MLP.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        prediction_type: what the network predicts.
        clip_denoised: bound the estimate of the clean actions to the data's range, [-1, 1]; without
            effect on normalisers that have no such range, gaussian and none.
        normalizer: of states and actions.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        lr_warmup_steps: optimiser steps in which the rate rises from 0.
        adam_betas: decay of the gradient's averages in Adam.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that a step keeps, at most.
        ema_power: step k keeps ``1 - k ** -ema_power``, until that reaches ``ema_decay``; 0 keeps
            ``ema_decay`` from the beginning.
        compile: compile the network for training.

    Raises:
        InputError: if a chunk is too short for the actions to play, there are goals, or an argument is
            unknown.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        horizon: int = 16,
        stride: int = 1,
        n_obs_steps: int = 2,
        n_action_steps: int = 8,
        backbone: ChunkBackbone = "unet",
        dim: int = 256,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        depth: int = 8,
        num_heads: int = 4,
        dropout: float = 0.0,
        num_train_timesteps: int = 100,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "eps",
        clip_denoised: bool = True,
        normalizer: NormalizerKind = "limits",
        lr: float = 1e-4,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        lr_warmup_steps: int = 500,
        adam_betas: tuple[float, float] = (0.95, 0.999),
        weight_decay: float = 1e-6,
        ema_decay: float = 0.9999,
        ema_power: float = 0.75,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        if stride != 1:
            raise InputError(f"DiffusionPolicy plays every action of a chunk: {stride=} must be 1.")
        if n_obs_steps < 1 or n_action_steps < 1:
            raise InputError(f"{n_obs_steps=} and {n_action_steps=} must be at least 1.")
        if n_obs_steps - 1 + n_action_steps > horizon:
            raise InputError(
                f"A chunk of {horizon=} begins {n_obs_steps - 1} steps ago and is too short for "
                f"{n_action_steps=}: use a horizon of at least {n_obs_steps - 1 + n_action_steps}."
            )
        self.observation_dim, self.action_dim, self.horizon = observation_dim, action_dim, horizon
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        self.clip = 1.0 if clip_denoised and normalizer in BOUNDED else None
        self.diffusion = GaussianDiffusion(
            make_betas(beta_schedule, num_train_timesteps), prediction_type
        )
        self.denoiser = make_chunk_backbone(
            backbone,
            action_dim,
            horizon=horizon,
            observation_dim=observation_dim,
            n_obs_steps=n_obs_steps,
            dim=dim,
            dim_mults=dim_mults,
            depth=depth,
            num_heads=num_heads,
            dropout=dropout,
        )
        self.ema = EMA(self.denoiser, decay=ema_decay, power=ema_power)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states and actions.

        Raises:
            InputError: if episodes begin otherwise in the windows than they do for the policy.
        """
        begins, wanted = datamodule.pad_before, self.n_obs_steps - 1
        if begins != wanted or datamodule.padding == "zero":
            raise InputError(
                f"With n_obs_steps={self.n_obs_steps} the policy sees an episode's first observation "
                f"{self.n_obs_steps} times: set data.pad_before={wanted}, not {begins}, and "
                "data.padding=edge."
            )
        super().fit_normalizers(datamodule)

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the denoised chunk."""
        seen = self._condition(batch["observations"][:, : self.n_obs_steps])
        actions = self.trajectory.actions.normalize(batch["actions"])
        loss = self.diffusion.loss(lambda x, t: self.denoiser(x, t, seen), actions)
        return loss.mean(), {}

    def decide(  # noqa: D417
        self,
        states: Tensor,
        *,
        n_action_steps: int | None = None,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        denoise: Any = None,
        generator: Generators = None,
    ) -> Tensor:
        """Chunks of actions from now on (N, n_action_steps, A), in environment units.

        Keywords that are not here are those of :meth:`make_policy`.

        Args:
            states: the last C of them (N, C, O), the oldest first; (N, O) where C is 1.
            denoise: the network, default the averaged one.
            generator: source of noise, one for all or one a row.
        """
        seen = self._condition(states)
        net = denoise or self.ema
        x = draw(
            self.diffusion,
            lambda x, t: net(x, t, seen),
            (len(states), self.horizon, self.action_dim),
            like=seen,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            clip=self.clip,
            generator=generator,
        )
        played = self.n_action_steps if n_action_steps is None else n_action_steps
        now = self.n_obs_steps - 1
        return self.trajectory.actions.unnormalize(x[:, now : now + played])

    def make_policy(
        self,
        *,
        n_action_steps: int | None = None,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        compile: bool = False,
    ) -> ChunkedPolicy:
        """A policy that acts in N environments, each at its own place in its own chunk.

        Args:
            n_action_steps: actions of a chunk that are played; default as the model has it.
            sampler: how to denoise.
            num_inference_steps: network evaluations for a chunk, default T.
            temperature: standard deviation of the noise, 1 as in training.
            compile: compile the network, on CUDA into graphs.
        """
        n_action_steps = self.n_action_steps if n_action_steps is None else n_action_steps
        if not 1 <= n_action_steps <= self.horizon - self.n_obs_steps + 1:
            raise InputError(
                f"{n_action_steps=} must lie between 1 and the {self.horizon - self.n_obs_steps + 1} "
                "actions of a chunk from now on."
            )
        check_sampling(self.diffusion, sampler, num_inference_steps)
        decide = partial(
            self.decide,
            n_action_steps=n_action_steps,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            denoise=self.inference_net(compile),
        )
        return self.chunked_policy(
            decide, n_action_steps=n_action_steps, n_obs_steps=self.n_obs_steps
        )

    def _condition(self, states: Tensor) -> Tensor:
        """Observations in a row (B, C * O), normalised."""
        return self.trajectory.observations.normalize(states).flatten(1)
