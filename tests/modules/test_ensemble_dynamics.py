"""EnsembleDynamics: what given actions lead to, what it refuses, and what every role must do."""

import pytest
import torch

from diffrl_lightning import EnsembleDynamics, InputError


def test_given_actions_lead_where_they_do():
    """A point that actions push; beyond 1.5 it ends, stays and earns nothing more."""
    torch.manual_seed(0)
    module = EnsembleDynamics(1, 1, num_members=2, hidden_dim=64, num_layers=2, ema_decay=0.95)
    optimizer = torch.optim.Adam(module.members.parameters(), lr=3e-3)
    for step in range(300):
        states, actions = 2 * torch.rand(256, 1) - 1, torch.randn(256, 1)
        states = 1.6 * states
        following = states + 0.3 * actions
        batch = {
            "observations": states,
            "actions": actions,
            "rewards": states[:, 0],
            "next_observations": following,
            "terminations": (following.abs() > 1.5).float()[:, 0],
        }
        loss, _ = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update(step + 1)
    found = module.predict(
        torch.zeros(2, 1), torch.tensor([0.5, 1.5])[:, None, None].expand(-1, 6, 1)
    )
    expected = torch.tensor([[0.0, 0.15, 0.3, 0.45, 0.6, 0.75], [0.0, 0.45, 0.9, 1.35, 1.8, 1.8]])
    torch.testing.assert_close(found.observations[..., 0], expected, atol=0.07, rtol=0)
    assert found.terminations.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1]]
    torch.testing.assert_close(found.rewards[0], expected[0], atol=0.07, rtol=0)
    torch.testing.assert_close(found.rewards[1, :4], expected[1, :4], atol=0.07, rtol=0)
    assert found.rewards[1, 4:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("wrong", "match"), [({"goal_dim": 2}, "goals"), ({"num_members": 0}, "num_members")]
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        EnsembleDynamics(3, 1, **wrong)
