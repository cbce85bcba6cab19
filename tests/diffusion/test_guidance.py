"""Guidance against closed forms."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    GuidedSampling,
    classifier_free,
    compose,
    compose_conditions,
    cosine_betas,
    ddim_sample,
    ddpm_sample,
    inference_timesteps,
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


def test_named_conditions_compose():
    def net(x, t, conditions):
        return x * (1 + sum(conditions.values()))

    expected = X + 1.5 * 2.0 * X - 0.5 * 3.0 * X
    found = compose_conditions(net, [({"a": 2.0}, 1.5), ({"b": 3.0}, -0.5)])(X, TIME)
    torch.testing.assert_close(found, expected)
    assert torch.equal(compose_conditions(net, [({"a": 2.0}, 1.0)])(X, TIME), net(X, 0, {"a": 2.0}))
    assert torch.equal(compose_conditions(net, [({"a": 2.0}, 0.0)])(X, TIME), X)
    assert torch.equal(compose_conditions(net, [])(X, TIME), X)


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
    hook = value_guided(lambda x, t: x.sum((1, 2)), diffusion, GuidedSampling())
    torch.manual_seed(0)
    guided = ddpm_sample(diffusion, cond, X, pre_step=hook)
    torch.manual_seed(0)
    assert torch.equal(guided, ddpm_sample(diffusion, cond, X))


def test_value_gradient_step():
    """On a quadratic value each step is known: x + scale * var * 2 (goal - x), k times."""
    diffusion = GaussianDiffusion(cosine_betas(10))
    goal = 2.0
    how = GuidedSampling(value_guidance_scale=0.1, num_guide_steps=2, guidance_stop=3)
    hook = value_guided(lambda x, t: -(x - goal).square().sum((1, 2)), diffusion, how)
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
    how = GuidedSampling(value_guidance_scale=0.5, scale_by_variance=False, guidance_stop=0)
    hook = value_guided(value, diffusion, how, constraint=keep)
    denoise = lambda x, t: diffusion.signal_noise(t, x.ndim)[1] * x  # noqa: E731
    guided = ddim_sample(diffusion, denoise, X, constraint=keep, pre_step=hook)
    plain = ddim_sample(diffusion, denoise, X, constraint=keep)
    assert (value(guided, None) > value(plain, None) + 0.5).all()
    assert (guided[:, 0] == 0).all()


TRAJECTORY = 6  # a trajectory of 2 steps and 3 channels, laid flat


def linear_quadratic():
    """A Gaussian over trajectories, N(mean, covariance), and the matrix of a value -x^T Q x / 2."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, TRAJECTORY, TRAJECTORY, generator=g, dtype=torch.float64)
    mean = torch.randn(TRAJECTORY, generator=g, dtype=torch.float64)
    return mean, a @ a.T / TRAJECTORY, b @ b.T / TRAJECTORY


def quadratic(q):
    def value(x, t):
        x = x.flatten(1)
        return -0.5 * torch.einsum("bi,ij,bj->b", x, q.to(x), x)

    return value


