"""Guidance: ways to bend a diffusion towards a condition or a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion
from diffrl_lightning.types import Constraint, DenoiseFn, InputError, ValueFn


def classifier_free(
    denoise_cond: DenoiseFn, denoise_null: DenoiseFn, guidance_scale: float
) -> DenoiseFn:
    """Classifier-free guidance (Ho & Salimans 2022): ``null + w (cond - null)``.

    0 is exactly unconditional and 1 exactly conditional; both run one network instead of two.
    """
    if guidance_scale == 0:
        return denoise_null
    if guidance_scale == 1:
        return denoise_cond
    return compose(denoise_null, [denoise_cond], [guidance_scale])


def compose(
    denoise_null: DenoiseFn, denoise_conds: Sequence[DenoiseFn], weights: Sequence[float]
) -> DenoiseFn:
    """Several conditions at once: ``null + sum_k w_k (cond_k - null)`` (Liu et al. 2022).

    A negative weight is NOT. Linear in the prediction, so it holds for eps, x0 and v alike.

    Raises:
        InputError: if there is not one weight for each condition.
    """
    if len(denoise_conds) != len(weights):
        raise InputError(
            f"{len(denoise_conds)} conditions need as many weights, not {len(weights)}"
        )

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        null = denoise_null(x, t)
        shifts = [w * (f(x, t) - null) for f, w in zip(denoise_conds, weights, strict=True) if w]
        return null + sum(shifts) if shifts else null

    return denoise


def value_guided(
    value: ValueFn,
    diffusion: GaussianDiffusion,
    *,
    value_guidance_scale: float,
    num_guide_steps: int = 1,
    scale_by_variance: bool = True,
    stop: int = 0,
    constraint: Constraint | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Value-gradient guidance as a sampler's ``pre_step`` (Janner et al. 2022, algorithm 1).

    Before each denoising step the sample climbs the value's gradient at x_t.

    Args:
        value: (x_t (B, *S), t (B,)) -> values (B,).
        diffusion: the process, for the posterior's variance.
        value_guidance_scale: length of a gradient step; 0 leaves the sample untouched.
        num_guide_steps: gradient steps before each denoising step.
        scale_by_variance: multiply the gradient by the posterior's variance at t.
        stop: no guidance at steps below this one.
        constraint: known entries, restored after every gradient step.
    """

    def pre_step(x: Tensor, t: Tensor) -> Tensor:
        if value_guidance_scale == 0:
            return x
        step = value_guidance_scale * (t >= stop).to(x).view(-1, *(1,) * (x.ndim - 1))
        if scale_by_variance:
            step = step * diffusion.posterior(x, x, t)[1]
        for _ in range(num_guide_steps):
            # Copies made here may be differentiated, wherever x was made.
            with torch.inference_mode(False), torch.enable_grad():
                inner = x.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(value(inner, t.clone()).sum(), inner)
            x = x + step * gradient
            if constraint is not None:
                x = constraint(x)
        return x

    return pre_step
