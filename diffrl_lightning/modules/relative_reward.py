"""Relative reward: what turns one diffusion model into another by guidance (Nuti et al. 2023)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from diffrl_lightning.diffusion import (
    inpaint,
    known_states,
    randint,
    randn,
)
from diffrl_lightning.inputs import one_of
from diffrl_lightning.modules.companions import SAME_TRAJECTORIES
from diffrl_lightning.modules.trajectories import TrajectoryModule
from diffrl_lightning.nets import TemporalValue, WindowValue
from diffrl_lightning.normalizers import TrajectoryNormalizer
from diffrl_lightning.types import InputError, SequenceBatch

_OFFSET_WEIGHT = 1e-3  # of the square of rho's mean


class RelativeReward(TrajectoryModule):
    """A function rho of noised trajectories, whose gradient guides a base Diffuser to an expert one.

    At every step t the gradient of rho(x_t, t) is regressed on the difference of the two Diffusers::

        objective eps     grad rho = eps_base(x_t, t) - eps_expert(x_t, t)
        objective mean    grad rho = mu_expert(x_t, t) - mu_base(x_t, t)

    with mu the mean of x_{t-1} (Ho et al. 2020, eq. 11). The second target is the first times
    beta_t / sqrt(alpha_t (1 - abar_t)), so it weighs small t less. The difference of noises is that of
    denoised trajectories times sqrt(abar_t / (1 - abar_t)), which is close to 0 at large t, where
    sampling begins; in the ``unit`` x0 the network learns without that factor, by which its output is
    then multiplied.

    Both Diffusers are frozen, were trained on one list of datasets (``data.train_on``) with the same
    arguments (``horizon``, ``num_train_timesteps``, ``normalizer``, ... are those of both), and are
    needed for training alone. A Diffuser takes this role's checkpoint as
    ``value_ckpt``: guided by rho, the base plans more as the expert does. rho is known up to a constant
    at each t, so compare values at one t; its mean over all is kept at 0.

    The control ``discriminator`` learns the log odds that a noised trajectory is not of the first
    dataset of the list, from their labels, and needs no Diffusers; of more, ``data.train_on`` chooses.

    Args:
        num_origins: datasets of the data's list, taken from the data.
        base_ckpt: checkpoint of the Diffuser of ordinary behaviour.
        expert_ckpt: checkpoint of the Diffuser of behaviour that pursues the reward.
        objective: target of the gradient, or ``discriminator``.
        gradient_at: ``noised``: at x_t; ``mean``: at the base's mu(x_t, t), as in the paper's code; not
            for a discriminator.
        unit: of differences and errors: ``eps``, of noise, as published; ``x0``, of denoised
            trajectories, even over t. Not for a discriminator.
        network: ``windows``: rho is the mean of an MLP over windows of the trajectory; ``unet``: the
            down-sampling half of one, as published, which learns slowly where the horizon is short.
        window: steps of a window, which divide H; default H. The shorter they are, the finer rho can be
            drawn over places. Not for the U-Net.
        training: keywords of :class:`TrajectoryModule`; ``compile`` is for a discriminator alone.
    """

    known: Tensor  # (H, A + O) bool, the entries that are given

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_origins: int = 1,
        base_ckpt: str | None = None,
        expert_ckpt: str | None = None,
        objective: Literal["eps", "mean", "discriminator"] = "eps",
        gradient_at: Literal["noised", "mean"] = "noised",
        unit: Literal["eps", "x0"] = "eps",
        network: Literal["windows", "unet"] = "windows",
        window: int | None = None,
        dim: int = 128,
        dim_mults: tuple[int, ...] = (2, 2, 4, 4),
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, dim=dim, dim_mults=dim_mults, **training)
        one_of(("eps", "mean", "discriminator"), objective=objective)
        one_of(("noised", "mean"), gradient_at=gradient_at)
        one_of(("eps", "x0"), unit=unit)
        one_of(("windows", "unet"), network=network)
        if objective == "discriminator" and (gradient_at, unit) != ("noised", "eps"):
            raise InputError(
                f"A discriminator has no gradient to match: leave out {gradient_at=} and {unit=}."
            )
        if network == "unet" and window is not None:
            raise InputError(
                f"The U-Net has no windows: leave out {window=}, or use network=windows."
            )
        if self.hparams["compile"] and objective != "discriminator":
            raise InputError(
                f"objective={objective} differentiates twice, which compiled networks can not: leave "
                "compile at false."
            )
        self.objective, self.gradient_at, self.unit = objective, gradient_at, unit
        self.num_origins = num_origins
        width, horizon = observation_dim + action_dim, self.horizon
        self.reward_net: TemporalValue | WindowValue
        if network == "unet":
            self.reward_net = TemporalValue(width, horizon=horizon, dim=dim, dim_mults=dim_mults)
        else:
            window = horizon if window is None else window
            self.reward_net = WindowValue(width, horizon=horizon, window=window, hidden_dim=dim)
        self.ema = self.average(self.reward_net)
        kind = self.hparams["normalizer"]
        self.trajectory = TrajectoryNormalizer(kind, observation_dim, action_dim)
        known = known_states(horizon, action_dim, observation_dim)
        self.register_buffer("known", known, persistent=False)
        self.diffusers: list[Any] = []  # base and expert; in a list, to stay out of checkpoints

    def setup(self, stage: str) -> None:
        """Load the two Diffusers, and take their statistics."""
        if stage in ("fit", "validate"):
            if self.objective != "discriminator":
                self._load_diffusers()
            elif self.num_origins < 2:
                raise InputError(
                    "objective=discriminator tells datasets apart: give data.dataset a list of two or "
                    "more."
                )
        super().setup(stage)

    def on_fit_start(self) -> None:
        """Put the Diffusers on the module's device."""
        super().on_fit_start()
        self.on_validation_start()

    def on_validation_start(self) -> None:
        """Put the Diffusers on the module's device."""
        super().on_validation_start()
        for diffuser in self.diffusers:
            diffuser.to(self.device, self.float_dtype)

    def _load_diffusers(self) -> None:
        """Load base and expert, frozen.

        Raises:
            InputError: if one is missing, untrained, or does not fit the other or this module.
        """
        for name in ("base_ckpt", "expert_ckpt"):
            if self.hparams[name] is None:
                raise InputError(f"RelativeReward needs model.{name}, a Diffuser's checkpoint.")
        same = (*SAME_TRAJECTORIES, "goal_dim")
        base = self.load_companion(self.hparams["base_ckpt"], "predict_noise", same=same)
        if not self.is_fitted():
            self.trajectory.load_state_dict(base.trajectory.state_dict())
        expert = self.load_companion(self.hparams["expert_ckpt"], "predict_noise", same=same)
        self.diffusers = [base, expert]

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of rho's gradient (Nuti et al. 2023), or a discriminator's cross entropy."""
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        constraint = inpaint(x0, self.known)
        t = randint(self.diffusion.num_train_timesteps, x0)
        xt = constraint(self.diffusion.add_noise(x0, randn(x0.shape, like=x0), t))
        if self.objective == "discriminator":
            expert = (batch["origins"] > 0).to(x0)
            logits = self.reward_net(xt, t)
            accuracy = ((logits > 0) == (expert > 0)).float().mean()
            return binary_cross_entropy_with_logits(logits, expert), {"accuracy": accuracy}
        point, target = self._target(xt, t)
        with torch.inference_mode(False), torch.enable_grad():  # in validation too
            point = point.clone().requires_grad_()
            rho = self.reward_net(point, t.clone())
            (gradient,) = torch.autograd.grad(rho.sum(), point, create_graph=True)
        error = (gradient - target).square().masked_fill(self.known, 0.0).mean()
        size = target.square().masked_fill(self.known, 0.0).mean()
        # A batch's mean has variance var(rho) / B, so that keeping it at 0 flattens rho; with this
        # weight by less than 0.1 % of its slope.
        offset = rho.mean().square()
        return error + _OFFSET_WEIGHT * offset, {"unexplained": (error / size).detach()}

    @torch.no_grad()
    def _target(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the network's gradient is taken, and its target there; (B, H, A + O) each."""
        with torch.autocast(xt.device.type, enabled=False):  # small differences of large numbers
            base, expert = (diffuser.predict_noise(xt, t) for diffuser in self.diffusers)
        point = xt
        if self.gradient_at == "mean":
            alpha, _ = self.diffusion.step(t, t - 1, xt.ndim)
            mean = xt / alpha.sqrt() - self._noise_coefficient(t, xt.ndim) * base
            point = torch.where(self.known, xt, mean)
        factor = self._noise_coefficient(t, xt.ndim) if self.objective == "mean" else 1.0
        return point, (base - expert) * factor / self._scale(t, xt.ndim)

    def _noise_coefficient(self, t: Tensor, ndim: int) -> Tensor:
        """Of the noise in the mean of x_{t-1} (Ho et al. 2020, eq. 11), (B, 1, ...)."""
        _, noise = self.diffusion.signal_noise(t, ndim)
        alpha, beta = self.diffusion.step(t, t - 1, ndim)
        return beta / (noise * alpha.sqrt())

    def _scale(self, t: Tensor, ndim: int) -> Tensor:
        """Factor of the network's output at steps (B,), shaped (B, 1, ...)."""
        signal, noise = self.diffusion.signal_noise(t, ndim)
        if self.unit == "eps":
            return torch.ones_like(signal)
        factor = self._noise_coefficient(t, ndim) if self.objective == "mean" else 1.0
        return signal / noise * factor

    def value(self, xt: Tensor, t: Tensor) -> Tensor:
        """Rho (B,) of normalised trajectories (B, H, A + O) at steps (B,).

        Args:
            xt: noised trajectories.
            t: steps; a clean trajectory, -1, is taken as one of the least noise.
        """
        t = t.clamp(min=0)
        return self.ema(xt, t).float() * self._scale(t, 1)

    def rewards_of(self, batch: SequenceBatch) -> Tensor:
        """Rho (B,) of clean windows: the reward of the step that each begins with."""
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        return self.value(x0, torch.full((len(x0),), -1, device=x0.device))

    def place_values(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """First states (M, O) of clean windows, in environment units, and their rho (M,).

        With ``network`` windows rho is each window's own, else that of the whole trajectory.
        """
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        t = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        net = self.ema.net
        if not isinstance(net, WindowValue):
            return batch["observations"][:, 0], self.value(x0, t)
        real = batch["mask"][:, :: net.window]  # without padding
        states = batch["observations"][:, :: net.window]
        return states[real], (net.windows(x0, t).float() * self._scale(t, 2))[real]
