"""Samples by a sampler's name: the same as calling it, from noise or from an earlier sample."""

import pytest
import torch

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    Sampling,
    cosine_betas,
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    draw,
    inference_timesteps,
    inpaint,
    randn,
)
from diffrl_lightning.types import InputError

SAMPLERS = {"ddpm": ddpm_sample, "ddim": ddim_sample, "dpmpp": dpmpp_sample}
SHAPE = (6, 4, 3)
LIKE = torch.zeros(1)
FIVE_STEPS = Sampling(num_inference_steps=5)


def process(prediction_type="eps"):
    return GaussianDiffusion(cosine_betas(20), prediction_type)


def network(x, t):
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1)) * (1 + 0.01 * t.view(-1, 1, 1))


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(generators) > 1 else generators[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_the_same_as_the_sampler_itself(sampler, dtype, temperature):
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[0] = True
    shared = {
        "constraint": inpaint(torch.full(SHAPE, 0.2, dtype=dtype), mask),
        "clip": 0.9,
        "pre_step": lambda x, t: x + 0.01 * t.view(-1, 1, 1),
    }
    like = LIKE.to(dtype)
    found = draw(
        process(),
        network,
        SHAPE,
        Sampling(sampler=sampler, num_inference_steps=5, temperature=temperature),
        like=like,
        generator=seeded(3),
        **shared,
    )
    g = seeded(3)
    x = temperature * torch.randn(SHAPE, generator=g, dtype=dtype)
    noise = {"temperature": temperature, "generator": g} if sampler == "ddpm" else {}
    steps = inference_timesteps(20, 5)
    expected = SAMPLERS[sampler](process(), network, x, timesteps=steps, **shared, **noise)
    assert torch.equal(found, expected)
    assert found.dtype == dtype


def test_all_steps_of_ddim_by_default():
    found = draw(process(), network, SHAPE, Sampling(), like=LIKE, generator=seeded(0))
    start = torch.randn(SHAPE, generator=seeded(0))
    assert torch.equal(found, ddim_sample(process(), network, start))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("warm_start_steps", [1, 2, 4])
def test_a_warm_start_is_the_last_evaluations_from_their_noise_level(
    sampler, temperature, warm_start_steps
):
    seen = []

    def watched(x, t):
        seen.append((x, int(t[0])))
        return network(x, t)

    previous = torch.linspace(-1, 1, 72).view(SHAPE)
    draw(
        process(),
        watched,
        SHAPE,
        Sampling(sampler=sampler, num_inference_steps=5, temperature=temperature),
        like=LIKE,
        generator=seeded(1),
        previous=previous,
        warm_start_steps=warm_start_steps,
    )
    steps = inference_timesteps(20, 5)[-warm_start_steps:]
    assert [t for _, t in seen] == steps
    abar = torch.cumprod(1 - cosine_betas(20), 0)[steps[0]]
    eps = torch.randn(SHAPE, generator=seeded(1))
    expected = abar.sqrt() * previous + temperature * (1 - abar).sqrt() * eps
    torch.testing.assert_close(seen[0][0], expected.float(), atol=1e-6, rtol=1e-5)


def test_a_warm_start_of_no_or_of_all_evaluations_is_afresh():
    def run(**kwargs):
        return draw(process(), network, SHAPE, FIVE_STEPS, like=LIKE, generator=seeded(1), **kwargs)

    previous = torch.ones(SHAPE)
    for steps in (0, 5, 9):
        assert torch.equal(run(previous=previous, warm_start_steps=steps), run())
    assert torch.equal(run(warm_start_steps=2), run()), "nothing to start from"
    assert not torch.equal(run(previous=previous, warm_start_steps=4), run())


def test_a_warm_start_returns_what_the_network_has_settled_on():
    target = torch.linspace(-1, 1, 12).view(1, 4, 3).expand(SHAPE)
    warm = {"previous": torch.zeros(SHAPE), "warm_start_steps": 2}
    found = draw(process("x0"), lambda x, t: target, SHAPE, FIVE_STEPS, like=LIKE, **warm)
    torch.testing.assert_close(found, target, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("warm", [{}, {"previous": torch.ones(6, 4, 3), "warm_start_steps": 3}])
def test_a_group_of_rows_does_not_depend_on_the_others(sampler, warm):
    """Three generators for six rows: rows 2 and 3 are the second's alone."""

    def run(rows, *seeds):
        kwargs = warm | ({"previous": warm["previous"][:rows]} if warm else {})
        how = Sampling(sampler=sampler, num_inference_steps=5)
        generators = [*map(seeded, seeds)]
        return draw(
            process(), network, (rows, 4, 3), how, like=LIKE, generator=generators, **kwargs
        )

    together = run(6, 7, 8, 9)
    torch.testing.assert_close(together[2:4], run(2, 8))
    torch.testing.assert_close(together[2:4], run(6, 1, 8, 2)[2:4])
    assert not torch.allclose(together[2], together[3]), "rows of a group have noise of their own"
    assert not torch.allclose(together[2:4], run(2, 7))


def test_noise_of_groups():
    noise = randn((6, 2), generator=seeded(7, 8), like=LIKE.double())
    own = [torch.randn(3, 2, generator=seeded(seed)) for seed in (7, 8)]
    assert torch.equal(noise, torch.cat(own).double())
    with pytest.raises(InputError, match="4 generators for a batch of 6: give one a row"):
        randn((6, 2), generator=seeded(1, 2, 3, 4), like=LIKE)
    with pytest.raises(InputError, match="12 generators for a batch of 6"):
        draw(process(), network, SHAPE, Sampling(), like=LIKE, generator=seeded(*range(12)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "euler"}, "sampler='euler' is unknown: choose one of ddpm, ddim, dpmpp"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"temperature": -0.5}, "temperature=-0.5 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
    ],
)
def test_bad_choices(kwargs, message):
    with pytest.raises(InputError, match=message):
        Sampling(**kwargs)


def test_more_steps_than_trained_are_refused_before_sampling():
    def network(x, t):
        pytest.fail("sampled before it was refused")

    how = Sampling(num_inference_steps=21)
    message = "num_inference_steps=21 must lie between 1 and the 20 steps"
    with pytest.raises(InputError, match=message):
        draw(process(), network, SHAPE, how, like=LIKE)
    with pytest.raises(InputError, match=message):
        how.timesteps(process())
