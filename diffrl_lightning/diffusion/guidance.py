"""Guidance: ways to bend a diffusion towards a condition or a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffrl_lightning.diffusion.draw import Sampling
from diffrl_lightning.diffusion.gaussian import GaussianDiffusion, rowwise
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


def compose_conditions(
    net: Callable[..., Tensor], weighted: Sequence[tuple[Mapping[str, Tensor], float]]
) -> DenoiseFn:
    """A network under several conditions, each with its weight; :func:`classifier_free` of one.

    The network is (x (B, *S), t (B,), conditions by name) -> prediction (B, *S); {} is unconditional.
    """

    def bind(conditions: Mapping[str, Tensor]) -> DenoiseFn:
        return lambda x, t: net(x, t, conditions)

    conditional, weights = [bind(c) for c, _ in weighted], [w for _, w in weighted]
    if len(weighted) == 1:
        return classifier_free(conditional[0], bind({}), weights[0])
    return compose(bind({}), conditional, weights)


@dataclass(frozen=True, kw_only=True)
class GuidedSampling(Sampling):
    """How samples are drawn that climb a value (Janner et al. 2022, algorithm 1).

    Args:
        value_guidance_scale: length of a step along the value's gradient; 0 is no guidance.
        num_guide_steps: gradient steps before each evaluation of the denoiser.
        scale_by_variance: multiply the gradient by the posterior's variance.
        guidance_stop: no guidance at diffusion steps below this one.
    """

    value_guidance_scale: float = 0.0
    num_guide_steps: int = 2
    scale_by_variance: bool = True
    guidance_stop: int = 2


def value_guided(
    value: ValueFn,
    diffusion: GaussianDiffusion,
    how: GuidedSampling,
    *,
    constraint: Constraint | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Value-gradient guidance as a sampler's ``pre_step`` (Janner et al. 2022, algorithm 1).

    Before each denoising step the sample climbs the value's gradient at x_t; the constraint restores
    known entries after every step.
    """

    def pre_step(x: Tensor, t: Tensor) -> Tensor:
        if how.value_guidance_scale == 0:
            return x
        step = how.value_guidance_scale * rowwise((t >= how.guidance_stop).to(x), x.ndim)
        if how.scale_by_variance:
            step = step * diffusion.posterior(x, x, t)[1]
        for _ in range(how.num_guide_steps):
            # Copies made here may be differentiated, wherever x was made.
            with torch.inference_mode(False), torch.enable_grad():
                inner = x.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(value(inner, t.clone()).sum(), inner)
            x = x + step * gradient
            if constraint is not None:
                x = constraint(x)
        return x

    return pre_step
