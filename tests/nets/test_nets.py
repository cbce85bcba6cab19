"""Networks: published sizes, horizons, and the weight average."""

import pytest
import torch
from torch import nn

from diffrl_lightning.nets import EMA, TemporalUnet, check_horizon
from diffrl_lightning.types import InputError


@pytest.mark.parametrize(
    ("transition_dim", "mults", "parameters"),
    [(6, (1, 4, 8), 3_682_118), (14, (1, 2, 4, 8), 3_956_302), (23, (1, 2, 4, 8), 3_958_327),
     (23, (1, 4, 8), 3_685_943)],
)  # fmt: skip
def test_published_parameter_counts(transition_dim, mults, parameters):
    net = TemporalUnet(transition_dim, dim=32, dim_mults=mults)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("horizon", [4, 12, 36])
def test_any_horizon_that_divides(horizon):
    net = TemporalUnet(6, dim=8, dim_mults=(1, 2, 4))
    x = torch.randn(2, horizon, 6)
    out = net(x, torch.tensor([0, 3]))
    assert out.shape == x.shape
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_step_matters_and_rows_do_not_mix():
    net = TemporalUnet(6, dim=8, dim_mults=(1, 2)).eval()
    x = torch.randn(3, 8, 6)
    t = torch.tensor([0, 5, 9])
    out = net(x, t)
    assert not torch.allclose(out, net(x, t.flip(0)))
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2]), atol=1e-5, rtol=1e-5)


def test_horizon_is_refused_with_the_nearest_good_ones():
    check_horizon(8, (1, 2, 4, 8))
    with pytest.raises(InputError, match="use 24 or 32"):
        check_horizon(30, (1, 2, 4, 8))
    with pytest.raises(InputError, match="use 8"):
        check_horizon(5, (1, 2, 4, 8))


def test_ema_follows_decay_interval_and_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = EMA(net, decay=0.9, update_every=2, start=4)
    values = []
    for step in range(1, 9):
        nn.init.constant_(net.weight, float(step))
        ema.update(net, step)
        values.append(ema.net.weight.item())
    # copied at 2 and 4; then 0.9 * 4 + 0.1 * 6 = 4.2 and 0.9 * 4.2 + 0.1 * 8 = 4.58
    assert values == pytest.approx([0, 2, 2, 4, 4, 4.2, 4.2, 4.58])


def test_ema_stays_in_evaluation_mode_and_needs_no_gradient():
    ema = EMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    ema.train()
    assert not ema.training
    assert not ema.net[1].training
    assert not any(p.requires_grad for p in ema.parameters())
    with pytest.raises(InputError, match="decay"):
        EMA(nn.Linear(1, 1), decay=1.0)
