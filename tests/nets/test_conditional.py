"""Conditions for classifier-free guidance: dropped, embedded, combined."""

from functools import partial

import pytest
import torch
from torch import nn

from diffrl_lightning.nets import ConditionalDenoiser, TemporalUnet
from diffrl_lightning.nets.conditional import ConditionEmbedding


class Shown(nn.Module):
    """A network that returns the condition's embedding it was shown, at every step."""

    def forward(self, x, t, cond):
        return cond[:, None].expand(-1, x.shape[1], -1)


def conditional(drop_prob, **condition_dims):
    net = ConditionalDenoiser(
        Shown(), condition_dims=condition_dims, embed_dim=8, drop_prob=drop_prob
    )
    return partial(net, torch.zeros(2000, 1, 8), torch.zeros(2000)), net


def test_a_condition_that_is_always_dropped_is_exactly_none():
    unet = TemporalUnet(6, dim=8, dim_mults=(1, 2), cond_dim=8)
    net = ConditionalDenoiser(unet, condition_dims={"a": 1, "b": 3}, embed_dim=8, drop_prob=1.0)
    x, t = torch.randn(4, 8, 6), torch.arange(4)
    given = {"a": torch.randn(4, 1), "b": torch.randn(4, 3)}
    dropped = net(x, t, given)
    assert torch.equal(dropped, net(x, t, {}))
    assert torch.equal(dropped, unet(x, t, torch.zeros(4, 8)))
    net.eval()
    kept = net(x, t, given)
    embedding = net.embed.encoders["a"](given["a"]) + net.embed.encoders["b"](given["b"])
    torch.testing.assert_close(kept, unet(x, t, embedding))
    assert (kept - dropped).abs().max() > 1e-4


def test_a_dropped_condition_leaves_no_trace():
    """Dropped samples have neither a value nor a gradient of their condition."""
    forward, net = conditional(0.25, a=3)
    a = torch.randn(2000, 3, requires_grad=True)
    out = forward({"a": a})
    (gradient,) = torch.autograd.grad(out.square().sum(), a)
    dropped = (out == 0).all(2).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)  # 4 standard errors
    assert (gradient[dropped] == 0).all()
    assert (gradient[~dropped].abs().sum(1) > 0).all()
    torch.testing.assert_close(out[~dropped][:, 0], net.embed.encoders["a"](a[~dropped]))


@pytest.mark.parametrize("sets", [False, True])
def test_what_a_condition_says_depends_on_those_that_are_always_given(sets):
    """A sum of what each says alone would have the second difference 0."""
    kinds = {"condition_dims": {"state": 2, "k": 1, "action": 1}, "embed_dim": 8, "drop_prob": 1.0}
    joint = ConditionEmbedding(**kinds, always=("state", "k")).eval()
    apart = ConditionEmbedding(**kinds).eval()
    states, ks = torch.randn(2, 2), torch.randn(2, 1)
    actions = torch.randn(2, *((3,) if sets else ()), 1)

    def told(embed, i, j):
        given = {"state": states[i : i + 1], "k": ks[i : i + 1], "action": actions[j : j + 1]}
        return embed(given, states[:1])

    def interaction(embed):
        first, second = (told(embed, i, 0) - told(embed, i, 1) for i in range(2))
        return (first - second).abs().max().item()

    assert interaction(apart) < 1e-6
    assert interaction(joint) > 1e-3
    joint.train()  # everything is dropped that may be
    torch.testing.assert_close(
        told(joint, 0, 1), joint({"state": states[:1], "k": ks[:1]}, states[:1])
    )


def test_conditions_are_dropped_one_by_one():
    forward, _ = conditional(0.5, a=1, b=1)
    given = {name: torch.randn(2000, 1, requires_grad=True) for name in "ab"}
    gradients = torch.autograd.grad(forward(given).square().sum(), list(given.values()))
    a, b = (gradient[:, 0] == 0 for gradient in gradients)
    for share in (a & b, a & ~b, ~a & b, ~a & ~b):
        assert share.float().mean().item() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(
    ("drop_prob", "training", "share"), [(0.0, True, 0), (0.5, False, 0), (0.5, True, 0.5)]
)
def test_conditions_are_dropped_in_training_alone(drop_prob, training, share):
    forward, net = conditional(drop_prob, a=1)
    net.train(training)
    dropped = (forward({"a": torch.randn(2000, 1)}) == 0).all(2)
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.05 * (share > 0))
