"""Transformers: what attends to what."""

import pytest
import torch

from diffrl_lightning.nets import ActionTransformer, DiT1d, StepTransformer
from diffrl_lightning.types import InputError
from nets.helpers import perturbed


def test_a_step_transformer_does_not_look_ahead():
    net = perturbed(StepTransformer(5, cond_dim=2, dim=16, depth=2, num_heads=2))
    x, cond, t = torch.randn(3, 6, 5), torch.randn(3, 6, 2), torch.tensor([0, 4, 9])
    for training in (True, False):  # evaluation takes another path
        net.train(training)
        before = net(x, t, cond)
        moved = cond.clone()
        moved[:, 3] += 1
        after = net(x, t, moved)
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert (before[:, 3:] - after[:, 3:]).abs().amin((0, 2)).min() > 0
    assert not torch.allclose(before, net(x, t.flip(0), cond))
    with pytest.raises(InputError, match="multiple of num_heads"):
        StepTransformer(5, cond_dim=2, dim=18, depth=1, num_heads=4)


@pytest.mark.parametrize("horizon", [1, 5, 8, 33])
def test_dit_takes_any_horizon_and_begins_at_zero(horizon):
    net = DiT1d(6, dim=16, depth=2, num_heads=2, cond_dim=5)
    x = torch.randn(2, horizon, 6)
    out = net(x, torch.tensor([0, 3]), torch.randn(2, 5))
    assert torch.equal(out, torch.zeros_like(x))
    assert perturbed(net)(x, torch.tensor([0, 3]), torch.randn(2, 5)).shape == x.shape


def test_dit_depends_on_step_condition_and_position_and_rows_do_not_mix():
    net = perturbed(DiT1d(6, dim=16, depth=2, num_heads=2, cond_dim=5))
    x, t, cond = torch.randn(3, 8, 6), torch.tensor([0, 5, 9]), torch.randn(3, 5)
    out = net(x, t, cond)
    assert (out - net(x, t.flip(0), cond)).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    assert (out - net(x, t, cond.flip(0))).abs()[[0, 2]].amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(out[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    # Attention itself knows no order: what is left without positions is equivariant.
    assert (net(x.flip(1), t, cond) - out.flip(1)).abs().max() > 1e-3
    net.position.frequencies.zero_()
    expected = net(x, t, cond).flip(1)
    torch.testing.assert_close(net(x.flip(1), t, cond), expected, atol=1e-5, rtol=1e-5)


def causal():
    return perturbed(
        ActionTransformer(
            2, horizon=6, observation_dim=3, n_obs_steps=3, dim=16, depth=2, num_heads=2
        )
    ).eval()


def test_actions_attend_to_earlier_ones_and_to_observations_of_their_time():
    net, x, t, cond = causal(), torch.randn(1, 6, 2), torch.tensor([3]), torch.randn(1, 9)
    out = net(x, t, cond)

    def changed(other_x=x, other_t=t, other_cond=cond):
        return ((net(other_x, other_t, other_cond) - out).abs().amax((0, 2)) > 1e-5).tolist()

    moved = x.clone()
    moved[:, 3] += 1
    assert changed(other_x=moved) == [False] * 3 + [True] * 3
    for step in range(3):
        seen = cond.clone().view(1, 3, 3)
        seen[:, step] += 1
        assert changed(other_cond=seen.flatten(1)) == [False] * step + [True] * (6 - step)
    assert all(changed(other_t=torch.tensor([4])))


def test_the_causal_network_is_one_graph():
    """Nothing in it waits for a value, as CUDA graphs want it."""
    net = causal()
    expected = net(torch.ones(1, 6, 2), torch.tensor([3]), torch.ones(1, 9))
    net.compile(backend="eager", fullgraph=True)
    found = net(torch.ones(1, 6, 2), torch.tensor([3]), torch.ones(1, 9))
    torch.testing.assert_close(found, expected)
