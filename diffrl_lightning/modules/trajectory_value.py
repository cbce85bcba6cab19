"""The value of noised trajectories, which guides a planner (Janner et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffrl_lightning.diffusion import (
    inpaint,
    known_states,
    randint,
    randn,
)
from diffrl_lightning.modules.trajectories import TrajectoryModule
from diffrl_lightning.nets import TemporalValue
from diffrl_lightning.normalizers import TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import SequenceBatch, TrainingData


class TrajectoryValue(TrajectoryModule):
    """Regression of the return to go on trajectories at every noise level of a Diffuser.

    The target is the return from a window's first step to the end of its episode, with the discount
    and the termination penalty of the data. A Diffuser takes this role's checkpoint as ``value_ckpt``:
    the value's gradient guides its plans, and the value of clean plans chooses among them. To fit it,
    train on the same data with the same ``horizon``, ``stride``, ``normalizer``,
    ``num_train_timesteps`` and ``beta_schedule``.

    Args:
        normalize_returns: scale the target to zero mean and unit variance, so that a guidance scale
            means the same on every dataset; the published scales are for targets as they are.
        training: keywords of :class:`TrajectoryModule`.
    """

    takes_goals = True
    needs_rewards = True
    known: Tensor  # (H, A + O) bool, the entries that are given

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        normalize_returns: bool = True,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **training)
        hparams, horizon = self.hparams, self.horizon
        self.value_net = TemporalValue(
            observation_dim + action_dim,
            horizon=horizon,
            dim=hparams["dim"],
            dim_mults=hparams["dim_mults"],
        )
        self.ema = self.average(self.value_net)
        self.trajectory = TrajectoryNormalizer(hparams["normalizer"], observation_dim, action_dim)
        self.returns = make_normalizer("gaussian", 1) if normalize_returns else None
        known = known_states(horizon, action_dim, observation_dim)
        self.register_buffer("known", known, persistent=False)

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states, actions and returns to go."""
        super().fit_normalizers(data)
        if self.returns is not None:
            self.returns.fit(data.training_returns()[:, None])

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of V(x_t, t) against the return to go (Janner et al. 2022, section 3.2).

        t is uniform in -1 ... T - 1, where -1 is the clean trajectory.
        """
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        t = randint(self.diffusion.num_train_timesteps + 1, x0) - 1
        xt = self.diffusion.add_noise(x0, randn(x0.shape, like=x0), t)
        error = self.value_net(inpaint(x0, self.known)(xt), t) - self._target(batch["returns"])
        return error.square().mean(), {"value_error": error.detach().abs().mean()}

    def value(self, xt: Tensor, t: Tensor) -> Tensor:
        """Values (B,) of normalised trajectories (B, H, A + O) at steps (B,), in units of the target.

        Args:
            xt: noised trajectories.
            t: steps; -1 is the clean trajectory.
        """
        return self.ema(xt, t).float()  # in a lower precision values that are close would tie

    def _target(self, returns: Tensor) -> Tensor:
        if self.returns is None:
            return returns
        return self.returns.normalize(returns[:, None])[:, 0]
