"""Normalisers: round trips, limits, constant dimensions, state."""

from types import SimpleNamespace

import pytest
import torch

from diffrl_lightning.normalizers import TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import InputError

KINDS = ["gaussian", "limits", "cdf"]


def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 4, generator=g) * torch.tensor([1.0, 100.0, 0.0, 1e-3])
    return x + torch.tensor([0.0, -50.0, 7.0, 1.0])


def fitted(kind):
    normalizer = make_normalizer(kind, 4)
    normalizer.fit(data())
    return normalizer


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_constant_dimension(kind):
    normalizer, x = fitted(kind), data()
    z = normalizer.normalize(x)
    assert torch.isfinite(z).all()
    spread = x.std(0).clamp_min(1e-3)
    torch.testing.assert_close(normalizer.unnormalize(z) / spread, x / spread, atol=2e-2, rtol=1e-3)
    assert (z[:, 2] == 0).all(), "a constant goes to 0 and does not spoil the others"
    assert (normalizer.unnormalize(z)[:, 2] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_large_values_keep_their_precision(kind, gap):
    """A constant goes to the middle and back, and one that is nearly constant does not explode."""
    for value in (1e8, -1e8, 1e30, 3e38, 0.0):
        constant = torch.full((100, 1), value)
        normalizer = make_normalizer(kind, 1, gap)
        normalizer.fit(constant)
        z = normalizer.normalize(constant)
        assert (z.abs() < 1e-3).all(), value
        torch.testing.assert_close(normalizer.unnormalize(z), constant, rtol=1e-6, atol=0)
    if kind == "limits":
        nearly = torch.tensor([[1e8], [1e8 + 8]])
        normalizer.fit(nearly)
        assert normalizer.normalize(nearly).abs().max() < 0.2


def test_a_range_beyond_float32_is_refused():
    with pytest.raises(InputError, match="Dimension 0 of the data spans more than float32"):
        make_normalizer("limits", 1).fit(torch.tensor([[-3e38], [3e38]]))


def test_gaussian_statistics():
    z = fitted("gaussian").normalize(data())
    varying = [0, 1, 3]
    torch.testing.assert_close(z.mean(0)[varying], torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(0)[varying], torch.ones(3), atol=1e-2, rtol=0)


def test_limits_are_exactly_the_data():
    normalizer, x = fitted("limits"), data()
    z = normalizer.normalize(x)
    torch.testing.assert_close(z.amax(0)[[0, 1, 3]], torch.ones(3))
    torch.testing.assert_close(z.amin(0)[[0, 1, 3]], -torch.ones(3))
    beyond = normalizer.normalize(x.amax(0, keepdim=True) + 1)
    assert (beyond[0, :2] > 1).all(), "unseen values are not cut off"


def test_cdf_is_uniform_and_clips():
    normalizer, x = fitted("cdf"), data()
    z = normalizer.normalize(x)
    for dim in (0, 1, 3):
        uniform = torch.linspace(-1, 1, len(x))
        assert (z[:, dim].sort().values - uniform).abs().max() < 5e-3
    far = torch.full((1, 4), 1e6)
    assert (normalizer.normalize(far)[0, [0, 1, 3]] == 1).all()
    torch.testing.assert_close(
        normalizer.unnormalize(torch.full((1, 4), 2.0))[0], x.amax(0), rtol=1e-5, atol=1e-5
    )


def test_cdf_with_repeated_values():
    x = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 2.0]).repeat(100)[:, None]
    normalizer = make_normalizer("cdf", 1)
    normalizer.fit(x)
    values = torch.tensor([[0.0], [1.0], [2.0]])
    z = normalizer.normalize(values)
    assert (z[1:] > z[:-1]).all()
    torch.testing.assert_close(normalizer.unnormalize(z), values)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_travel_in_the_state(kind):
    first, second = fitted(kind), make_normalizer(kind, 4)
    assert not second.fitted
    second.load_state_dict(first.state_dict())
    assert second.fitted
    shaped = data()[:12].view(3, 4, 4)
    assert torch.equal(first.normalize(shaped), second.normalize(shaped))
    assert second.normalize(shaped).shape == shaped.shape


