"""Inverse dynamics between neighbouring states."""

import torch
from torch import nn

from diffrl_lightning.nets import InverseDynamics


def test_inverse_dynamics_sees_each_state_and_the_next():
    net = InverseDynamics(3, 2, hidden_dim=8)
    states = torch.randn(4, 5, 3)
    actions = net(states)
    assert actions.shape == (4, 4, 2)
    pair = torch.cat([states[:, 2], states[:, 3]], -1)
    torch.testing.assert_close(actions[:, 2], nn.Sequential(*net)(pair))
