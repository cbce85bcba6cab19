"""The bases of roles over whole trajectories: planners, and the networks that guide them."""

from __future__ import annotations

from typing import Any

from torch import nn

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    make_betas,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import Backbone, make_backbone
from diffrl_lightning.normalizers import BOUNDED, NormalizerKind


class TrajectoryModule(DiffusionModule):
    """A role over windows of H steps, which are noised together.

    Args:
        horizon: H, taken from the data.
        stride: environment steps between two steps of a window, taken from the data.
        dim: width of the U-Net's first level, or of the transformer or MLP.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        normalizer: of states and actions.
        training: keywords of :class:`DiffusionModule`.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 32,
        stride: int = 1,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        num_train_timesteps: int = 20,
        beta_schedule: BetaSchedule = "cosine",
        normalizer: NormalizerKind = "gaussian",
        lr: float = 2e-4,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, lr=lr, **training)
        self.horizon, self.stride = horizon, stride
        betas = make_betas(beta_schedule, num_train_timesteps)
        self.diffusion = GaussianDiffusion(betas, self.hparams.get("prediction_type", "eps"))


class PlanningModule(TrajectoryModule):
    """A role that denoises plans.

    Args:
        backbone: a temporal ``unet``, whose horizon must divide by 2 for each level but one, or
            ``dit``, a transformer.
        attention: linear attention in the U-Net.
        depth: blocks of the transformer.
        num_heads: heads of the transformer.
        prediction_type: what the network predicts.
        clip_denoised: bound the estimate of the clean plan to the data's range, [-1, 1]; without effect
            on normalisers that have no such range, gaussian and none.
        training: keywords of :class:`TrajectoryModule`.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        backbone: Backbone = "unet",
        attention: bool = False,
        depth: int = 2,
        num_heads: int = 4,
        prediction_type: PredictionType = "eps",
        clip_denoised: bool = True,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **training)
        self.clip = 1.0 if clip_denoised and self.hparams["normalizer"] in BOUNDED else None

    def make_net(self, width: int, cond_dim: int = 0) -> nn.Module:
        """The network of plans (B, H, width), by the hyper-parameters."""
        names = ("horizon", "dim", "dim_mults", "attention", "depth", "num_heads")
        sizes: dict[str, Any] = {name: self.hparams[name] for name in names}
        return make_backbone(self.hparams["backbone"], width, **sizes, cond_dim=cond_dim)
