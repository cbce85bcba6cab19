"""The temporal U-Net: horizons, attention, conditions."""

import pytest
import torch

from diffrl_lightning.nets import TemporalUnet, check_horizon
from diffrl_lightning.nets.temporal_unet import LinearAttention
from diffrl_lightning.types import InputError
from nets.helpers import perturbed


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


def test_linear_attention_is_its_formula():
    """Keys are a softmax over time, head by head; values are mixed by keys^T values alone."""
    net = perturbed(LinearAttention(6, num_heads=2, head_dim=3)).double()
    x = torch.randn(4, 6, 5, dtype=torch.float64)  # (B, C, H)
    centred = x - x.mean(1, keepdim=True)
    h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    h = h * net.norm.weight[:, None] + net.norm.bias[:, None]
    weight = net.qkv.weight.view(3, 2, 3, 6)
    q, k, v = torch.einsum("phdc,bcn->pbhdn", weight, h)
    k = k.exp() / k.exp().sum(-1, keepdim=True)
    scores = torch.einsum("bhdn,bhdm->bhnm", q / 3**0.5, k)  # the quadratic form of the same
    attended = torch.einsum("bhnm,bhem->bhen", scores, v).reshape(4, 6, 5)
    out = torch.einsum("oc,bcn->bon", net.out.weight[..., 0], attended) + net.out.bias[:, None]
    torch.testing.assert_close(net(x), x + out)


def test_unet_with_attention_and_condition():
    net = TemporalUnet(6, dim=8, dim_mults=(1, 2), attention=True, cond_dim=5)
    x, t, cond = torch.randn(3, 8, 6), torch.tensor([0, 5, 9]), torch.randn(3, 5)
    out = net(x, t, cond)
    assert not torch.allclose(out, net(x, t, cond.flip(0)))
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_film_scales_and_shifts():
    net = TemporalUnet(2, dim=8, dim_mults=(1,), cond_dim=3, film=True)
    block = net.down[0][0]
    x, embedding = torch.randn(2, 2, 4), torch.randn(2, 11)
    scale, shift = block.embed(embedding)[:, :, None].chunk(2, 1)
    expected = block.conv_out(scale * block.conv_in(x) + shift) + block.skip(x)
    torch.testing.assert_close(block(x, embedding), expected)
