"""Fixtures of the published schedules, and parity with Hugging Face diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    cosine_betas,
    linear_betas,
    make_betas,
    power_cosine_betas,
    vp_betas,
)
from diffrl_lightning.types import InputError


@pytest.mark.parametrize(
    ("betas", "first", "last_abar", "variances"),
    [
        (cosine_betas(20), [0.007993, 0.020075, 0.032254, 0.044681, 0.057520], 6.060e-6,
         [0.005750, 0.015189, 0.026140]),
        (cosine_betas(64), [0.001200, 0.002385, 0.003572], 5.928e-7,
         [0.000799, 0.001792, 0.002865]),
        (cosine_betas(256), [0.000189, 0.000263, 0.000337], 3.706e-8,
         [0.000110, 0.000193, 0.000270]),
        (vp_betas(5), [0.195875, 0.458818, 0.635781, 0.754878, 0.835031], 6.409e-3,
         [0.159114, 0.426742, 0.660907]),
    ],
)  # fmt: skip
def test_published_values(betas, first, last_abar, variances):
    torch.testing.assert_close(betas[: len(first)].tolist(), first, atol=1e-6, rtol=0)
    assert torch.cumprod(1 - betas, 0)[-1].item() == pytest.approx(last_abar, rel=1e-3)
    diffusion = GaussianDiffusion(betas)
    x = torch.zeros(1, 1)
    found = [diffusion.posterior(x, x, torch.tensor([t]))[1].item() for t in (0, 1, 2, 3)]
    torch.testing.assert_close(found, [0.0, *variances], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("power", "middle", "late"), [(1.0, 0.5, 1.5e-4), (0.1, 0.93, 0.41)])
def test_power_of_the_cosine(power, middle, late):
    """PolyGRAD's 128 steps: half-way, and before the last two."""
    abar = torch.cumprod(1 - power_cosine_betas(128, power), 0)
    assert abar[63].item() == pytest.approx(middle, rel=0.01)
    assert abar[126].item() == pytest.approx(late, rel=0.02)
    assert abar[127] < 1e-3


@pytest.mark.parametrize(
    ("ours", "theirs"), [(cosine_betas, "squaredcos_cap_v2"), (linear_betas, "linear")]
)
@pytest.mark.parametrize("steps", [20, 100, 1000])
def test_parity_with_diffusers(ours, theirs, steps):
    scheduler = DDPMScheduler(steps, beta_schedule=theirs)
    betas = ours(steps)
    torch.testing.assert_close(betas.float(), scheduler.betas, atol=1e-5, rtol=0)
    diffusion = GaussianDiffusion(betas)
    torch.testing.assert_close(
        diffusion.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-5, rtol=0
    )


def test_unknown_schedule_and_no_steps():
    with pytest.raises(InputError, match="choose one of cosine, vp, linear"):
        make_betas("quadratic", 10)
    with pytest.raises(InputError, match="at least 1"):
        make_betas("cosine", 0)
