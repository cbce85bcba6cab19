"""ValuePolicy: better actions count for more; what it refuses; what every role must do."""

import pytest
import torch

from diffrl_lightning import (
    Acting,
    BehaviourCloning,
    DiffusedValue,
    FutureData,
    InputError,
    TransitionData,
    ValuePolicy,
)
from modules.role_tester import (
    quiet_trainer,
    ready,
    saved,
    transitions,
    units_do_not_matter,
)


@pytest.fixture(scope="module")
def value_ckpt(tmp_path_factory, pendulum_file):
    """The checkpoint of a DiffusedValue as it begins."""
    torch.manual_seed(0)
    module = DiffusedValue(3, 1, hidden_dim=16, num_blocks=1, embed_dim=16, num_train_timesteps=8)
    module.fit_normalizers(ready(FutureData(str(pendulum_file))))
    return saved(module, tmp_path_factory.mktemp("value") / "value.ckpt")


class Signed:
    """A value of actions: their sum; the future is the state itself."""

    def advantages(self, states, actions, how):
        return actions.sum(1)

    def sample_futures(self, states, *, how):
        return states[:, None].expand(-1, how.num_samples, -1)

    def rewards_of(self, states, actions):
        return actions.sum(1)


def learned(steps=300, **options):
    """The action after learning from actions that are -1 or 1 with equal chances."""
    torch.manual_seed(0)
    module = ValuePolicy(3, 1, hidden_dim=16, ema_decay=0.95, **options)
    module.value = [Signed()]
    optimizer = torch.optim.Adam(module.actor.parameters(), lr=1e-2)
    for step in range(steps):
        actions = 2.0 * torch.randint(2, (128, 1)) - 1
        batch = {"observations": torch.randn(128, 3), "actions": actions}
        loss, _ = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update(step + 1)
    return module.decide(torch.randn(500, 3), Acting()).mean().item()


def test_better_actions_count_for_more():
    """The mean of -1 and 1 under weights exp(-1 / temperature) and exp(1 / temperature)."""
    for temperature in (0.5, 1.0, 4.0):
        expected = torch.tensor(1 / temperature).tanh().item()
        found = learned(temperature=temperature, max_weight=1e3)
        assert found == pytest.approx(expected, abs=0.08)


def test_no_weight_exceeds_its_bound():
    """Weights exp(-4) and, instead of exp(4), 1."""
    expected = (1 - 0.0183) / (1 + 0.0183)
    assert learned(temperature=0.25, max_weight=1.0) == pytest.approx(expected, abs=0.05)


def test_the_ascent_climbs_the_reward():
    """Of a^2 + 1 - q_weight * a / |a| the slope is 0 at 0 without a reward, and 1 is best with one."""
    assert learned(extraction="ascent", q_weight=0.0) == pytest.approx(0, abs=0.1)
    assert learned(extraction="ascent", q_weight=5.0) > 0.9


@pytest.mark.parametrize("extraction", ["regression", "ascent"])
def test_units_do_not_matter(extraction):
    module = ValuePolicy(3, 1, hidden_dim=16, extraction=extraction, q_weight=0.0)
    module.value = [Signed()]
    units_do_not_matter(
        module, transitions(), decide=lambda states: module.decide(states, Acting())
    )


def test_what_does_not_fit_is_refused_before_training(tmp_path, pendulum_file, value_ckpt):
    data = TransitionData(str(pendulum_file))
    other = saved(BehaviourCloning(3, 1, hidden_dim=8), tmp_path / "other.ckpt")
    for path, match in ((None, "needs model.value_ckpt"), (other, "has no advantages")):
        with pytest.raises(InputError, match=match):
            quiet_trainer(tmp_path, max_steps=1).fit(ValuePolicy(3, 1, value_ckpt=path), data)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"goal_dim": 2}, "goals"),
        ({"extraction": "x"}, "extraction"),
        ({"temperature": 0.0}, "temperature"),
        ({"max_weight": 0.5}, "max_weight"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        ValuePolicy(3, 1, **wrong)
