"""The weight average."""

import pytest
from torch import nn

from diffrl_lightning.nets import EMA
from diffrl_lightning.types import InputError


def test_ema_follows_decay_interval_and_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = EMA(net, decay=0.9, update_every=2, start=4)
    values = []
    for step in range(1, 9):
        nn.init.constant_(net.weight, float(step))
        ema.update(step)
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


def test_average_warms_up_by_a_power():
    """Step k keeps 1 - k^-power, at most the decay: first a copy, at power 1 the mean of all."""
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, decay=0.9, power=1.0)
    seen = []
    for step, weight in enumerate([3.0, 5.0, 10.0, 2.0], 1):
        net.weight.data.fill_(weight)
        ema.update(step)
        seen.append(ema.net.weight.item())
    assert seen == pytest.approx([3, 4, 6, 5])
    net.weight.data.fill_(15.0)
    ema.update(1000)
    assert ema.net.weight.item() == pytest.approx(6)
