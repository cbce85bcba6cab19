"""Chunks: what is real in them, what comes behind them, and their goals in hindsight."""

import numpy as np
import pytest
import torch

from diffrl_lightning import InputError
from diffrl_lightning.data import Chunks, Episodes


def counting(lengths, *, ended, final_observed):
    """Episodes whose observations, actions and rewards are their step, each a thousand further on."""
    steps = [np.arange(n + 1) + 1000.0 * e for e, n in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    last = np.isin(np.arange(offsets[-1]), offsets[1:] - 1)
    ends = np.repeat(ended, lengths) & last
    flat = np.concatenate([s[:-1] for s in steps]).astype(np.float32)
    return Episodes(
        np.concatenate(steps).astype(np.float32)[:, None],
        flat[:, None],
        flat,
        ends,
        last & ~ends,
        offsets,
        np.array(final_observed),
    )


def test_a_chunk_and_what_comes_behind_it():
    data = Chunks(counting([6, 5], ended=[True, False], final_observed=[True, True]), horizon=4)
    assert len(data) == data.num_starts == 11
    batch = data[torch.tensor([0, 4, 6, 9])]
    assert batch["chunks"].tolist() == [0, 4, 6, 9]
    assert batch["steps"].tolist() == [4, 2, 4, 2]
    assert batch["observations"][..., 0].tolist() == [
        [0, 1, 2, 3],
        [4, 5, 5, 5],
        [1000, 1001, 1002, 1003],
        [1003, 1004, 1004, 1004],
    ]
    assert batch["rewards"][1].tolist() == [4, 5, 0, 0]
    assert batch["mask"].sum(1).tolist() == batch["steps"].tolist()
    assert batch["next_observations"][:, 0].tolist() == [4, 6, 1004, 1005]
    assert batch["terminations"].tolist() == [0, 1, 0, 0]
    assert torch.equal(batch["goal_observations"], batch["next_observations"])


def test_a_last_step_without_what_follows_is_left_out_unless_the_episode_ended():
    data = Chunks(counting([6, 5], ended=[True, False], final_observed=[False, False]), horizon=4)
    assert data.num_starts == 6 + 4
    batch = data[torch.tensor([2, 3, 9])]
    assert batch["steps"].tolist() == [4, 3, 1]
    assert batch["next_observations"][2, 0] == 1004
    assert batch["terminations"].tolist() == [1, 1, 0]


def test_rewards_are_scaled_and_shifted_where_they_are_real():
    episodes = counting([6], ended=[True], final_observed=[True])
    data = Chunks(episodes, horizon=4, reward_map=(2.0, 1.0))
    assert data[torch.tensor(4)]["rewards"].tolist() == [9, 11, 0, 0]


def test_goals_are_of_the_discounted_future():
    """Their shares are geometric, cut off where the episode ends, and every chunk has all of them."""
    discount, num_goals = 0.8, 400
    episodes = counting([6, 300], ended=[True, False], final_observed=[True, True])
    data = Chunks(episodes, horizon=4, discount=discount, num_goals=num_goals)
    assert len(data) == num_goals * data.num_starts
    for chunk, most in ((1, 5), (6, 300)):
        batch = data[chunk + data.num_starts * torch.arange(num_goals)]
        assert (batch["chunks"] == chunk).all()
        ahead = batch["goal_observations"][:, 0] - batch["observations"][:, 0, 0]
        shares = (ahead[:, None] == torch.arange(1, most + 1)).float().mean(0)
        expected = (1 - discount) * discount ** torch.arange(most) / (1 - discount**most)
        torch.testing.assert_close(shares, expected, atol=1 / num_goals + 1e-6, rtol=0)


@pytest.mark.parametrize("wrong", [{"num_goals": -1}, {"discount": 1.0}, {"horizon": 0}])
def test_refuses(wrong):
    episodes = counting([6], ended=[True], final_observed=[True])
    with pytest.raises(InputError, match=next(iter(wrong))):
        Chunks(episodes, **{"horizon": 4} | wrong)
