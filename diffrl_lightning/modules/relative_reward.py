"""The reward that tells two diffusion models apart (Nuti et al. 2023)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    inpaint,
    make_betas,
    randint,
    randn,
)
from diffrl_lightning.modules.base import SAME_TRAJECTORIES, DiffusionModule
from diffrl_lightning.nets import EMA, TemporalValue, WindowValue
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.types import InputError, SequenceBatch

Objective = Literal["eps", "mean", "discriminator"]
Unit = Literal["eps", "x0"]
_CENTERING = 1e-3  # weight of the square of rho's mean
_SAME = (*SAME_TRAJECTORIES, "goal_dim")


class RelativeReward(DiffusionModule):
    """A function of noised trajectories whose gradient turns a base Diffuser into an expert one.

    At every step t the gradient of rho(x_t, t) is to be the difference of their denoising directions::

        objective eps     grad rho = eps_base(x_t, t) - eps_expert(x_t, t)
        objective mean    grad rho = mu_expert(x_t, t) - mu_base(x_t, t)

    with mu the mean of x_{t-1}; the second is the first times beta_t / sqrt(alpha_t (1 - abar_t)), and
    so has less of the small t. Differences of noise are those of denoised trajectories times
    sqrt(abar_t / (1 - abar_t)): next to nothing at the large t, with which sampling begins, and lost
    there in the errors of a network that learns all t at once. In the ``unit`` x0 it learns, and
    errors count, without that factor, by which its output is multiplied.

    Both Diffusers are frozen, were trained on one list of datasets (``data.train_on``) with the same
    arguments, and are needed for training alone. A Diffuser takes this role's checkpoint as
    ``value_ckpt``: guided along rho, the base plans more as the expert does.

    The control ``discriminator`` learns the log odds that a noised trajectory is not of the first
    dataset of the list, from their labels, and needs no Diffusers; of more, ``data.train_on`` chooses.

    rho is known up to a constant at each t, so compare values at one t; its mean over all is kept at 0.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0: what is wanted is to be found, not to be told.
        horizon: H, taken from the data.
        stride: environment steps between two steps of a plan, taken from the data.
        num_origins: datasets of the data's list, taken from the data.
        base_ckpt: checkpoint of the Diffuser of ordinary behaviour.
        expert_ckpt: checkpoint of the Diffuser of behaviour that pursues the reward.
        objective: what the gradient is to be, or ``discriminator``.
        gradient_at: ``noised``: at x_t; ``mean``: at the base's mu(x_t, t), as in the paper's code; not
            for a discriminator.
        unit: of differences and errors: ``eps``, of noise, as published; ``x0``, of denoised
            trajectories, even over t. Not for a discriminator.
        network: ``windows``: an MLP of each window of the trajectory, whose mean rho is; ``unet``: the
            down-going half of one, as published, which learns slowly where the horizon is short.
        window: steps of a window, which divide H; default H. The shorter they are, the finer rho can be
            drawn over places. Not for the U-Net.
        dim: width of the MLP, or of the U-Net's first level.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        num_train_timesteps: T, that of the Diffusers.
        beta_schedule: noise schedule, that of the Diffusers.
        normalizer: of states and actions, that of the Diffusers, whose statistics are taken.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.

    Raises:
        InputError: if there are goals, or an argument is unknown or has no effect.
    """

    known: Tensor  # (H, A + O) bool, the entries that are given

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        horizon: int = 32,
        stride: int = 1,
        num_origins: int = 1,
        base_ckpt: str | None = None,
        expert_ckpt: str | None = None,
        objective: Objective = "eps",
        gradient_at: Literal["noised", "mean"] = "noised",
        unit: Unit = "eps",
        network: Literal["windows", "unet"] = "windows",
        window: int | None = None,
        dim: int = 128,
        dim_mults: tuple[int, ...] = (2, 2, 4, 4),
        num_train_timesteps: int = 20,
        beta_schedule: BetaSchedule = "cosine",
        normalizer: NormalizerKind = "gaussian",
        lr: float = 2e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        ema_update_every: int = 1,
        ema_start: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        for name, value, choices in (
            ("objective", objective, ("eps", "mean", "discriminator")),
            ("gradient_at", gradient_at, ("noised", "mean")),
            ("unit", unit, ("eps", "x0")),
            ("network", network, ("windows", "unet")),
        ):
            if value not in choices:
                raise InputError(
                    f"{name}={value!r} is unknown: choose one of {', '.join(choices)}."
                )
        if objective == "discriminator" and (gradient_at, unit) != ("noised", "eps"):
            raise InputError(
                f"A discriminator has no gradient to match: leave out {gradient_at=} and {unit=}."
            )
        if network == "unet" and window is not None:
            raise InputError(
                f"The U-Net has no windows: leave out {window=}, or use network=windows."
            )
        self.objective, self.gradient_at, self.unit = objective, gradient_at, unit
        self.num_origins = num_origins
        self.diffusion = GaussianDiffusion(make_betas(beta_schedule, num_train_timesteps))
        width = observation_dim + action_dim
        self.reward_net: TemporalValue | WindowValue
        if network == "unet":
            self.reward_net = TemporalValue(width, horizon=horizon, dim=dim, dim_mults=dim_mults)
        else:
            window = horizon if window is None else window
            self.reward_net = WindowValue(width, horizon=horizon, window=window, hidden_dim=dim)
        self.ema = EMA(
            self.reward_net, decay=ema_decay, update_every=ema_update_every, start=ema_start
        )
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)
        known = torch.zeros(horizon, width, dtype=torch.bool)
        known[0, action_dim:] = True
        self.register_buffer("known", known, persistent=False)
        # Base and expert; in a list, so that they stay out of checkpoints.
        self.diffusers: list[Any] = []

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The average follows the reward."""
        return [(self.ema, self.reward_net)]

    def setup(self, stage: str) -> None:
        """Load the two Diffusers, and take their statistics."""
        losses = stage in ("fit", "validate")
        if losses and self.objective != "discriminator":
            self._load_diffusers()
        elif losses and self.num_origins < 2:
            raise InputError(
                "objective=discriminator tells datasets apart: give data.dataset a list of two or more."
            )
        super().setup(stage)

    def on_fit_start(self) -> None:
        """Put the Diffusers where the module is by now."""
        super().on_fit_start()
        self.on_validation_start()

    def on_validation_start(self) -> None:
        """Put the Diffusers where the module is by now."""
        for diffuser in self.diffusers:
            diffuser.to(self.device, self.float_dtype)

    def _load_diffusers(self) -> None:
        """Both, frozen.

        Raises:
            InputError: if one is missing, untrained, or does not fit the other or this module.
        """
        paths = {name: self.hparams[name] for name in ("base_ckpt", "expert_ckpt")}
        for name, path in paths.items():
            if path is None:
                raise InputError(f"RelativeReward needs model.{name}, a Diffuser's checkpoint.")
        base = self.load_companion(paths["base_ckpt"], "predict_noise", same=_SAME)
        if not self._fitted():
            self.trajectory.load_state_dict(base.trajectory.state_dict())
        expert = self.load_companion(paths["expert_ckpt"], "predict_noise", same=_SAME)
        self.diffusers = [base, expert]

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of rho's gradient; or cross entropy of a discriminator."""
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        constraint = inpaint(x0, self.known)
        t = randint(self.diffusion.num_train_timesteps, x0)
        xt = constraint(self.diffusion.add_noise(x0, randn(x0.shape, like=x0), t))
        if self.objective == "discriminator":
            expert = (batch["origins"] > 0).to(x0)
            logits = self.reward_net(xt, t)
            right = ((logits > 0) == (expert > 0)).float().mean()
            return binary_cross_entropy_with_logits(logits, expert), {"accuracy": right}
        place, target = self._target(xt, t)
        with torch.inference_mode(False), torch.enable_grad():  # in validation too
            place = place.clone().requires_grad_()
            rho = self.reward_net(place, t.clone())
            (gradient,) = torch.autograd.grad(rho.sum(), place, create_graph=True)
        error = (gradient - target).square().masked_fill(self.known, 0.0).mean()
        size = target.square().masked_fill(self.known, 0.0).mean()
        # A batch's mean has rho's variance over B in it, which flattens rho; at this weight by less
        # than 0.1 % of its slope.
        offset = rho.mean().square()
        return error + _CENTERING * offset, {"unexplained": (error / size).detach()}

    @torch.no_grad()
    def _target(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the network's gradient is taken, and what it is to be there; (B, H, A + O) each."""
        with torch.autocast(xt.device.type, enabled=False):  # small differences of large numbers
            base, expert = (diffuser.predict_noise(xt, t) for diffuser in self.diffusers)
        place = xt
        if self.gradient_at == "mean":
            alpha, _ = self.diffusion.step(t, t - 1, xt.ndim)
            mean = xt / alpha.sqrt() - self._mean_step(t, xt.ndim) * base
            place = torch.where(self.known, xt, mean)
        step = self._mean_step(t, xt.ndim) if self.objective == "mean" else 1.0
        return place, (base - expert) * step / self._scale(t, xt.ndim)

    def _mean_step(self, t: Tensor, ndim: int) -> Tensor:
        """How far the mean of x_{t-1} goes against the noise (Ho et al. 2020, eq. 11), (B, 1, ...)."""
        _, noise = self.diffusion.signal_noise(t, ndim)
        alpha, beta = self.diffusion.step(t, t - 1, ndim)
        return beta / (noise * alpha.sqrt())

    def _scale(self, t: Tensor, ndim: int) -> Tensor:
        """What the network's output is multiplied by at steps (B,), shaped (B, 1, ...)."""
        signal, noise = self.diffusion.signal_noise(t, ndim)
        if self.unit == "eps":
            return torch.ones_like(signal)
        return signal / noise * (self._mean_step(t, ndim) if self.objective == "mean" else 1.0)

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
        """States (M, O) of clean windows, in environment units, and rho of what begins there (M,).

        With ``network`` windows that is each window's own, else the whole trajectory's.
        """
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        t = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        net = self.ema.net
        if not isinstance(net, WindowValue):
            return batch["observations"][:, 0], self.value(x0, t)
        real = batch["mask"][:, :: net.window]  # what pads an episode is nowhere
        states = batch["observations"][:, :: net.window]
        return states[real], (net.windows(x0, t).float() * self._scale(t, 2))[real]
