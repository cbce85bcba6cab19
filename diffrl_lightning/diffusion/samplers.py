"""Samplers: from noise to samples in a few steps of the reverse process.

Every sampler is a free function of a diffusion, a denoising function with its conditions bound and a
start ``x`` (B, *S), standard normal; its ``**chain`` are keywords of :func:`reverse`. ``temperature``
is a factor of the standard deviation of the noise that it adds; scale ``x`` likewise. ``generator`` is
the source of that noise, one for all or one a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion
from diffrl_lightning.diffusion.noise import randn
from diffrl_lightning.types import Constraint, DenoiseFn, Generators, InputError

PreStep = Callable[[Tensor, Tensor], Tensor]
UpdateFn = Callable[[Tensor, Tensor, int, int], Tensor]


def inference_timesteps(num_train_timesteps: int, num_inference_steps: int | None) -> list[int]:
    """So many steps of T, descending from T-1 ("trailing" spacing, Lin et al. 2024); None for all.

    The last evaluation lands on the clean sample: none is spent on a sample that is clean already.

    Raises:
        InputError: if more steps are asked for than the diffusion has.
    """
    n = num_train_timesteps if num_inference_steps is None else num_inference_steps
    if not 1 <= n <= num_train_timesteps:
        raise InputError(
            f"num_inference_steps={n} must lie between 1 and the {num_train_timesteps} steps "
            "that the model was trained with."
        )
    steps = np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / n))[:n] - 1
    return steps.astype(int).tolist()


def ddpm_sample(
    diffusion: GaussianDiffusion,
    denoise: DenoiseFn,
    x: Tensor,
    *,
    variance: Literal["posterior", "beta"] = "posterior",
    temperature: float = 1.0,
    generator: Generators = None,
    **chain: Any,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on all or on some of the steps.

    The variance of each step is that of the posterior, or beta (Ho et al. 2020, section 3.2).
    """

    def update(x: Tensor, x0: Tensor, t: int, s: int) -> Tensor:
        mean, var = diffusion.posterior(x0, x, t, s)
        if s < 0:
            return mean
        if variance == "beta":
            _, var = diffusion.step(t, s, x.ndim)
        return mean + temperature * var.sqrt() * randn(x.shape, generator=generator, like=x)

    return reverse(diffusion, denoise, x, update, **chain)


def ddim_sample(
    diffusion: GaussianDiffusion,
    denoise: DenoiseFn,
    x: Tensor,
    *,
    eta: float = 0.0,
    temperature: float = 1.0,
    generator: Generators = None,
    **chain: Any,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12): deterministic at ``eta`` 0, ancestral at ``eta`` 1.

    ``eta`` is the share of the posterior's standard deviation that is added as noise. With ``clip``
    the noise estimate follows the bounded estimate of x0.
    """

    def update(x: Tensor, x0: Tensor, t: int, s: int) -> Tensor:
        signal_t, noise_t = diffusion.signal_noise(t, x.ndim)
        signal_s, noise_s = diffusion.signal_noise(s, x.ndim)
        eps = (x - signal_t * x0) / noise_t
        if eta == 0 or s < 0:
            return signal_s * x0 + noise_s * eps
        alpha, beta = diffusion.step(t, s, x.ndim)
        ratio = (noise_s / noise_t).square()
        sigma = eta * (beta * ratio).sqrt()
        # sqrt(noise_s^2 - sigma^2), by noise_t^2 = alpha noise_s^2 + beta free of cancellation
        direction = noise_s * (1 - eta**2 + eta**2 * alpha * ratio).sqrt()
        noise = temperature * sigma * randn(x.shape, generator=generator, like=x)
        return signal_s * x0 + direction * eps + noise

    return reverse(diffusion, denoise, x, update, **chain)


def dpmpp_sample(
    diffusion: GaussianDiffusion, denoise: DenoiseFn, x: Tensor, **chain: Any
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, deterministic.

    The first and the last step are of first order: before the first there is no earlier estimate,
    and the last ends where the log signal-to-noise ratio is infinite.
    """
    previous: tuple[Tensor, Tensor] | None = None  # the last estimate of x0, and its log-SNR

    def update(x: Tensor, x0: Tensor, t: int, s: int) -> Tensor:
        nonlocal previous
        signal_t, noise_t = diffusion.signal_noise(t, x.ndim)
        signal_s, noise_s = diffusion.signal_noise(s, x.ndim)
        lambda_t = (signal_t / noise_t).log()
        estimate = x0
        if previous is not None and s >= 0:
            earlier, lambda_r = previous
            ratio = (lambda_t - lambda_r) / ((signal_s / noise_s).log() - lambda_t)
            estimate = x0 + (x0 - earlier) / (2 * ratio)
        previous = x0, lambda_t
        decay = (noise_s / signal_s) * (signal_t / noise_t)  # exp(-h), 0 at the last step
        return (noise_s / noise_t) * x - signal_s * (decay - 1) * estimate

    return reverse(diffusion, denoise, x, update, **chain)


def reverse(
    diffusion: GaussianDiffusion,
    denoise: DenoiseFn,
    x: Tensor,
    update: UpdateFn,
    *,
    timesteps: Sequence[int] | None = None,
    constraint: Constraint | None = None,
    clip: float | None = None,
    pre_step: PreStep | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Run the reverse chain over some steps and then to the clean sample.

    Args:
        diffusion: the process.
        denoise: the network with its conditions bound.
        x: start (B, *S).
        update: one step of a sampler, ``x_t, estimate of x0, t, s -> x_s``.
        timesteps: steps to evaluate the network at, descending (:func:`inference_timesteps`; default
            all T); a warm start leaves out the first, and noises its ``x`` to the level of the rest.
        constraint: applied to x_T, after ``pre_step``, and after every denoising step.
        clip: bound of the x0 estimate's absolute value.
        pre_step: hook ``(x, t) -> x`` before every evaluation, as value guidance needs it.
        differentiable: keep the graph through the chain (default: run without gradients).
    """
    steps = range(diffusion.num_train_timesteps)[::-1] if timesteps is None else timesteps
    keep = constraint or (lambda x: x)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        x = keep(x)
        for step, next_step in zip(steps, [*steps[1:], -1], strict=True):
            t = torch.full((1,), step, device=x.device).expand(len(x))  # one row, embedded once
            if pre_step is not None:
                x = keep(pre_step(x, t))
            x0 = diffusion.to_x0(denoise(x, t), x, t)
            if clip is not None:
                x0 = x0.clamp(-clip, clip)
            x = keep(update(x, x0, step, next_step))
    return x
