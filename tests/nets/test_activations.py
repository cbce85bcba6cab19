"""Mish and its derivatives."""

import torch
from torch import nn

from diffrl_lightning.nets.activations import mish


def test_mish_and_its_two_derivatives_are_those_of_pytorch():
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-200.0, -90.0, 90.0, 1e4])])
    g = torch.randn_like(x)
    found = []
    for function, dtype in ((mish, x.dtype), (nn.functional.mish, torch.float64)):
        leaf, direction = x.to(dtype).requires_grad_(), g.to(dtype)
        y = function(leaf)
        (slope,) = torch.autograd.grad(y, leaf, direction, create_graph=True)
        (bend,) = torch.autograd.grad(slope, leaf, torch.ones_like(leaf))
        (alone,) = torch.autograd.grad(function(leaf), leaf, direction)
        found.append([part.detach().double() for part in (y, slope, bend, alone)])
    # PyTorch's own second derivative is NaN where exp(x) overflows; it is 0 there.
    assert found[1][2].isnan().any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(0.0), atol=1e-6, rtol=1e-6)
    leaf = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, leaf)
    assert torch.autograd.gradgradcheck(mish, leaf)
    half = torch.tensor([-1.0, 2.0, 200.0], dtype=torch.bfloat16, requires_grad=True)
    slopes = [
        torch.autograd.grad(function(half).sum(), half, create_graph=again)[0]
        for function, again in ((mish, False), (nn.functional.mish, False), (mish, True))
    ]
    assert torch.equal(slopes[0], slopes[1])
    torch.testing.assert_close(slopes[2], slopes[1])
    assert torch.autograd.grad(slopes[2].sum(), half)[0].isfinite().all()
