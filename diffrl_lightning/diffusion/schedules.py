"""Noise schedules: each function maps a number of steps to betas (T,) in float64.

The forward process is q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), t = 0 .. T-1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffrl_lightning.types import InputError

BetaSchedule = Literal["cosine", "vp", "linear"]


def cosine_betas(num_train_timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Squared-cosine schedule (Nichol & Dhariwal 2021, eq. 17), the one of Diffuser."""
    u = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos((u + s) / (1 + s) * math.pi / 2).square()
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, max_beta)


def power_cosine_betas(
    num_train_timesteps: int, power: float = 1.0, max_beta: float = 0.999
) -> Tensor:
    """abar(u) = cos(pi u / 2) ** (2 power): the lower the power, the later the noise (PolyGRAD).

    Raises:
        InputError: if an argument is out of range.
    """
    if num_train_timesteps < 1 or power <= 0:
        raise InputError(f"{num_train_timesteps=} must be at least 1, {power=} above 0.")
    u = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos(u * math.pi / 2) ** (2 * power)
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, max_beta)


def vp_betas(num_train_timesteps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> Tensor:
    """Variance-preserving SDE, discretised (Xiao et al. 2022), the schedule of Diffusion-QL."""
    t = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64)
    n = num_train_timesteps
    return 1 - torch.exp(-beta_min / n - 0.5 * (beta_max - beta_min) * (2 * t - 1) / n**2)


def linear_betas(
    num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> Tensor:
    """Linear schedule (Ho et al. 2020, section 4)."""
    return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)


def make_betas(beta_schedule: BetaSchedule, num_train_timesteps: int) -> Tensor:
    """Betas (T,) of a schedule by name.

    Raises:
        InputError: if the schedule is unknown or the number of steps is not positive.
    """
    if num_train_timesteps < 1:
        raise InputError(f"{num_train_timesteps=} must be at least 1.")
    schedules = {"cosine": cosine_betas, "vp": vp_betas, "linear": linear_betas}
    if beta_schedule not in schedules:
        raise InputError(f"{beta_schedule=} is unknown: choose one of {', '.join(schedules)}.")
    return schedules[beta_schedule](num_train_timesteps)
