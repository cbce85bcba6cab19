"""EDM against its paper's formulas, the discrete diffusion, and a Gaussian whose denoiser is known."""

import itertools

import pytest
import torch

from diffrl_lightning.diffusion import (
    EDM,
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    heun_sample,
    heun_steps,
)
from diffrl_lightning.types import InputError

MEAN = torch.tensor([0.3, -0.5, 0.1])
FACTOR = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.4, 0.3]])
COVARIANCE = FACTOR @ FACTOR.T


def exact(edm):
    """F whose D is the posterior mean of N(MEAN, COVARIANCE)."""

    def denoise(scaled, c_noise):
        sigma = (4 * c_noise[:, None]).exp()
        c_skip, c_out, c_in, _ = edm.coefficients(sigma)
        x = scaled / c_in
        total = COVARIANCE + sigma[0].square() * torch.eye(3)
        x0 = MEAN + (x - MEAN) @ torch.linalg.solve(total, COVARIANCE)
        return (x0 - c_skip * x) / c_out

    return denoise


def moments(x):
    return x.mean(0), x.T.cov()


class TestPreconditioning:
    @pytest.mark.parametrize("sigma_data", [0.5, 1.0])
    def test_is_table_1(self, sigma_data):
        sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64)
        total = sigma**2 + sigma_data**2
        expected = (
            sigma_data**2 / total,
            sigma * sigma_data / total**0.5,
            1 / total**0.5,
            sigma.log() / 4,
        )
        found = EDM(sigma_data=sigma_data).coefficients(sigma)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_each_entry_has_a_spread_of_its_own(self):
        spreads, sigma = [0.1, 1.0, 2.0], torch.tensor([[0.01], [3.0]])
        found = EDM(sigma_data=spreads).coefficients(sigma)
        for column, spread in enumerate(spreads):
            expected = EDM(sigma_data=spread).coefficients(sigma)
            for ours, theirs in zip(found[:3], expected[:3], strict=True):
                torch.testing.assert_close(ours[:, [column]], theirs)

    def test_a_clean_sample_is_its_own_estimate(self):
        x = torch.randn(4, 3)
        estimate = EDM().to_x0(lambda x, t: torch.full_like(x, 5.0), x, torch.full((4,), 1e-6))
        torch.testing.assert_close(estimate, x, atol=1e-5, rtol=0)

    def test_at_unit_spread_it_is_v_prediction(self):
        """c_in x_sigma is x_t, and -F is v (Salimans & Ho 2022) of the same network."""
        edm = EDM()
        diffusion, estimate = edm.discrete(lambda x, t: torch.tanh(x) * t[:, None], 40)
        xt, t = torch.randn(5, 3), torch.full((5,), 17)
        signal, noise = diffusion.signal_noise(t, 2)
        sigma = (noise / signal)[:, 0]
        v = -torch.tanh(xt) * (0.25 * sigma.log())[:, None]
        torch.testing.assert_close(estimate(xt, t), signal * xt - noise * v)


class TestLoss:
    @pytest.mark.parametrize("sigma_data", [0.5, 1.0, [0.1, 1.0, 2.0]])
    def test_is_the_weighted_error_of_the_estimate(self, sigma_data):
        edm = EDM(sigma_data=sigma_data)
        x0 = torch.randn(6, 3, dtype=torch.float64)

        def denoise(x, t):
            return torch.sin(x) + t.view(-1, 1)

        loss = edm.loss(denoise, x0, generator=torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        normal = torch.randn(6, generator=generator, dtype=torch.float64)
        sigma = (-1.2 + 1.2 * normal).exp()
        x = x0 + sigma[:, None] * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        spread, level = torch.tensor(sigma_data, dtype=torch.float32), sigma[:, None]
        weight = (level**2 + spread**2) / (level * spread) ** 2
        error = (edm.to_x0(denoise, x, sigma) - x0).square()
        torch.testing.assert_close(loss, (weight * error).mean(1))

    def test_weights_of_entries(self):
        x0, weight = torch.randn(4, 3), torch.tensor([0.0, 2.0, 1.0])
        found = [
            EDM().loss(lambda x, t: x, x0, generator=torch.Generator().manual_seed(1), weight=w)
            for w in (weight, torch.eye(3)[1], torch.eye(3)[2])
        ]
        torch.testing.assert_close(found[0], 2 * found[1] + found[2])

    def test_the_exact_denoiser_has_the_least(self):
        edm = EDM()
        x0 = MEAN + torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) @ FACTOR.T
        best = exact_rows(edm)
        losses = [
            edm.loss(f, x0, generator=torch.Generator().manual_seed(1)).mean()
            for f in (best, lambda x, t: 0.9 * best(x, t), lambda x, t: best(x, t) + 0.05)
        ]
        assert losses[0] < min(losses[1:])


def exact_rows(edm):
    """The same as :func:`exact` where each row has a level of its own."""

    def denoise(scaled, c_noise):
        sigma = (4 * c_noise).exp()
        c_skip, c_out, c_in, _ = (c[:, None] for c in edm.coefficients(sigma))
        x = scaled / c_in
        total = COVARIANCE + sigma.square()[:, None, None] * torch.eye(3)
        shift = torch.linalg.solve(total, (x - MEAN)[..., None])[..., 0] @ COVARIANCE
        return (MEAN + shift - c_skip * x) / c_out

    return denoise


