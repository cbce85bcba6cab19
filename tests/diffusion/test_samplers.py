"""Samplers against Hugging Face diffusers, and against a Gaussian whose score is known."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    cosine_betas,
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    inference_timesteps,
    inpaint,
    make_betas,
)
from diffrl_lightning.types import InputError

SAMPLERS = [ddpm_sample, ddim_sample, dpmpp_sample]
DIFFUSERS_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x, t):
    """Any smooth function will do for comparing two implementations."""
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1)) * (1 + 0.01 * t.view(-1, 1, 1))


def reference(scheduler, steps, x, **kwargs):
    """Their sampler, in float64 where it allows that: it computes betas as 1 - a / b."""
    for name in ("betas", "alphas", "alphas_cumprod"):
        exact = torch.from_numpy(scheduler.config.trained_betas).double()
        exact = exact if name == "betas" else 1 - exact
        setattr(scheduler, name, exact.cumprod(0) if name == "alphas_cumprod" else exact)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        step = scheduler.step(network(x, t.expand(len(x))), t, x, **kwargs)
        x = step.prev_sample
    # With variance "fixed_large" and few steps theirs adds noise even to the clean sample.
    return step.pred_original_sample if isinstance(scheduler, DDPMScheduler) else x


def common(schedule, total, prediction_type):
    betas = make_betas(schedule, total)
    diffusion = GaussianDiffusion(betas, prediction_type)
    config = {
        "num_train_timesteps": total,
        "trained_betas": betas.numpy(),
        "prediction_type": DIFFUSERS_TYPES[prediction_type],
        "timestep_spacing": "trailing",
    }
    x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return diffusion, config, x


def assert_same(ours, theirs):
    """To 1e-5, relative to the largest entry where entries are large."""
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["cosine", "vp", "linear"])
@pytest.mark.parametrize("steps", [100, 20, 5, 1])
class TestParityWithDiffusers:
    @pytest.mark.parametrize(
        ("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
    )
    def test_ddpm(self, schedule, prediction_type, steps, variance, theirs):
        diffusion, config, x = common(schedule, 100, prediction_type)
        scheduler = DDPMScheduler(**config, variance_type=theirs, clip_sample=True)
        expected = reference(scheduler, steps, x, generator=torch.Generator().manual_seed(1))
        ours = ddpm_sample(
            diffusion,
            network,
            x,
            timesteps=inference_timesteps(100, steps),
            variance=variance,
            clip=1.0,
            generator=torch.Generator().manual_seed(1),
        )
        assert_same(ours, expected)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_ddim(self, schedule, prediction_type, steps, eta):
        diffusion, config, x = common(schedule, 100, prediction_type)
        scheduler = DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=True)
        expected = reference(
            scheduler, steps, x, eta=eta, generator=torch.Generator().manual_seed(1)
        )
        ours = ddim_sample(
            diffusion,
            network,
            x,
            timesteps=inference_timesteps(100, steps),
            eta=eta,
            generator=torch.Generator().manual_seed(1),
        )
        assert_same(ours, expected)

    def test_dpmpp(self, schedule, prediction_type, steps):
        diffusion, config, x = common(schedule, 100, prediction_type)
        scheduler = DPMSolverMultistepScheduler(
            **config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
        )
        ours = dpmpp_sample(diffusion, network, x, timesteps=inference_timesteps(100, steps))
        assert_same(ours, reference(scheduler, steps, x))


MEAN = torch.tensor([0.5, -1.0])
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]])


def exact_denoiser(diffusion):
    """The conditional mean E[x_0 | x_t] of x_0 ~ N(MEAN, COVARIANCE), as the prediction asked for."""

    def denoise(x, t):
        signal, noise = diffusion.signal_noise(int(t[0]), x.ndim)
        marginal = signal**2 * COVARIANCE + noise**2 * torch.eye(2)
        x0 = MEAN + signal * (x - signal * MEAN) @ torch.linalg.solve(marginal, COVARIANCE)
        eps = (x - signal * x0) / noise
        return diffusion.target(x0, eps, t)

    return denoise


@pytest.mark.parametrize("prediction_type", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (ddpm_sample, 400),
        (lambda *a, **k: ddpm_sample(*a, variance="beta", **k), 400),
        (ddim_sample, 100),
        (lambda *a, **k: ddim_sample(*a, eta=1.0, **k), 400),
        (dpmpp_sample, 20),
    ],
    ids=["ddpm", "ddpm-beta", "ddim", "ddim-eta1", "dpmpp"],
)
def test_exact_score_recovers_mean_and_covariance(sampler, steps, prediction_type):
    diffusion = GaussianDiffusion(cosine_betas(400), prediction_type)
    x = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    steps = inference_timesteps(400, steps)
    samples = sampler(diffusion, exact_denoiser(diffusion), x, timesteps=steps)
    torch.testing.assert_close(samples.mean(0), MEAN, atol=0.015, rtol=0)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, atol=0.02, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_last_step_ends_on_the_clean_estimate(sampler, steps):
    """Every evaluation is at a noisy step, there are just as many, and no noise is left."""
    diffusion = GaussianDiffusion(cosine_betas(50), "x0")
    target = torch.linspace(-1, 1, 6).view(1, 2, 3)
    visited = []

    def denoise(x, t):
        visited.append(int(t[0]))
        return target.expand_as(x)

    timesteps = inference_timesteps(50, steps)
    samples = sampler(diffusion, denoise, torch.randn(4, 2, 3), timesteps=timesteps)
    assert len(visited) == steps == len(set(visited))
    assert visited[0] == 49
    assert visited == timesteps
    torch.testing.assert_close(samples, target.expand(4, 2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_constraint_clip_hooks_and_some_of_the_steps(sampler):
    diffusion = GaussianDiffusion(cosine_betas(20), "eps")
    values = torch.full((4, 5, 3), 0.25)
    mask = torch.zeros(5, 3, dtype=torch.bool)
    mask[0] = mask[-1] = True
    seen, steps = [], []

    def denoise(x, t):
        seen.append(x[:, mask])
        return 10 * x

    def pre_step(x, t):
        steps.append(int(t[0]))
        return x + 1

    samples = sampler(
        diffusion,
        denoise,
        torch.randn(4, 5, 3),
        timesteps=inference_timesteps(20, 5)[2:],
        constraint=inpaint(values, mask),
        clip=1.0,
        pre_step=pre_step,
    )
    assert all((s == 0.25).all() for s in seen)
    assert (samples[:, mask] == 0.25).all()
    assert samples.abs().max() <= 1.0
    assert steps == inference_timesteps(20, 5)[2:]


def test_everything_known_returns_the_values():
    diffusion = GaussianDiffusion(cosine_betas(20), "eps")
    values = torch.randn(2, 4, 3)
    keep = inpaint(values, torch.ones(4, 3, dtype=torch.bool))
    for sampler in SAMPLERS:
        samples = sampler(diffusion, network, torch.randn(2, 4, 3), constraint=keep)
        assert torch.equal(samples, values)


@pytest.mark.parametrize("sampler", [ddpm_sample, ddim_sample])
def test_temperature_zero_is_deterministic(sampler):
    diffusion = GaussianDiffusion(cosine_betas(20), "eps")
    extra = {"eta": 1.0} if sampler is ddim_sample else {}
    x = torch.randn(2, 4, 3)
    first, second = (sampler(diffusion, network, x, temperature=0.0, **extra) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sampler(diffusion, network, x, **extra))


def test_generators_of_rows_make_rows_independent_of_their_batch():
    diffusion = GaussianDiffusion(cosine_betas(20), "eps")
    x = torch.randn(3, 4, 3)
    rows = [torch.Generator().manual_seed(i) for i in range(3)]
    together = ddpm_sample(diffusion, network, x, generator=rows)
    alone = ddpm_sample(diffusion, network, x[1:2], generator=[torch.Generator().manual_seed(1)])
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_differentiable_on_request_only(sampler):
    diffusion = GaussianDiffusion(cosine_betas(10), "eps")
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.randn(2, 4, 3)

    def run(value, differentiable):
        torch.manual_seed(0)
        denoise = lambda x, t: torch.tanh(value * x)  # noqa: E731
        return sampler(diffusion, denoise, x, timesteps=[9, 6, 3], differentiable=differentiable)

    assert not run(scale, False).requires_grad
    (gradient,) = torch.autograd.grad(run(scale, True).sum(), scale)
    with torch.no_grad():
        high, low = (run(scale.double() + h, True).sum().item() for h in (1e-3, -1e-3))
    assert gradient.item() == pytest.approx((high - low) / 2e-3, rel=2e-2)


def test_more_steps_than_trained_are_refused():
    for steps in (11, 0):
        with pytest.raises(InputError, match="between 1 and the 10 steps"):
            inference_timesteps(10, steps)
