"""Windows and transitions against a per-item reference."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_episodes import make

from diffrl_lightning.data import Futures, Transitions, Windows
from diffrl_lightning.data.episodes import concatenate
from diffrl_lightning.data.sampler import BatchSampler
from diffrl_lightning.data.transitions import reward_map
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
        ({"pad_before": -1, "padding": "edge"}, "must be at least 0"),
        ({"pad_after": -1, "padding": "edge"}, "must be at least 0"),
    ],
)
def test_bad_pads(kwargs, message):
    with pytest.raises(InputError, match=message):
        Windows(make((7, 4)), horizon=3, **kwargs)


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
        scale, shift = reward_map(kind, episodes, train)
        mapped = Transitions(episodes, reward_scale=scale, reward_shift=shift)
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
    with pytest.raises(InputError, match="none, edge or zero"):
        Windows(make(), horizon=2, padding="wrap")


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
    transitions = Transitions(episodes, discount=0.9, n_steps=3, reward_scale=2.0, reward_shift=1.0)
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


def test_batch_k_is_a_function_of_seed_and_k():
    def batches(**kwargs):
        return [b.tolist() for b in BatchSampler(50, batch_size=8, seed=3, **kwargs)]

    whole = batches()
    assert len(whole) == 6
    assert batches(position=lambda: 4)[0] == whole[4]
    sampler = BatchSampler(50, batch_size=8, seed=3)
    stream = np.concatenate([sampler.batch(k) for k in range(25)])
    for p in range(4):  # every pass is a permutation, and they differ
        assert sorted(stream[p * 50 : (p + 1) * 50]) == list(range(50))
    assert stream[:50].tolist() != stream[50:100].tolist()
    assert BatchSampler(50, batch_size=8, seed=4).batch(0).tolist() != whole[0]


def test_processes_share_each_batch_without_overlap():
    ranks = [BatchSampler(64, batch_size=8, seed=1, num_replicas=2, rank=rank) for rank in range(2)]
    alone = BatchSampler(64, batch_size=16, seed=1)
    assert len(ranks[0]) == len(alone) == 4
    for k in range(4):
        both = torch.cat([sampler.batch(k) for sampler in ranks])
        assert torch.equal(both, alone.batch(k))


def test_more_batch_than_data():
    sampler = BatchSampler(5, batch_size=12)
    assert len(sampler) == 1
    assert sampler.batch(0).shape == (12,)


@pytest.mark.parametrize(
    ("make_dataset", "lost"), [(partial(Windows, horizon=2), 1), (Transitions, 0)]
)
def test_starts_come_more_often(make_dataset, lost):
    episodes = make((7, 2, 9))
    dataset = make_dataset(episodes, np.array([0, 1]), start_steps=3, start_repeats=4)
    starts, which = dataset.starts(torch.arange(len(dataset)))
    begun = (starts - torch.from_numpy(episodes.offsets)[which]).tolist()
    counts = {pair: 0 for e, n in ((0, 7), (1, 2)) for pair in ((e, s) for s in range(n - lost))}
    for pair in zip(which.tolist(), begun, strict=True):
        counts[pair] += 1
    assert counts == {(e, s): 4 if s < 3 else 1 for e, s in counts}
    with pytest.raises(InputError, match="at least"):
        make_dataset(episodes, start_repeats=0)


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


@pytest.mark.parametrize("wrong", [{"discount": 1.0}, {"num_draws": 0}, {"context_size": -1}])
def test_futures_refuse(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Futures(make((7, 4)), **wrong)
