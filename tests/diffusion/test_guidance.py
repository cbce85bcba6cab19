"""Guidance against closed forms."""

import pytest
import torch

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    classifier_free,
    compose,
    cosine_betas,
    ddim_sample,
    ddpm_sample,
    inpaint,
    value_guided,
)
from diffrl_lightning.types import InputError


def cond(x, t):
    return torch.tanh(x)


def null(x, t):
    return 0.3 * x


X, TIME = torch.randn(4, 5, 3), torch.zeros(4, dtype=torch.long)


def test_scale_zero_and_one_are_exactly_unconditional_and_conditional():
    assert torch.equal(classifier_free(cond, null, 0.0)(X, TIME), null(X, TIME))
    assert torch.equal(classifier_free(cond, null, 1.0)(X, TIME), cond(X, TIME))
    diffusion = GaussianDiffusion(cosine_betas(10))
    for scale, alone in ((0.0, null), (1.0, cond)):
        guided = ddim_sample(diffusion, classifier_free(cond, null, scale), X)
        assert torch.equal(guided, ddim_sample(diffusion, alone, X))


def test_classifier_free_extrapolates():
    expected = null(X, TIME) + 2.5 * (cond(X, TIME) - null(X, TIME))
    torch.testing.assert_close(classifier_free(cond, null, 2.5)(X, TIME), expected)


def test_composition_and_negation():
    other = lambda x, t: x - 1  # noqa: E731
    found = compose(null, [cond, other], [1.5, -0.5])(X, TIME)
    n = null(X, TIME)
    torch.testing.assert_close(found, n + 1.5 * (cond(X, TIME) - n) - 0.5 * (other(X, TIME) - n))
    assert torch.equal(compose(null, [], [])(X, TIME), n)
    with pytest.raises(InputError, match="as many weights"):
        compose(null, [cond], [])


def test_composition_of_gaussian_experts_is_their_product():
    """Scores add: two shifts of a unit Gaussian compose to the sum of the shifts."""
    diffusion = GaussianDiffusion(cosine_betas(200))

    def expert(mean):
        def denoise(x, t):  # the exact eps of N(mean, I): noise * (x - signal * mean)
            signal, noise = diffusion.signal_noise(t, x.ndim)
            return noise * (x - signal * mean)

        return denoise

    denoise = compose(expert(0.0), [expert(0.8), expert(-0.3)], [1.0, 1.0])
    samples = ddim_sample(diffusion, denoise, torch.randn(20_000, 1))
    assert samples.mean().item() == pytest.approx(0.5, abs=0.03)
    assert samples.std().item() == pytest.approx(1.0, abs=0.03)


def test_value_scale_zero_is_exactly_unguided():
    diffusion = GaussianDiffusion(cosine_betas(10))
    hook = value_guided(lambda x, t: x.sum((1, 2)), diffusion, value_guidance_scale=0.0)
    torch.manual_seed(0)
    guided = ddpm_sample(diffusion, cond, X, pre_step=hook)
    torch.manual_seed(0)
    assert torch.equal(guided, ddpm_sample(diffusion, cond, X))


def test_value_gradient_step():
    """On a quadratic value each step is known: x + scale * var * 2 (goal - x), k times."""
    diffusion = GaussianDiffusion(cosine_betas(10))
    goal = 2.0
    hook = value_guided(
        lambda x, t: -(x - goal).square().sum((1, 2)),
        diffusion,
        value_guidance_scale=0.1,
        num_guide_steps=2,
        stop=3,
    )
    t = torch.tensor([2, 3, 5, 9])
    with torch.no_grad():
        moved = hook(X, t)
    variance = diffusion.posterior(X, X, t)[1]
    factor = 1 - (1 - 0.2 * variance) ** 2
    expected = X + factor * (goal - X) * (t >= 3).view(-1, 1, 1)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(moved[0], X[0]), "no guidance below the stop"


def test_value_guidance_raises_the_value_and_keeps_what_is_known():
    diffusion = GaussianDiffusion(cosine_betas(50))
    known = torch.zeros(5, 3, dtype=torch.bool)
    known[0] = True
    keep = inpaint(torch.zeros(4, 5, 3), known)
    value = lambda x, t: x[..., 1].sum(1)  # noqa: E731
    hook = value_guided(
        value,
        diffusion,
        value_guidance_scale=0.5,
        scale_by_variance=False,
        num_guide_steps=2,
        constraint=keep,
    )
    denoise = lambda x, t: diffusion.signal_noise(t, x.ndim)[1] * x  # noqa: E731
    guided = ddim_sample(diffusion, denoise, X, constraint=keep, pre_step=hook)
    plain = ddim_sample(diffusion, denoise, X, constraint=keep)
    assert (value(guided, None) > value(plain, None) + 0.5).all()
    assert (guided[:, 0] == 0).all()
