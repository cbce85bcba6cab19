"""Futures: where they lie, how they are shared out, and whose context comes with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import concatenate
from test_episodes import make

from diffrl_lightning.data import Futures, Transitions
from diffrl_lightning.types import InputError


@pytest.mark.parametrize("kind", ["ended", "cut", "cut, last state unknown"])
def test_futures_lie_where_rewards_follow(kind):
    """Every step's futures: within its episode, geometric, and cut off at its end."""
    episodes = make((7, 4, 9))
    terminations = np.zeros(20, bool)
    terminations[[6, 10, 19]] = kind == "ended"
    observed = np.full(3, kind != "cut, last state unknown")
    episodes = replace(
        episodes, terminations=terminations, truncations=~terminations, final_observed=observed
    )
    futures = Futures(episodes, discount=0.7, num_draws=500)
    steps = Transitions(episodes)
    assert len(futures) == 500 * len(steps)
    for index in range(len(steps)):
        batch = futures[index + torch.arange(500) * len(steps)]
        for name, value in steps[index].items():
            if name != "returns":
                assert (batch[name] == value).all()
        row = int((episodes.actions == steps[index]["actions"].numpy()).all(1).argmax())
        episode = int(np.searchsorted(episodes.offsets, row, side="right")) - 1
        left = int(episodes.offsets[episode + 1]) - 1 - row
        expected = left + (kind == "cut")
        assert (batch["following"] == expected).all()
        assert (batch["ended"] == (kind == "ended")).all()
        offsets = batch["offsets"].long()
        rows = row + episode + offsets
        assert (batch["future_observations"].numpy() == episodes.observations[rows]).all()
        if not expected:
            continue
        share = 0.3 * 0.7 ** np.arange(expected)
        found = np.bincount(offsets, minlength=expected + 1)[1:] / 500
        np.testing.assert_allclose(found, share / share.sum(), atol=1.01 / 500)


def test_futures_come_with_steps_of_their_own_policy():
    first = make((30, 20))
    second = make((15, 15), actions=np.arange(100, 130, dtype=np.float32)[:, None])
    futures = Futures(concatenate([first, second]), np.array([0, 2, 3]), context_size=8)
    batch = futures[torch.arange(len(futures))]
    assert batch["context_actions"].shape == (len(futures), 8, 1)
    for origin, rows in ((0, first.actions[:30]), (1, second.actions)):
        seen = batch["context_actions"][batch["origins"] == origin].flatten(0, 1)
        found = {tuple(row) for row in seen.tolist()}
        assert found <= {tuple(row) for row in rows.tolist()}
        assert len(found) > 0.8 * len(rows)
    assert futures[0]["context_observations"].shape == (8, 2)


def test_repeated_starts_leave_the_context_alone():
    """Steps near starts come again behind all others, with a context of their own origin."""
    first, second = make((30, 20)), make((15, 15), actions=np.full((30, 1), 100.0, np.float32))
    data = concatenate([first, second])
    once = Futures(data, context_size=8)
    futures = Futures(data, context_size=8, start_steps=5, start_repeats=3)
    assert futures.num_starts == once.num_starts + 2 * 4 * 5
    assert (futures.origin_begins.tolist(), futures.origin_ends.tolist()) == ([0, 50], [50, 80])
    batch = futures[torch.arange(once.num_starts, futures.num_starts)]
    own = (batch["context_actions"] == 100).flatten(1)
    assert (own == (batch["origins"] == 1)[:, None]).all()


@pytest.mark.parametrize("wrong", [{"discount": 1.0}, {"num_draws": 0}, {"context_size": -1}])
def test_futures_refuse(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Futures(make((7, 4)), **wrong)
