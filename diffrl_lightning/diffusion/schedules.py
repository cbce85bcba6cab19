"""Noise schedules: each function maps a number of steps to betas (T,) in float64.

The forward process is q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), t = 0 .. T-1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffrl_lightning.inputs import above, at_least, one_of

BetaSchedule = Literal["cosine", "vp", "linear"]


def cosine_betas(num_train_timesteps: int) -> Tensor:
    """Squared-cosine schedule (Nichol & Dhariwal 2021, eq. 17, with s = 0.008), the one of Diffuser."""
    return _betas(torch.cos((_times(num_train_timesteps) + 0.008) / 1.008 * math.pi / 2).square())


def power_cosine_betas(num_train_timesteps: int, power: float = 1.0) -> Tensor:
    """abar(u) = cos(pi u / 2) ** (2 power): the lower the power, the later the noise (PolyGRAD)."""
    at_least(1, num_train_timesteps=num_train_timesteps)
    above(0, power=power)
    return _betas(torch.cos(_times(num_train_timesteps) * math.pi / 2) ** (2 * power))


def vp_betas(num_train_timesteps: int) -> Tensor:
    """Variance-preserving SDE, discretised (Xiao et al. 2022), the schedule of Diffusion-QL."""
    beta_min, beta_max = 0.1, 10.0
    t = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64, device="cpu")
    n = num_train_timesteps
    return 1 - torch.exp(-beta_min / n - 0.5 * (beta_max - beta_min) * (2 * t - 1) / n**2)


def linear_betas(num_train_timesteps: int) -> Tensor:
    """Linear schedule (Ho et al. 2020, section 4)."""
    return torch.linspace(1e-4, 2e-2, num_train_timesteps, dtype=torch.float64, device="cpu")


def make_betas(beta_schedule: BetaSchedule, num_train_timesteps: int) -> Tensor:
    """Betas (T,) of a schedule by name."""
    at_least(1, num_train_timesteps=num_train_timesteps)
    schedules = {"cosine": cosine_betas, "vp": vp_betas, "linear": linear_betas}
    one_of([*schedules], beta_schedule=beta_schedule)
    return schedules[beta_schedule](num_train_timesteps)


def _times(num_train_timesteps: int) -> Tensor:
    return torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64, device="cpu")


def _betas(alphas_cumprod: Tensor) -> Tensor:
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, 0.999)
