"""Measures of synthetic data against other implementations, closed forms and controls."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.envs.simulate import simulate
from diffrl_lightning.metrics import SampleQuality, kolmogorov_smirnov
from diffrl_lightning.metrics.synthesis import column_names, joined_rows, steps_of
from diffrl_lightning.types import InputError


def measured(real, synthetic, **kwargs):
    metric = SampleQuality(**kwargs)
    for part in real.split(300):
        metric.update(part, real=True)
    metric.update(synthetic, real=False)
    return metric.compute()


def test_kolmogorov_smirnov_as_scipy_has_it():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(300, 3, generator=g), torch.randn(200, 3, generator=g)
    second = second * torch.tensor([1.0, 2.0, 0.0]) + torch.tensor([0.5, 0.0, 0.1])
    second[:50, 0] = first[:50, 0]  # ties
    for i, found in enumerate(kolmogorov_smirnov(first, second).tolist()):
        assert found == pytest.approx(ks_2samp(first[:, i], second[:, i]).statistic)


def test_correlations_by_their_formula():
    g = torch.Generator().manual_seed(0)
    real = torch.randn(50_000, 2, generator=g)
    real[:, 1] = 0.8 * real[:, 0] + 0.6 * real[:, 1]
    found = measured(real, torch.randn(50_000, 2, generator=g))
    assert found["correlation"] == pytest.approx(1 - 0.8 / 2, abs=0.01)
    assert found["marginal"] > 0.98


def test_constant_dimensions_are_left_out():
    real = torch.randn(500, 3)
    real[:, 1] = 4.0
    synthetic = real.clone()
    synthetic[:, 1] = torch.randn(500)
    found = measured(real, synthetic)
    assert found["marginal"] == found["correlation"] == 1


def test_copies_are_found_out():
    g = torch.Generator().manual_seed(0)
    real = torch.randn(4000, 4, generator=g) * torch.tensor([1.0, 10.0, 0.1, 1.0])
    fresh = measured(real, torch.randn(4000, 4, generator=g) * torch.tensor([1.0, 10.0, 0.1, 1.0]))
    assert fresh["nearest"] == pytest.approx(fresh["nearest_real"], rel=0.05)
    assert fresh["nearest_low"] == pytest.approx(fresh["nearest_real_low"], rel=0.1)
    copies = real + 1e-3 * torch.randn(4000, 4, generator=g)
    copied = measured(real, copies)
    assert copied["nearest"] < 0.5 * copied["nearest_real"]
    some = torch.cat([torch.randn(3200, 4, generator=g) * real.std(0), copies[:800]])
    assert measured(real, some)["nearest_low"] < 0.5 * fresh["nearest_real_low"]


@pytest.mark.parametrize(
    "env_id", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "InvertedPendulum-v5"]
)
def test_simulated_steps_are_those_of_the_environment(env_id):
    env = EnvConfig(env_id, {}).make()
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    rows = []
    for _ in range(40):
        action = env.action_space.sample()
        following, reward, ended, *_ = env.step(action)
        rows.append((observation, action, following, reward, ended))
        observation = env.reset()[0] if ended else following
    observations, actions, expected, rewards, ends = (np.stack(x) for x in zip(*rows, strict=True))
    found = simulate(env, observations, actions, show_progress=False)
    known = found.known
    assert known.sum() > 5
    np.testing.assert_allclose(found.next_observations[known], expected[known], atol=1e-5)
    np.testing.assert_allclose(found.rewards[known], rewards[known], atol=1e-4)
    np.testing.assert_array_equal(found.terminations[known], ends[known])
    assert ends.any() != (env_id in ("HalfCheetah-v5", "Walker2d-v5"))


def test_environments_that_can_not_be_set_are_refused():
    env = EnvConfig("Pendulum-v1", {}).make()
    with pytest.raises(InputError, match="use Hopper, HalfCheetah, Walker2d"):
        simulate(env, np.zeros((2, 3)), np.zeros((2, 1)))


def test_rows_of_trajectories():
    batch = {"observations": torch.rand(4, 5, 3), "actions": torch.rand(4, 5, 1)}
    steps = steps_of(batch | {"rewards": torch.rand(4, 5), "returns": torch.rand(4)})
    rows = joined_rows(steps)
    assert rows.shape == (20, 5)
    assert torch.equal(rows[6, :3], batch["observations"][1, 1])
    names = ["observations 0", "observations 1", "observations 2", "actions 0", "rewards"]
    assert column_names(steps) == names