@pytest.mark.parametrize("kind", KINDS)
def test_trajectories_are_actions_and_then_states(kind):
    """Fitted on the training rows of each, joined actions first, and split again."""
    x = data()
    arrays = {"actions": x[:, :1], "observations": x[:, 1:] + 3}
    train = torch.arange(len(x)) % 2 == 0
    trajectory = TrajectoryNormalizer(kind, observation_dim=3, action_dim=1)
    trajectory.fit(SimpleNamespace(training_rows=lambda name: (arrays[name], train)))
    own = {name: make_normalizer(kind, array.shape[1]) for name, array in arrays.items()}
    for name, array in arrays.items():
        own[name].fit(array[train])

    actions, observations = (array[train][:60].view(5, 12, -1) for array in arrays.values())
    joined = trajectory.join(actions, observations)
    assert joined.shape == (5, 12, 4)
    assert torch.equal(joined[..., :1], own["actions"].normalize(actions))
    assert torch.equal(joined[..., 1:], own["observations"].normalize(observations))
    for found, part in zip(trajectory.split(joined), (actions, observations), strict=True):
        spread = part.flatten(0, 1).std(0).clamp_min(1e-3)
        torch.testing.assert_close(found / spread, part / spread, atol=2e-2, rtol=1e-3)
    other = TrajectoryNormalizer(kind, observation_dim=3, action_dim=1)
    other.load_state_dict(trajectory.state_dict())
    assert torch.equal(other.join(actions, observations), joined)


def clipped():
    """Values that pile up at both ends, at one, and at none."""
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    return torch.stack([x[:, 0].clamp(-1, 1), x[:, 1].clamp_max(0.5), x[:, 2]], 1)


@pytest.mark.parametrize("kind", ["gaussian", "limits"])
def test_values_at_a_bound_come_back_exact(kind):
    """What a model's smearing does to them, with a gap and, as a control, without one."""
    x = clipped()
    smear = 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    kept = {}
    for gap in (0.5, 0.0):
        normalizer = make_normalizer(kind, 3, gap)
        normalizer.fit(x)
        assert all(m.fitted for m in normalizer.modules() if hasattr(m, "fitted"))
        z = normalizer.normalize(x)
        torch.testing.assert_close(normalizer.unnormalize(z), x, atol=5e-3, rtol=1e-3)
        kept[gap] = normalizer.unnormalize(z + smear * z.std(0))
        if kind == "gaussian":
            torch.testing.assert_close(z.std(0), torch.ones(3), atol=1e-3, rtol=0)
    low, high = (x[:, 0] == -1).float().mean().item(), (x[:, 1] == 0.5).float().mean().item()
    assert (kept[0.5][:, 0] == -1).float().mean().item() == pytest.approx(low, rel=0.02)
    assert (kept[0.5][:, 1] == 0.5).float().mean().item() == pytest.approx(high, rel=0.02)
    assert kept[0.5][:, 0].abs().max() == 1
    assert (kept[0.0][:, 0] == -1).float().mean() == 0, "smeared"
    assert (kept[0.0][:, 0].clamp(-1, 1) == -1).float().mean() < 0.6 * low, (
        "half of them, if clipped"
    )
    assert kept[0.5][:, 2].max() > x[:, 2].max() - 0.2, "where none pile up there is no bound"


def test_few_equal_values_are_no_bound():
    normalizer = make_normalizer("gaussian", 1, 0.5)
    normalizer.fit(torch.cat([torch.linspace(-1, 1, 3000), torch.full((13,), 1.0)])[:, None])
    assert normalizer.high.item() == torch.inf
    normalizer.fit(torch.cat([torch.linspace(-1, 1, 3000), torch.full((20,), 1.0)])[:, None])
    assert normalizer.high.item() == 1


def test_bad_input():
    with pytest.raises(InputError, match="gaussian, limits, cdf"):
        make_normalizer("minmax", 2)
    with pytest.raises(InputError, match="4 dimensions"):
        make_normalizer("limits", 4).fit(torch.zeros(10, 3))
    with pytest.raises(InputError, match="NaN"):
        make_normalizer("limits", 1).fit(torch.tensor([[float("nan")]]))
