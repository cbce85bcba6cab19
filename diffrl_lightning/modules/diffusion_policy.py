"""Diffusion Policy: chunks of actions, diffused given the last observations (Chi et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    Sampling,
    draw,
    make_betas,
)
from diffrl_lightning.inputs import within
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import ChunkBackbone, make_chunk_backbone
from diffrl_lightning.normalizers import BOUNDED, NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import Generators, InputError, SequenceBatch, TrainingData


@dataclass(frozen=True, kw_only=True)
class ChunkActing(Sampling):
    """How a DiffusionPolicy acts.

    Args:
        n_action_steps: actions of a chunk that are played; default as the model has it.
        compile: compile the network, on CUDA into graphs.
    """

    n_action_steps: int | None = None
    compile: bool = False


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
        ema_power: the k-th average keeps ``1 - k ** -ema_power``, until that reaches ``ema_decay``; 0
            keeps ``ema_decay`` from the beginning.
        training: keywords of :class:`DiffusionModule`.
    """

    acting = ChunkActing

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
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
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lr=lr,
            lr_schedule=lr_schedule,
            lr_warmup_steps=lr_warmup_steps,
            adam_betas=adam_betas,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
            **training,
        )
        if stride != 1:
            raise InputError(f"DiffusionPolicy plays every action of a chunk: {stride=} must be 1.")
        if n_obs_steps - 1 + n_action_steps > horizon:
            raise InputError(
                f"A chunk of {horizon=} begins {n_obs_steps - 1} steps ago and is too short for "
                f"{n_action_steps=}: use a horizon of at least {n_obs_steps - 1 + n_action_steps}."
            )
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
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
        self.ema = self.average(self.denoiser, power=ema_power)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states and actions.

        Raises:
            InputError: if episodes begin otherwise in the windows than they do for the policy.
        """
        begins, wanted = data.pad_before, self.n_obs_steps - 1
        if begins != wanted or data.padding == "zero":
            raise InputError(
                f"With n_obs_steps={self.n_obs_steps} the policy sees an episode's first observation "
                f"{self.n_obs_steps} times: set data.pad_before={wanted}, not {begins}, and "
                "data.padding=edge."
            )
        super().fit_normalizers(data)

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the prediction for a noised chunk (Chi et al. 2023, eq. 5)."""
        seen = self._condition(batch["observations"][:, : self.n_obs_steps])
        actions = self.trajectory.actions.normalize(batch["actions"])
        loss = self.diffusion.loss(lambda x, t: self.denoiser(x, t, seen), actions)
        return loss.mean(), {}

    def decide(
        self,
        states: Tensor,
        how: ChunkActing,
        *,
        denoise: Callable[..., Tensor] | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Chunks of actions from now on (N, n_action_steps, A), in environment units.

        Args:
            states: the last C of them (N, C, O), the oldest first; (N, O) where C is 1.
            how: ways to sample and to act.
            denoise: the network, default the averaged one.
            generator: source of noise, one for all or one a row.
        """
        seen = self._condition(states)
        net = denoise or self.ema
        x = draw(
            self.diffusion,
            lambda x, t: net(x, t, seen),
            (len(states), self.horizon, self.action_dim),
            how,
            like=seen,
            clip=self.clip,
            generator=generator,
        )
        now = self.n_obs_steps - 1
        return self.trajectory.actions.unnormalize(x[:, now : now + self._num_played(how)])

    def build_policy(self, how: ChunkActing) -> ChunkedPolicy:
        """A policy that plays chunks, each environment at its own place in its own.

        Raises:
            InputError: if a chunk has fewer actions than are to be played, or T is exceeded.
        """
        played = self._num_played(how)
        within(1, self.horizon - self.n_obs_steps + 1, n_action_steps=played)
        how.timesteps(self.diffusion)
        return ChunkedPolicy(
            partial(self.decide, how=how, denoise=self.inference_net(how.compile)),
            n_action_steps=played,
            n_obs_steps=self.n_obs_steps,
            **self.policy_options(),
        )

    def _num_played(self, how: ChunkActing) -> int:
        """Actions of a chunk that are played."""
        return self.n_action_steps if how.n_action_steps is None else how.n_action_steps

    def _condition(self, states: Tensor) -> Tensor:
        """Observations in a row (B, C * O), normalised."""
        return self.trajectory.observations.normalize(states).flatten(1)
