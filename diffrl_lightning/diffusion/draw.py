"""Drawing samples by any sampler: from noise, or from an earlier sample noised again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion
from diffrl_lightning.diffusion.noise import randn
from diffrl_lightning.diffusion.samplers import (
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    inference_timesteps,
)
from diffrl_lightning.types import Acting, DenoiseFn, Generators

Sampler = Literal["ddpm", "ddim", "dpmpp"]
_SAMPLERS: dict[Sampler, Callable[..., Tensor]] = {
    "ddpm": ddpm_sample,
    "ddim": ddim_sample,
    "dpmpp": dpmpp_sample,
}


@dataclass(frozen=True, kw_only=True)
class Sampling(Acting):
    """How samples are drawn.

    Args:
        sampler: ``ddpm`` (ancestral, stochastic), ``ddim`` or ``dpmpp`` (both deterministic given the
            start, good at few steps).
        num_inference_steps: network evaluations of a sample, default T.
        temperature: standard deviation of all noise, 1 as in training.
    """

    sampler: Sampler = "ddim"
    num_inference_steps: int | None = None
    temperature: float = 1.0

    def timesteps(self, diffusion: GaussianDiffusion) -> list[int]:
        """The steps of a diffusion to evaluate the network at (:func:`inference_timesteps`)."""
        return inference_timesteps(diffusion.num_train_timesteps, self.num_inference_steps)


def draw(
    diffusion: GaussianDiffusion,
    denoise: DenoiseFn,
    shape: Sequence[int],
    how: Sampling,
    *,
    like: Tensor,
    variance: Literal["posterior", "beta"] = "posterior",
    generator: Generators = None,
    previous: Tensor | None = None,
    warm_start_steps: int = 0,
    **chain: Any,
) -> Tensor:
    """Samples of a shape (B, *S).

    Args:
        diffusion: the process.
        denoise: the network with its conditions bound.
        shape: (B, *S).
        how: sampler, evaluations and temperature.
        like: a tensor whose device and dtype the samples take.
        variance: of each step of ``ddpm``.
        generator: source of noise, one for all or one for each of several equal groups of rows.
        previous: earlier samples (B, *S) to start from.
        warm_start_steps: with ``previous``, denoise it for only this many of the evaluations, from the
            noise level at which they begin; 0 samples afresh.
        chain: keywords of :func:`reverse`: ``constraint``, ``clip``, ``pre_step``.
    """
    steps = how.timesteps(diffusion)
    x = how.temperature * randn(shape, generator=generator, like=like)
    if previous is not None and 0 < warm_start_steps < len(steps):
        steps = steps[-warm_start_steps:]
        t = torch.full((len(x),), steps[0], device=x.device)
        x = diffusion.add_noise(previous, x, t)
    if how.sampler == "ddpm":
        chain |= {"variance": variance, "temperature": how.temperature, "generator": generator}
    return _SAMPLERS[how.sampler](diffusion, denoise, x, timesteps=steps, **chain)
