"""Transitions against a per-item reference, and rewards by name."""

import numpy as np
import pytest
import torch
from test_episodes import make

from diffrl_lightning.data import Transitions
from diffrl_lightning.data.episodes import reward_map
from diffrl_lightning.types import InputError


def test_rewards_by_name():
    """Each is the formula of its paper, on the training episodes alone."""
    episodes = make((7, 4, 9, 5))
    train = np.array([0, 2])
    transitions = Transitions(episodes)
    rewards = transitions[torch.arange(len(transitions))]["rewards"].numpy()
    seen = np.concatenate([episodes.rewards[:7], episodes.rewards[11:20]])
    low, high = sorted([episodes.rewards[:7].sum(), episodes.rewards[11:20].sum()])
    expected = {
        "raw": rewards,
        "minus_one": rewards - 1,
        "antmaze": 4 * (rewards - 0.5),
        "standard": (rewards - seen.mean()) / seen.std(),
        "return_range": 1000 * rewards / (high - low),
    }
    for kind, values in expected.items():
        mapped = Transitions(episodes, reward_map=reward_map(kind, episodes, train))
        found = mapped[torch.arange(len(mapped))]["rewards"]
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
        assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cubed", "choose one of raw, minus_one, antmaze, standard, return_range"),
        ("standard", "use rewards=raw"),
        ("return_range", "use rewards=raw"),
    ],
)
def test_rewards_that_can_not_be_mapped(kind, message):
    episodes = make((6, 6), rewards=np.ones(12, np.float32))
    with pytest.raises(InputError, match=message):
        reward_map(kind, episodes, np.arange(2))


def test_transitions():
    episodes = make((3, 2), final_observed=np.array([False, True]))
    transitions = Transitions(episodes)
    assert len(transitions) == 4, "the step without a next observation is left out"
    batch = transitions.__getitems__([0, 1, 2, 3])
    assert batch["actions"][:, 0].tolist() == [0, 1, 3, 4]
    assert batch["next_observations"][:, 0].tolist() == [2, 4, 10, 12]


def test_transitions_of_several_steps():
    """Step by step, as one would write it for a single transition."""
    episodes = make((6, 2, 4), final_observed=np.array([False, True, True]))
    episodes.terminations[11] = True
    episodes.rewards[:] = np.arange(12) ** 2
    transitions = Transitions(episodes, discount=0.9, n_steps=3, reward_map=(2.0, 1.0))
    assert len(transitions) == 11
    batch = transitions.__getitems__(list(range(11)))
    rows = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    ends = [5, 5, 5, 5, 5, 8, 8, 12, 12, 12, 12]  # up to here the next state was recorded
    for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
        last = min(row + 3, end)
        reward = sum(0.9 ** (k - row) * (2 * k**2 + 1) for k in range(row, last))
        assert batch["rewards"][i] == pytest.approx(reward, rel=1e-6)
        assert batch["steps"][i] == last - row
        assert batch["terminations"][i] == (last == 12)
        episode = np.searchsorted(episodes.offsets, row, side="right") - 1
        expected = episodes.observations[last + episode]
        np.testing.assert_array_equal(batch["next_observations"][i], expected)
    one = Transitions(episodes).__getitems__([0, 1])
    assert one["steps"].tolist() == [1, 1]
    assert one["rewards"].tolist() == [0, 1]
    with pytest.raises(InputError, match="n_steps=0 must be at least 1"):
        Transitions(episodes, n_steps=0)
