"""Windows against a per-item reference."""

import numpy as np
import pytest
import torch
from conftest import concatenate
from test_episodes import make

from diffrl_lightning.data import Windows
from diffrl_lightning.types import InputError


def reference(episodes, episode, start, horizon, stride, padding):
    """A window step by step, as one would write it for a single item; it may begin before 0."""
    first, end = episodes.offsets[episode], episodes.offsets[episode + 1]
    observations, actions, rewards, mask = [], [], [], []
    for h in range(horizon):
        row = first + start + h * stride
        inside = first <= row < end
        row = max(min(row, end - 1), first)
        keep = inside or padding == "edge"
        observations.append(episodes.observations[row + episode] * keep)
        actions.append(episodes.actions[row] * keep)
        rewards.append(episodes.rewards[row] * inside)
        mask.append(inside)
    return map(np.array, (observations, actions, rewards, mask))


@pytest.mark.parametrize("padding", ["none", "edge", "zero"])
@pytest.mark.parametrize(("horizon", "stride"), [(1, 1), (3, 1), (2, 2), (3, 2)])
def test_windows(padding, horizon, stride):
    episodes = make((7, 4, 9, 5))
    windows = Windows(episodes, horizon=horizon, stride=stride, padding=padding, discount=0.9)
    span = (horizon - 1) * stride if padding == "none" else 0
    starts = [(e, s) for e in range(4) for s in range(max(episodes.lengths[e] - span, 0))]
    assert len(windows) == len(starts)
    batch = windows.__getitems__(list(range(len(windows))))
    togo = episodes.returns_to_go(0.9)
    for i, (e, s) in enumerate(starts):
        expected = reference(episodes, e, s, horizon, stride, padding)
        names = ("observations", "actions", "rewards", "mask")
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_array_equal(batch[name][i], value)
        assert batch["returns"][i] == togo[episodes.offsets[e] + s]
    alone = windows[2]
    assert torch.equal(alone["observations"], batch["observations"][2])


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize(("before", "after"), [(0, 1), (2, 1), (1, 0), (3, None), (0, 99)])
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_reach_beyond_both_ends(padding, before, after, stride):
    """From ``before`` steps early to ``after`` steps late, in episodes of any length."""
    episodes = make((7, 2, 9))
    pads = {"pad_before": before, "pad_after": after}
    windows = Windows(episodes, horizon=4, stride=stride, padding=padding, discount=0.9, **pads)
    beyond = 3 * stride if after is None else min(after, 3 * stride)
    lasts = [length + beyond - 3 * stride for length in episodes.lengths]
    starts = [(e, s) for e in range(3) for s in range(-before, lasts[e])]
    assert len(windows) == len(starts)
    batch = windows[torch.arange(len(windows))]
    togo = episodes.returns_to_go(0.9)
    for i, (e, s) in enumerate(starts):
        expected = reference(episodes, e, s, 4, stride, padding)
        names = ("observations", "actions", "rewards", "mask")
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_array_equal(batch[name][i], value)
        assert batch["returns"][i] == togo[episodes.offsets[e] + max(s, 0)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pad_before": 1}, "need padding edge or zero"),
        ({"pad_after": 1}, "need padding edge or zero"),
        ({"pad_before": 3, "padding": "edge"}, r"must lie in \[0, 2\]"),
        ({"pad_after": -1, "padding": "edge"}, "must be at least 0"),
    ],
)
def test_bad_pads(kwargs, message):
    with pytest.raises(InputError, match=message):
        Windows(make((7, 4)), horizon=3, **kwargs)


def test_windows_know_their_origin_and_the_penalty_of_their_end():
    """Windows of episodes 0 and 2 alone, of two datasets; the latter's episode really ended."""
    ended = np.zeros(4, bool)
    ended[-1] = True
    episodes = concatenate([make((7, 5)), make((4,), terminations=ended)])
    windows = Windows(episodes, np.array([0, 2]), horizon=3, discount=0.5, termination_penalty=-8.0)
    batch = windows[torch.arange(len(windows))]
    assert batch["origins"].tolist() == [0] * 5 + [1] * 2
    assert batch["origins"].dtype == torch.long
    togo = episodes.returns_to_go(0.5)
    np.testing.assert_allclose(batch["returns"][:5], togo[:5])
    # rewards 1, 2, 3, 4 - 8 from the first step and from the second
    assert batch["returns"][5:].tolist() == [1 + 1 + 0.75 - 0.5, 2 + 1.5 - 1]
    assert batch["rewards"][5].tolist() == [1, 2, 3], "a penalty of the return alone"
    assert windows[6]["origins"].item() == 1


def test_zero_padding_leaves_the_data_alone():
    episodes = make((4,))
    before = episodes.observations.copy()
    Windows(episodes, horizon=8, padding="zero")[torch.arange(4)]
    np.testing.assert_array_equal(episodes.observations, before)


def test_too_long_a_horizon():
    with pytest.raises(InputError, match=r"spans 9 steps, but the longest episode has 5"):
        Windows(make(), horizon=5, stride=2)
    with pytest.raises(InputError, match="none, edge, zero"):
        Windows(make(), horizon=2, padding="wrap")
