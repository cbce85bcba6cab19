"""Values of windows of any horizon."""

import pytest
import torch

from diffrl_lightning.nets import TemporalValue
from nets.helpers import perturbed


@pytest.mark.parametrize("horizon", [1, 4, 5, 7, 30])
def test_value_of_any_horizon(horizon):
    net = perturbed(TemporalValue(6, horizon=horizon, dim=32, dim_mults=(1, 2)))
    x, t = torch.randn(3, horizon, 6), torch.tensor([-1, 5, 9])
    out = net(x, t)
    assert out.shape == (3,)
    assert (out - net(x, t.flip(0))).abs()[[0, 2]].max() > 1e-3
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2]), atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert (net.head[0].weight.grad != 0).any(0).all(), "the head sees the step's embedding too"
