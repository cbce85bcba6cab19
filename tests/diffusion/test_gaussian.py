"""The process against closed forms."""

import pytest
import torch

from diffrl_lightning.diffusion import GaussianDiffusion, cosine_betas, inpaint, make_betas
from diffrl_lightning.types import InputError

T = 50


def process(prediction_type="eps"):
    return GaussianDiffusion(cosine_betas(T), prediction_type)


def draw(n=6):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 4, 3, generator=g)
    return x0, eps, torch.arange(0, T, T // n)[:n]


@pytest.mark.parametrize("prediction_type", ["eps", "x0", "v"])
def test_exact_prediction_gives_back_x0_and_the_same_posterior(prediction_type):
    x0, eps, t = draw()
    diffusion = process(prediction_type)
    xt = diffusion.add_noise(x0, eps, t)
    pred = diffusion.target(x0, eps, t)
    torch.testing.assert_close(diffusion.to_x0(pred, xt, t), x0, atol=1e-4, rtol=1e-4)
    mean, variance = diffusion.posterior(diffusion.to_x0(pred, xt, t), xt, t)
    expected, expected_variance = process("x0").posterior(x0, xt, t)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(variance, expected_variance)


@pytest.mark.parametrize("schedule", ["cosine", "vp", "linear"])
def test_posterior_is_bayes_rule(schedule):
    """q(x_s | x_t, x_0) from the joint Gaussian of (x_s, x_t) given x_0, in float64."""
    betas = make_betas(schedule, T)
    diffusion = GaussianDiffusion(betas)
    abar = torch.cumprod(1 - betas, 0)
    x0, xt = 0.7, -1.3
    for t, s in [(1, 0), (10, 9), (T - 1, T - 2), (30, 4)]:
        a, b = abar[t], abar[s]
        covariance = (a / b).sqrt() * (1 - b)
        mean = b.sqrt() * x0 + covariance / (1 - a) * (xt - a.sqrt() * x0)
        variance = (1 - b) - covariance**2 / (1 - a)
        found = diffusion.posterior(torch.tensor([[x0]]), torch.tensor([[xt]]), t, s)
        torch.testing.assert_close(found[0].item(), mean.item(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[1].item(), variance.item(), rtol=1e-4, atol=1e-8)


def test_many_small_steps_compose_to_the_marginal():
    """Iterating q(x_t | x_{t-1}) gives the mean and variance of q(x_t | x_0)."""
    betas = cosine_betas(T)
    mean, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for beta in betas:
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
    signal, noise = process().signal_noise(T - 1, 1)
    assert signal.item() == pytest.approx(mean.item(), rel=1e-5)
    assert noise.square().item() == pytest.approx(variance.item(), rel=1e-6)


def test_loss_weight_and_constraint():
    x0, _, _ = draw()
    diffusion = process("x0")
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[0] = True
    weight = torch.ones(4, 3)
    weight[1] = 10.0
    seen = []

    def denoise(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    loss = diffusion.loss(denoise, x0, weight=weight, constraint=inpaint(x0, known))
    expected = (x0.square() * weight * ~known).flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(seen[0][:, 0], x0[:, 0]), "the network sees known entries clean"


@pytest.mark.parametrize("prediction_type", ["eps", "v"])
def test_known_entries_carry_no_loss(prediction_type):
    x0, _, _ = draw()
    everything = torch.ones(4, 3, dtype=torch.bool)
    loss = process(prediction_type).loss(lambda x, t: x + 9, x0, constraint=inpaint(x0, everything))
    assert torch.equal(loss, torch.zeros(len(x0)))


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_snr_weights_are_those_of_an_error_of_the_clean_sample(gamma):
    """A network that is off by a tenth in x0, whatever it predicts: 0.01 min(SNR, gamma)."""
    x0 = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    snr = process().alphas_cumprod / (1 - process().alphas_cumprod)
    expected = 0.01 * snr.clamp(max=gamma).mean().item()
    for prediction_type in ("eps", "x0", "v"):
        diffusion = process(prediction_type)

        def denoise(xt, t, diffusion=diffusion):
            wrong = x0 + 0.1
            signal, noise = diffusion.signal_noise(t, 2)
            return diffusion.target(wrong, (xt - signal * wrong) / noise, t)

        g = torch.Generator().manual_seed(1)
        loss = diffusion.loss(denoise, x0, snr_gamma=gamma, generator=g)
        assert loss.mean().item() == pytest.approx(expected, rel=0.05)


def test_rows_with_generators_of_their_own_do_not_depend_on_the_batch():
    x0, _, _ = draw()
    generators = [torch.Generator().manual_seed(i) for i in range(len(x0))]
    together = process().loss(lambda x, t: x, x0, generator=generators)
    alone = process().loss(lambda x, t: x, x0[3:4], generator=[torch.Generator().manual_seed(3)])
    torch.testing.assert_close(together[3:4], alone)


def test_bad_input():
    with pytest.raises(InputError, match="choose one of eps, x0, v"):
        process("score")
    with pytest.raises(InputError, match="betas"):
        GaussianDiffusion(torch.tensor([0.1, 1.0]))
    with pytest.raises(InputError, match="bool"):
        inpaint(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(InputError, match="broadcast"):
        inpaint(torch.zeros(2, 3), torch.ones(4, dtype=torch.bool))