class TestLevels:
    def test_are_those_of_the_paper(self):
        sigmas = EDM().sigmas(128)
        steps = torch.arange(128, dtype=torch.float64) / 127
        expected = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        torch.testing.assert_close(sigmas[:-1], expected)
        torch.testing.assert_close(sigmas[[0, 127, 128]], torch.tensor([80, 0.002, 0]).double())

    def test_discrete_diffusion_has_them(self):
        edm = EDM()
        diffusion, _ = edm.discrete(lambda x, t: x, 16)
        signal, noise = diffusion.signal_noise(torch.arange(16), 1)
        torch.testing.assert_close(
            noise / signal, edm.sigmas(16)[:-1].flip(0).float(), rtol=1e-4, atol=0
        )

    @pytest.mark.parametrize("sigma_data", [0.0, [1.0, -1.0]])
    def test_bad_spreads_are_refused(self, sigma_data):
        with pytest.raises(InputError, match=r"sigma_data=.* must be above 0"):
            EDM(sigma_data=sigma_data)


class TestHeun:
    def test_evaluations_and_noise_as_published(self, monkeypatch):
        """255 evaluations for 128 steps, and noise by gamma .41421 in 96 of them."""
        levels, noises = [], []
        edm = EDM()

        def denoise(x, t):
            levels.append(float((4 * t[0]).exp()))
            return torch.zeros_like(x)

        def randn(shape, **_):
            noises.append(shape)
            return torch.zeros(shape)

        monkeypatch.setattr("diffrl_lightning.diffusion.edm.randn", randn)
        heun_sample(edm, denoise, torch.randn(2, 3))
        assert len(levels) == 255
        assert len(noises) == 96
        first = torch.tensor(levels[::2], dtype=torch.float64) / edm.sigmas(128)[:-1]
        torch.testing.assert_close(
            first[first > 1.01], torch.full((96,), 2**0.5).double(), rtol=1e-5, atol=0
        )
        torch.testing.assert_close(first[first <= 1.01], torch.ones(32).double(), rtol=1e-5, atol=0)

    @pytest.mark.parametrize("s_churn", [0.0, 80.0])
    def test_recovers_a_gaussian(self, s_churn):
        edm = EDM()
        x = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
        samples = heun_sample(
            edm,
            exact(edm),
            x,
            s_churn=s_churn,
            s_noise=1.0,
            generator=torch.Generator().manual_seed(1),
        )
        mean, covariance = moments(samples)
        torch.testing.assert_close(mean, MEAN, atol=0.02, rtol=0)
        torch.testing.assert_close(covariance, COVARIANCE, atol=0.03, rtol=0)

    def test_second_order(self):
        """Half the step, a quarter of the error, against the flow's closed form."""
        edm = EDM()
        x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(COVARIANCE.double())
        # Along each eigenvector the distance to the mean shrinks as sqrt(lambda + sigma^2).
        scale = (values / (values + 80.0**2)).sqrt()
        start = (80 * x - MEAN) @ vectors
        expected = MEAN + (start * scale) @ vectors.T
        errors = []
        for n in (16, 32, 64):
            found = heun_sample(edm, double(exact(edm)), x, num_steps=n, s_churn=0.0)
            errors.append((found - expected).abs().max())
        assert errors[0] / errors[1] > 3
        assert errors[1] / errors[2] > 3

    @pytest.mark.parametrize("number", [0, 2, 256])
    def test_even_evaluations_are_refused(self, number):
        with pytest.raises(InputError, match="must be odd"):
            heun_steps(number)

    def test_temperature_scales_the_noise_that_comes_in(self):
        """At 0 none does; above, a Gaussian of unit variance widens with it."""
        x, edm = torch.zeros(2000, 1), EDM()

        def spread(temperature):
            generator = torch.Generator().manual_seed(0)
            options = {"temperature": temperature, "generator": generator}
            return heun_sample(edm, lambda x, t: 0 * x, x, num_steps=8, **options).std().item()

        assert spread(0.0) == 0
        assert spread(1.0) == pytest.approx(2 * spread(0.5), rel=1e-4)

    def test_clip_bounds_the_estimate(self):
        samples = heun_sample(
            EDM(), lambda x, t: 50 * torch.ones_like(x), torch.randn(4, 3), clip=1.0, s_churn=0.0
        )
        assert samples.abs().max() <= 1.001


def double(denoise):
    """float32 matrices inside, float64 outside."""
    return lambda x, t: denoise(x.float(), t.float()).double()


@pytest.mark.parametrize("sample", [ddpm_sample, ddim_sample, dpmpp_sample])
def test_other_samplers_run_on_the_same_network(sample):
    edm = EDM()
    diffusion, estimate = edm.discrete(exact(edm), 600)
    x = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    mean, covariance = moments(sample(diffusion, estimate, x))
    torch.testing.assert_close(mean, MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(covariance, COVARIANCE, atol=0.05, rtol=0)


def test_ddim_is_eulers_method():
    """In these coordinates DDIM's step is Euler's on the flow (Karras et al. 2022, appendix B.3)."""
    edm = EDM()
    denoise = exact(edm)
    diffusion, estimate = edm.discrete(denoise, 8)
    xt = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x = 80.0 * xt * (1 + 80.0**-2) ** 0.5  # x_T / sqrt(abar_T)
    levels = edm.sigmas(8).tolist()
    for sigma, following in itertools.pairwise(levels):
        x0 = edm.to_x0(denoise, x, torch.full((5,), sigma))
        x = x + (following - sigma) * (x - x0) / sigma
    torch.testing.assert_close(ddim_sample(diffusion, estimate, xt), x, atol=2e-4, rtol=1e-3)
