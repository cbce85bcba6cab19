"""BehaviourCloning: what it averages, and what every role must do."""

import pytest
import torch

from diffrl_lightning import BehaviourCloning, GaussianActing, InputError, TransitionData
from modules.role_tester import (
    transitions,
    units_do_not_matter,
)

SMALL = {"hidden_dim": 16}


def small(**kwargs):
    return BehaviourCloning(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


def batch_of(actions):
    states = torch.zeros(len(actions), 3)
    return {"observations": states, "actions": actions}


def fitted(module, batch, steps=400):
    """The module trained on one batch, its average the last weights."""
    optimizer = torch.optim.Adam(module.actor.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        module.compute_loss(batch)[0].backward()
        optimizer.step()
    module.ema.net.load_state_dict(module.actor.state_dict())
    return module


def test_losses_are_minimised_by_the_mean_and_the_spread():
    """In one state: the mean, and for the Gaussian the standard deviation too."""
    actions = 0.3 + 0.2 * torch.randn(4000, 1)
    state = torch.zeros(2000, 3)
    plain = fitted(small(), batch_of(actions))
    assert plain.decide(state[:1], GaussianActing()).item() == pytest.approx(
        actions.mean().item(), abs=1e-2
    )
    gaussian = fitted(small(distribution="gaussian"), batch_of(actions))
    drawn = gaussian.decide(state, GaussianActing(temperature=1.0))
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.2, rel=0.08)
    halved = gaussian.decide(state, GaussianActing(temperature=0.5))
    assert halved.std().item() == pytest.approx(0.1, rel=0.08)


def test_actions_come_in_units_of_the_environment(pendulum_file):
    data = TransitionData(str(pendulum_file))
    data.setup("fit")
    module = small()
    module.fit_normalizers(data)
    module.trajectory.actions.low.fill_(-6.0)
    module.trajectory.actions.high.fill_(2.0)
    last = module.ema.net[-1]
    torch.nn.init.zeros_(last.weight)
    for bias, expected in ((0.0, -2.0), (0.5, 0.0), (7.0, 2.0)):
        last.bias.data.fill_(bias)
        assert module.decide(torch.zeros(1, 3), GaussianActing()).item() == pytest.approx(expected)


@pytest.mark.parametrize("distribution", ["deterministic", "gaussian"])
def test_units(distribution):
    module = small(distribution=distribution)
    units_do_not_matter(
        module, transitions(), decide=lambda states: module.decide(states, GaussianActing())
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"goal_dim": 2}, "does not pursue goals"), ({"distribution": "beta"}, "is unknown")],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        small(**kwargs)


def test_a_deterministic_one_takes_no_temperature():
    with pytest.raises(InputError, match="needs distribution=gaussian"):
        small().make_policy(temperature=1.0)
