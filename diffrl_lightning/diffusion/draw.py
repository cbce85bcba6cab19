"""From noise, or from an earlier sample noised again, to a sample: any sampler by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion
from diffrl_lightning.diffusion.noise import randn
from diffrl_lightning.diffusion.samplers import (
    PreStep,
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    inference_timesteps,
)
from diffrl_lightning.types import Constraint, DenoiseFn, Generators, InputError

Sampler = Literal["ddpm", "ddim", "dpmpp"]


def check_sampling(
    diffusion: GaussianDiffusion, sampler: str, num_inference_steps: int | None
) -> None:
    """Refuse what :func:`draw` would refuse, before anything is sampled.

    Raises:
        InputError: naming what would do.
    """
    if sampler not in ("ddpm", "ddim", "dpmpp"):
        raise InputError(f"{sampler=} is unknown: choose ddpm, ddim or dpmpp.")
    inference_timesteps(diffusion.num_train_timesteps, num_inference_steps)


def draw(
    diffusion: GaussianDiffusion,
    denoise: DenoiseFn,
    shape: Sequence[int],
    *,
    like: Tensor,
    sampler: Sampler = "ddim",
    num_inference_steps: int | None = None,
    variance: Literal["posterior", "beta"] = "posterior",
    temperature: float = 1.0,
    constraint: Constraint | None = None,
    clip: float | None = None,
    pre_step: PreStep | None = None,
    generator: Generators = None,
    previous: Tensor | None = None,
    warm_start_steps: int = 0,
) -> Tensor:
    """Samples of a shape (B, *S).

    Args:
        diffusion: the process.
        denoise: the network with its conditions bound.
        shape: (B, *S).
        like: a tensor whose device and dtype the samples take.
        sampler: how to denoise.
        num_inference_steps: network evaluations, default T.
        variance: of each step of ``ddpm``.
        temperature: standard deviation of all noise, 1 as in training.
        constraint: known entries.
        clip: bound of the x0 estimate.
        pre_step: hook before every evaluation.
        generator: source of noise, one for all or one for each of several equal groups of rows.
        previous: earlier samples (B, *S) to start from.
        warm_start_steps: with ``previous``, denoise it for only this many of the evaluations, from the
            noise level at which they begin; 0 samples afresh.
    """
    check_sampling(diffusion, sampler, num_inference_steps)
    x = temperature * randn(shape, generator=generator, like=like)
    steps = inference_timesteps(diffusion.num_train_timesteps, num_inference_steps)
    skip = 0
    if previous is not None and 0 < warm_start_steps < len(steps):
        skip = len(steps) - warm_start_steps
        t = torch.full((len(x),), steps[skip], device=x.device)
        x = diffusion.add_noise(previous, x, t)
    shared: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "constraint": constraint,
        "clip": clip,
        "pre_step": pre_step,
        "skip_steps": skip,
    }
    if sampler == "ddpm":
        shared |= {
            "variance": variance,
            "temperature": temperature,
            "generator": generator,
        }
    samplers: dict[str, Callable[..., Tensor]] = {
        "ddpm": ddpm_sample,
        "ddim": ddim_sample,
        "dpmpp": dpmpp_sample,
    }
    return samplers[sampler](diffusion, denoise, x, **shared)
