"""Backbones by name."""

import pytest
import torch

from diffrl_lightning.nets import DiT1d, TemporalUnet, make_backbone
from diffrl_lightning.types import InputError
from nets.helpers import chunks, perturbed

BACKBONE = {"horizon": 8, "dim": 16, "dim_mults": (1, 2), "attention": False, "depth": 1,
            "num_heads": 2}  # fmt: skip


@pytest.mark.parametrize("backbone", ["unet", "dit"])
@pytest.mark.parametrize("cond_dim", [0, 5])
def test_backbones_by_name(backbone, cond_dim):
    net = make_backbone(backbone, 6, **BACKBONE, cond_dim=cond_dim)
    assert isinstance(net, {"unet": TemporalUnet, "dit": DiT1d}[backbone])
    x, cond = torch.randn(2, 8, 6), torch.randn(2, cond_dim) if cond_dim else None
    assert net(x, torch.tensor([0, 3]), cond).shape == x.shape


@pytest.mark.parametrize(
    ("backbone", "kwargs", "message"),
    [
        ("mlp", {}, "choose one of unet, dit"),
        ("unet", {"horizon": 7}, "use 6 or 8"),
        ("unet", {"dim": 12}, "multiple of 8"),
        ("dit", {"num_heads": 3}, r"multiple of 2 \* num_heads=3"),
        ("dit", {"dim": 17}, "dim=17 must be at least 4 and a multiple"),
    ],
)
def test_unsuitable_backbones_are_refused(backbone, kwargs, message):
    with pytest.raises(InputError, match=message):
        make_backbone(backbone, 6, **(BACKBONE | kwargs))
    assert make_backbone("dit", 6, **(BACKBONE | {"horizon": 7})), "no horizon is wrong for it"


@pytest.mark.parametrize("backbone", ["unet", "transformer", "mlp"])
def test_chunk_networks_depend_on_all_they_are_given_and_rows_do_not_mix(backbone):
    small = {"dim": 16, "dim_mults": (1, 2), "depth": 2, "num_heads": 2, "horizon": 8}
    net = perturbed(chunks(backbone, 3, 2, **small)).eval()
    x, t, cond = torch.randn(3, 8, 2), torch.tensor([0, 5, 9]), torch.randn(3, 6)
    out = net(x, t, cond)
    assert out.shape == x.shape
    assert (out - net(x, t.flip(0), cond)).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    assert (out - net(x, t, cond.flip(0))).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
