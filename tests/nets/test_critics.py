"""Critics computed together, and frozen networks."""

import pytest
import torch
from torch import nn

from diffrl_lightning.nets import TwinQ, frozen, mlp


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["mish", "relu"])
def test_critics_computed_together_are_those_computed_one_by_one(activation, layer_norm):
    kwargs = {"activation": activation, "layer_norm": layer_norm}
    net = TwinQ(3, 2, hidden_dim=8, num_layers=2, num_heads=3, **kwargs)
    states, actions = torch.randn(5, 3), torch.randn(5, 2)
    together = net(states, actions)
    assert together.shape == (3, 5)
    function = {"mish": nn.functional.mish, "relu": torch.relu}[activation]
    for head in range(3):
        h = torch.cat([states, actions], 1)
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = h @ weight[head] + bias[head]
            if layer_norm and layer < 2:
                h = (h - h.mean(1, keepdim=True)) / (
                    h.var(1, correction=0, keepdim=True) + 1e-5
                ).sqrt()
            h = h if layer == 2 else function(h)
        torch.testing.assert_close(together[head], h[:, 0])


def test_critics_begin_as_linear_layers_do():
    net = TwinQ(11, 3, num_layers=3)
    for weight, bias in zip(net.weights, net.biases, strict=True):
        bound = weight.shape[1] ** -0.5
        for values in (weight, bias):
            assert values.abs().max() <= bound
            if values.numel() > 100:
                assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_frozen_lets_gradients_through_and_none_in():
    net = mlp(3, 8, 1)
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(frozen(net)(x), net(x))
    frozen(net)(x).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    through = x.grad.clone()
    x.grad = None
    net(x).sum().backward()
    assert torch.equal(x.grad, through)
    assert through.abs().sum() > 0
