"""EDM: diffusion over continuous noise levels with a preconditioned network (Karras et al. 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion, rowwise
from diffrl_lightning.diffusion.noise import randn
from diffrl_lightning.inputs import above, at_least
from diffrl_lightning.types import DenoiseFn, Generators, InputError


class EDM(nn.Module):
    """Diffusion ``x_sigma = x_0 + sigma eps`` over tensors of any shape (B, *S).

    The network F has targets of unit variance at every level; the clean sample is estimated by::

        D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

    (Karras et al. 2022, eq. 7 and table 1). It is the family of :class:`GaussianDiffusion` in
    other coordinates: ``sigma = sqrt((1 - abar) / abar)`` and ``x_sigma = x_t / sqrt(abar)``; at
    ``sigma_data`` 1 the network sees x_t itself and returns -v. So :meth:`discrete` makes a
    discrete diffusion of some of the levels, on which every other sampler runs with the same network.

    Args:
        sigma_data: standard deviation of the data; one for all entries, or one for each of
            the last axis.
    """

    sigma_min, sigma_max = 0.002, 80.0  # the levels that are sampled lie between
    rho = 7.0  # how they are spaced: the higher, the more of them are low
    p_mean, p_std = -1.2, 1.2  # mean and standard deviation of log sigma in training
    sigma_data: Tensor  # (), or (D,) with the last axis of S

    def __init__(self, *, sigma_data: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        above(0, sigma_data=min(sigma_data) if isinstance(sigma_data, Sequence) else sigma_data)
        self.register_buffer("sigma_data", torch.tensor(sigma_data, dtype=torch.float32))

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise, for levels that broadcast with ``sigma_data`` (table 1)."""
        total = sigma.square() + self.sigma_data.square()
        c_skip = self.sigma_data.square() / total
        c_out = sigma * self.sigma_data * total.rsqrt()
        return c_skip, c_out, total.rsqrt(), 0.25 * sigma.log()

    def to_x0(self, denoise: DenoiseFn, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate D (B, *S) of the clean sample, at levels (B,), or one for all (1,).

        ``denoise`` is F with its conditions bound: ``c_in x`` (B, *S), ``c_noise`` (B,) -> (B, *S).
        """
        c_skip, c_out, c_in, c_noise = self.coefficients(rowwise(sigma, x.ndim))
        return c_skip * x + c_out * denoise(c_in * x, c_noise.flatten().expand(len(x)))

    def loss(
        self,
        denoise: DenoiseFn,
        x0: Tensor,
        *,
        weight: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """lambda(sigma) (D - x0)^2 at a drawn level, one value a sample (B,) (eq. 8).

        With lambda = 1 / c_out^2 it is the squared error of F, and computed so. Arguments are those of
        :meth:`GaussianDiffusion.loss`.
        """
        normal = randn(x0.shape[:1], generator=generator, like=x0)
        sigma = rowwise((self.p_mean + self.p_std * normal).exp(), x0.ndim)
        _, _, c_in, c_noise = self.coefficients(sigma)
        eps = randn(x0.shape, generator=generator, like=x0)
        x = x0 + sigma * eps
        # (x0 - c_skip x) / c_out, without the cancellation that it suffers at low levels
        target = (x0 * sigma / self.sigma_data - self.sigma_data * eps) * c_in
        error = (denoise(c_in * x, c_noise.flatten()) - target).square()
        if weight is not None:
            error = error * weight
        return error.flatten(1).mean(1)

    def sigmas(self, num_steps: int) -> Tensor:
        """Levels (N + 1,) float64 from sigma_max down to sigma_min, and 0 (eq. 5)."""
        at_least(1, num_steps=num_steps)
        share = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        high, low = (s ** (1 / self.rho) for s in (self.sigma_max, self.sigma_min))
        levels = (high + share * (low - high)) ** self.rho
        return torch.cat([levels, levels.new_zeros(1)])

    def discrete(
        self, denoise: DenoiseFn, num_steps: int, *, device: torch.device | str | None = None
    ) -> tuple[GaussianDiffusion, DenoiseFn]:
        """The discrete diffusion over so many levels, and the network in its coordinates."""
        sigma = self.sigmas(num_steps)[:-1].flip(0)
        abar = 1 / (1 + sigma.square())
        # betas are 1 - abar_t / abar_{t-1}; this is that without the cancellation
        earlier = torch.cat([sigma.new_zeros(1), sigma[:-1]])
        betas = (sigma.square() - earlier.square()) * abar
        diffusion = GaussianDiffusion(betas, "x0").to(device)
        levels = sigma.to(device, torch.float32)

        def estimate(xt: Tensor, t: Tensor) -> Tensor:
            step = t[:1]  # samplers ask for one step at a time
            signal, _ = diffusion.signal_noise(step, xt.ndim)
            return self.to_x0(denoise, xt / signal, levels[step])

        return diffusion, estimate


def heun_steps(num_evaluations: int) -> int:
    """Steps of Heun's method for so many network evaluations: two a step, and one in the last.

    Raises:
        InputError: if there is no such number.
    """
    if num_evaluations < 1 or num_evaluations % 2 == 0:
        raise InputError(
            f"num_inference_steps={num_evaluations} must be odd for heun, which evaluates the network "
            "twice a step and once in the last."
        )
    return (num_evaluations + 1) // 2


@torch.no_grad()
def heun_sample(
    diffusion: EDM,
    denoise: DenoiseFn,
    x: Tensor,
    *,
    num_steps: int = 128,
    temperature: float = 1.0,
    s_churn: float = 80.0,
    s_noise: float = 1.003,
    clip: float | None = None,
    generator: Generators = None,
) -> Tensor:
    """Heun's method with some noise renewed at every step (Karras et al. 2022, algorithm 2).

    Args:
        diffusion: the process.
        denoise: F with its conditions bound.
        x: start (B, *S), standard normal.
        num_steps: N; the network is evaluated 2 N - 1 times.
        temperature: factor of the standard deviation of the noise that comes in.
        s_churn: how much noise is renewed over all steps, at levels in [0.05, 50]; 0 is deterministic.
        s_noise: standard deviation of the noise that comes in.
        clip: bound of the clean sample's estimate.
        generator: source of noise.
    """
    sigmas = diffusion.sigmas(num_steps).tolist()
    gamma = min(s_churn / num_steps, 2**0.5 - 1)

    def slope(x: Tensor, sigma: float) -> Tensor:
        x0 = diffusion.to_x0(denoise, x, x.new_full((1,), sigma))
        return (x - (x0 if clip is None else x0.clamp(-clip, clip))) / sigma

    x = sigmas[0] * x
    for sigma, following in itertools.pairwise(sigmas):
        if gamma > 0 and 0.05 <= sigma <= 50:
            higher = sigma * (1 + gamma)
            noise = temperature * s_noise * randn(x.shape, generator=generator, like=x)
            x = x + (higher**2 - sigma**2) ** 0.5 * noise
            sigma = higher
        first = slope(x, sigma)
        step = following - sigma
        euler = x + step * first
        x = euler if following == 0 else x + step * (first + slope(euler, following)) / 2
    return x