@pytest.mark.parametrize("scale_by_variance", [True, False])
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 20), ("ddim", 20), ("ddim", 5)])
def test_a_guided_chain_by_hand(sampler, steps, scale_by_variance):
    """On a linear-quadratic problem every number of the chain is known: grad V = -Q x."""
    betas = cosine_betas(20)
    abar = torch.cat([torch.cumprod(1 - betas, 0), torch.ones(1)])  # abar[-1] = 1
    mean, covariance, q = linear_quadratic()
    scale, count, stop = 0.3, 2, 2

    def exact_eps(x, t):  # (B, 6) at one step
        marginal = abar[t] * covariance + (1 - abar[t]) * torch.eye(TRAJECTORY)
        score = torch.linalg.solve(marginal, (abar[t].sqrt() * mean - x).T).T
        return -(1 - abar[t]).sqrt() * score

    visited = range(19, -1, -20 // steps)
    start = torch.randn(8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, noise = start.flatten(1), torch.Generator().manual_seed(2)
    for t, s in zip(visited, [*visited[1:], -1], strict=True):
        variance = betas[t] * (1 - abar[t - 1]) / (1 - abar[t])
        for _ in range(count if t >= stop else 0):
            x = x + scale * (variance if scale_by_variance else 1) * (-x @ q)
        eps = exact_eps(x, t)
        x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
        if sampler == "ddim":
            x = abar[s].sqrt() * x0 + (1 - abar[s]).sqrt() * eps
        else:
            x = abar[s].sqrt() * betas[t] * x0 + (1 - betas[t]).sqrt() * (1 - abar[s]) * x
            x = x / (1 - abar[t])
            if s >= 0:
                z = torch.randn(8, 2, 3, dtype=torch.float64, generator=noise)
                x = x + variance.sqrt() * z.flatten(1)

    diffusion = GaussianDiffusion(betas)
    how = GuidedSampling(
        value_guidance_scale=scale,
        num_guide_steps=count,
        scale_by_variance=scale_by_variance,
        guidance_stop=stop,
    )
    hook = value_guided(quadratic(q), diffusion, how)
    sample = {"ddpm": ddpm_sample, "ddim": ddim_sample}[sampler]
    kwargs = {"generator": torch.Generator().manual_seed(2)} if sampler == "ddpm" else {}
    found = sample(
        diffusion,
        lambda x, t: exact_eps(x.flatten(1), int(t[0])).view_as(x),
        start,
        timesteps=inference_timesteps(20, steps),
        pre_step=hook,
        **kwargs,
    )
    torch.testing.assert_close(found.flatten(1), x, atol=1e-4, rtol=0)


def test_gradient_steps_are_powers_of_a_matrix():
    _, _, q = linear_quadratic()
    diffusion = GaussianDiffusion(cosine_betas(20))
    how = GuidedSampling(value_guidance_scale=0.7, num_guide_steps=3, guidance_stop=0)
    hook = value_guided(quadratic(q), diffusion, how)
    x = torch.randn(20, 2, 3, dtype=torch.float64)
    moved = hook(x, torch.arange(20))
    for t in range(20):
        variance = diffusion.posterior(x[:1], x[:1], t)[1].item()
        step = torch.eye(TRAJECTORY, dtype=torch.float64) - 0.7 * variance * q
        expected = torch.linalg.matrix_power(step, 3) @ x[t].flatten()
        torch.testing.assert_close(moved[t].flatten(), expected, atol=1e-7, rtol=1e-6)
    assert torch.equal(moved[0], x[0]), "the variance at step 0 is 0"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("sampler", [ddpm_sample, ddim_sample])
def test_value_guidance_without_gradients_leaves_none_behind(mode, sampler):
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(cosine_betas(10))
    denoiser, value = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    how = GuidedSampling(value_guidance_scale=2.0, guidance_stop=0)
    hook = value_guided(lambda x, t: value(x).sum((1, 2)), diffusion, how)

    def run(pre_step):
        torch.manual_seed(1)
        return sampler(
            diffusion, lambda x, t: denoiser(x), torch.randn(4, 5, 3), pre_step=pre_step, clip=1.0
        )

    outside = run(hook)
    with mode():
        inside, unguided = run(hook), run(None)
    assert torch.equal(inside, outside)
    assert (inside - unguided).abs().max() > 1e-3
    assert not inside.requires_grad
    assert not outside.requires_grad
    for net in (denoiser, value):
        assert all(p.grad is None and p.requires_grad for p in net.parameters())


# A mixture of Gaussians in the plane and conditions on it, all of whose scores are known.
MEANS = torch.tensor([[-1.0, -0.5], [1.2, -1.0], [-0.8, 1.1], [0.9, 0.7]]).double()
COVARIANCES = torch.tensor(
    [[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.4]], [[0.3, -0.1], [-0.1, 0.2]],
     [[0.15, 0.05], [0.05, 0.1]]]
).double()  # fmt: skip
WEIGHTS = torch.tensor([0.4, 0.1, 0.2, 0.3]).double()


def selected(*components):
    """The mixture given that a sample is of some of its components."""
    which = list(components)
    return WEIGHTS[which] / WEIGHTS[which].sum(), MEANS[which], COVARIANCES[which]


def tilted(*slope):
    """The mixture times exp(slope . x), a mixture of moved Gaussians with other weights."""
    slope = torch.tensor(slope).double()
    shift = COVARIANCES @ slope
    weights = WEIGHTS * (MEANS @ slope + shift @ slope / 2).exp()
    return weights / weights.sum(), MEANS + shift, COVARIANCES


def noised(mixture, signal, noise):
    """The density of signal x0 + noise eps."""
    weights, means, covariances = mixture
    marginal = signal**2 * covariances + noise**2 * torch.eye(2).double()
    return MixtureSameFamily(
        Categorical(weights), MultivariateNormal(signal * means, marginal, validate_args=False)
    )


def mixture_eps(diffusion, mixture):
    """The exact eps = -noise * score; the score by responsibilities, component by component."""
    weights, means, covariances = mixture

    def denoise(x, t):
        signal, noise = (v.item() for v in diffusion.signal_noise(int(t[0]), 1))
        away = x[:, None].double() - signal * means  # (B, K, 2)
        precision = (signal**2 * covariances + noise**2 * torch.eye(2).double()).inverse()
        pull = -torch.einsum("kij,bkj->bki", precision, away)
        log = weights.log() + precision.logdet() / 2 + (away * pull).sum(-1) / 2
        score = (log.softmax(1)[..., None] * pull).sum(1)
        return (-noise * score).to(x)

    return denoise


@pytest.mark.parametrize("t", [0, 3, 10, 17, 19])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.7), (1.2, -0.5), (-0.3, 0.0)])
def test_composition_is_the_score_of_the_product(t, weights):
    """eps of null + sum w (cond - null) is that of p_null prod_k (p_k / p_null)^w_k."""
    diffusion = GaussianDiffusion(cosine_betas(20))
    null, conditions = (WEIGHTS, MEANS, COVARIANCES), [selected(1, 3), tilted(0.8, -1.5)]
    denoise = compose(
        mixture_eps(diffusion, null), [mixture_eps(diffusion, c) for c in conditions], weights
    )
    x = 1.5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(t)).double()
    found = denoise(x, torch.full((64,), t))

    signal, noise = (v.item() for v in diffusion.signal_noise(t, 1))
    x.requires_grad_()
    log_null = noised(null, signal, noise).log_prob(x)
    log_product = log_null + sum(
        w * (noised(c, signal, noise).log_prob(x) - log_null)
        for c, w in zip(conditions, weights, strict=True)
    )
    (score,) = torch.autograd.grad(log_product.sum(), x)
    torch.testing.assert_close(found, -noise * score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sampler", "steps"), [(ddim_sample, 100), (ddpm_sample, 200)])
def test_conditions_on_either_axis_compose_to_both(sampler, steps):
    """Left or right and down or up, four clusters: "left" and "up" leave the one that is both."""
    variance = torch.tensor([[0.2, 0.0], [0.0, 0.05]]).double().expand(4, 2, 2)
    corners = torch.tensor([[-1.0, -1.2], [-1.0, 1.2], [1.0, -1.2], [1.0, 1.2]]).double()
    diffusion = GaussianDiffusion(cosine_betas(200))

    def expert(*shares):
        return mixture_eps(diffusion, (torch.tensor(shares).double(), corners, variance))

    def run(denoise):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(5000, 2, generator=g)
        timesteps = inference_timesteps(200, steps)
        return sampler(diffusion, denoise, x, timesteps=timesteps, generator=g)

    # left has share 0.3, up 0.6, independently of one another
    null = expert(0.3 * 0.4, 0.3 * 0.6, 0.7 * 0.4, 0.7 * 0.6)
    samples = run(compose(null, [expert(0.4, 0.6, 0, 0), expert(0, 0.3, 0, 0.7)], [1.0, 1.0]))
    torch.testing.assert_close(samples, run(expert(0, 1, 0, 0)), atol=1e-5, rtol=0)
    standard = (samples - corners[1]) / variance[1].diagonal().sqrt()
    torch.testing.assert_close(standard.mean(0), torch.zeros(2).double(), atol=0.06, rtol=0)
    torch.testing.assert_close(standard.T.cov(), torch.eye(2).double(), atol=0.1, rtol=0)
