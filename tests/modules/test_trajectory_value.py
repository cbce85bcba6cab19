"""TrajectoryValue: what it learns, at which noise, and what every role must do."""

import numpy as np
import pytest
import torch
from conftest import write_d4rl
from torch import nn

from diffrl_lightning import SequenceData, TrajectoryValue
from modules.role_tester import ready

SMALL = {"dim": 16, "dim_mults": (1, 2), "num_train_timesteps": 8, "horizon": 8}


def small(**kwargs):
    return TrajectoryValue(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


class Constant(nn.Module):
    """A value that is the same everywhere, and remembers what it was shown."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, x, t):
        self.x, self.t = x, t
        return torch.full((len(x),), self.value)


def test_level_minus_one_is_the_trajectory_as_it_is():
    """What the actions say is learnt where they are clean, and can not be seen under pure noise."""
    module = small(ema_start=1)
    actions = (torch.rand(32, 8, 1) * 2 - 1).repeat(4, 1, 1)
    batch = {"observations": torch.zeros(128, 8, 3), "actions": actions}
    batch["returns"] = 3 * batch["actions"].mean((1, 2))
    optimizer = torch.optim.Adam(module.value_net.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        module.compute_loss(batch)[0].backward()
        optimizer.step()
    module.ema.update(step=1)
    x0 = module.trajectory.join(batch["actions"], batch["observations"])

    def error(xt, t):
        with torch.no_grad():
            error = module.value(xt, torch.full((128,), t)) - batch["returns"]
        return (error.square().mean() / batch["returns"].var()).item()

    noise = torch.randn_like(x0)
    assert error(x0, -1) < 0.3
    assert error(module.diffusion.add_noise(x0, noise, torch.full((128,), 7)), 7) > 0.7


def windows_from_every_step(path, **kwargs):
    """All windows of the training episodes in one batch; each step begins one."""
    data = ready(SequenceData(str(path), horizon=8, padding="edge", **kwargs))
    return data, data.train_data[torch.arange(len(data.train_data))]


def test_target_is_standardised_over_the_training_steps(monkeypatch, pendulum_file):
    data, batch = windows_from_every_step(pendulum_file)
    assert abs(batch["returns"].mean()) > 0.01
    losses = []
    for value in (0.0, 1.0):
        module = small()
        module.fit_normalizers(data)
        monkeypatch.setattr(module, "value_net", Constant(value))
        losses.append(module.compute_loss(batch)[0].item())
    # Means of y^2 and of (1 - y)^2: the variance is 1 and the mean is 0.
    assert losses == pytest.approx([1, 2], abs=1e-4)


def test_target_as_it_is(monkeypatch, pendulum_file):
    data, batch = windows_from_every_step(pendulum_file, discount=0.9)
    module = small(normalize_returns=False)
    module.fit_normalizers(data)
    monkeypatch.setattr(module, "value_net", Constant(0.5))
    loss, info = module.compute_loss(batch)
    assert loss.item() == pytest.approx((0.5 - batch["returns"]).square().mean().item())
    assert info["value_error"].item() == pytest.approx((0.5 - batch["returns"]).abs().mean().item())


def test_termination_penalty_reaches_the_target(monkeypatch, tmp_path):
    """Ten episodes without rewards, of which every other one falls at its end."""
    ends = np.arange(1, 101) % 10 == 0
    fell = ends & (np.arange(100) // 10 % 2 == 0)
    arrays = {"rewards": np.zeros(100, np.float32), "terminals": fell, "timeouts": ends & ~fell}
    path = write_d4rl(tmp_path / "falls.hdf5", length=10, **arrays)
    kwargs = {"discount": 1.0, "val_fraction": 0.0}
    for penalty, expected in ((0.0, 0.0), (-100.0, 100**2 / 2)):
        _, batch = windows_from_every_step(path, termination_penalty=penalty, **kwargs)
        module = small(normalize_returns=False)
        monkeypatch.setattr(module, "value_net", Constant())
        assert module.compute_loss(batch)[0].item() == pytest.approx(expected)


def test_the_first_state_is_clean_at_every_level_and_all_else_at_the_clean_one(monkeypatch):
    module = small()
    monkeypatch.setattr(module, "value_net", Constant())
    batch = {"observations": torch.rand(500, 8, 3), "actions": torch.rand(500, 8, 1)}
    module.compute_loss(batch | {"returns": torch.zeros(500)})
    x, t = module.value_net.x, module.value_net.t
    assert set(t.tolist()) == set(range(-1, 8))
    x0 = module.trajectory.join(batch["actions"], batch["observations"])
    same = x == x0
    assert same[:, 0, 1:].all()
    assert same[t == -1].all()
    noised = same[t >= 0]
    noised[:, 0, 1:] = False
    assert not noised.any()


@pytest.mark.parametrize(
    ("dims", "kwargs", "parameters"),
    [
        ((11, 3), {"horizon": 32, "dim_mults": (1, 2, 4, 8)}, 2_294_817),
        ((17, 6), {"horizon": 32, "dim_mults": (1, 2, 4, 8)}, 2_296_545),
        ((17, 6), {"horizon": 4, "dim_mults": (1, 4, 8)}, 2_180_833),
    ],
)
def test_published_size(dims, kwargs, parameters):
    module = TrajectoryValue(*dims, dim=32, **kwargs)
    assert sum(p.numel() for p in module.value_net.parameters()) == parameters
