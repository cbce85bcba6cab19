"""The in-memory format."""

import numpy as np
import pytest
from conftest import concatenate

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.types import InputError


def make(lengths=(3, 5, 2), observation_dim=2, **replaced):
    n, e = sum(lengths), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    truncations = np.zeros(n, bool)
    truncations[offsets[1:] - 1] = True
    rows = np.arange((n + e) * observation_dim, dtype=np.float32)
    arrays = {
        "observations": rows.reshape(n + e, observation_dim),
        "actions": np.arange(n, dtype=np.float32)[:, None],
        "rewards": np.arange(1, n + 1, dtype=np.float32),
        "terminations": np.zeros(n, bool),
        "truncations": truncations,
        "offsets": offsets,
        "final_observed": np.ones(e, bool),
    }
    return Episodes(**(arrays | replaced))


def test_returns_and_returns_to_go_by_hand():
    episodes = make()
    assert episodes.returns.tolist() == [6, 30, 19]
    togo = episodes.returns_to_go(0.5)
    assert togo[:3].tolist() == [1 + 1 + 0.75, 2 + 1.5, 3]
    expected = np.zeros(10)
    for start, end in zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True):
        for i in range(start, end):
            expected[i] = sum(0.9 ** (j - i) * episodes.rewards[j] for j in range(i, end))
    np.testing.assert_allclose(episodes.returns_to_go(0.9), expected, rtol=1e-6)


def test_termination_penalty_is_a_last_reward_of_episodes_that_ended():
    """It reaches back through the discount, and only where an episode was not cut short."""
    terminations = np.zeros(10, bool)
    terminations[7] = True  # the last step of the second of three episodes
    plain = make(terminations=terminations)
    penalised = plain.returns_to_go(0.9, termination_penalty=-100.0)
    expected = plain.returns_to_go(0.9).astype(np.float64)
    expected[3:8] -= 100 * 0.9 ** np.arange(4, -1, -1)
    np.testing.assert_allclose(penalised, expected, rtol=1e-6)
    assert plain.rewards.tolist() == list(range(1, 11)), "rewards are left as they are"
    assert plain.returns.tolist() == [6, 30, 19]
    rewards = plain.rewards.copy()
    rewards[7] -= 100
    same = make(rewards=rewards).returns_to_go(0.9)
    np.testing.assert_allclose(penalised, same, rtol=1e-6)


def test_a_time_out_that_continues_is_worth_what_the_last_steps_were():
    """Against the same episodes with a thousand steps more at the mean of their last."""
    terminations = np.zeros(10, bool)
    terminations[7] = True
    episodes = make(terminations=terminations)  # rewards 1-3, 4-8 and a real end, 9-10
    togo = episodes.returns_to_go(0.75, continue_timeouts=True)  # the last four steps, or all
    for start, end, mean in ((0, 3, 2.0), (3, 8, None), (8, 10, 9.5)):
        beyond = [] if mean is None else [mean] * 1000
        rewards = np.array([*episodes.rewards[start:end], *beyond])
        for i in range(end - start):
            rest = rewards[i:]
            expected = (0.75 ** np.arange(len(rest)) * rest).sum()
            assert togo[start + i] == pytest.approx(expected, rel=1e-6)
    constant = make((6,), rewards=np.full(6, 3.0, np.float32))
    worth = constant.returns_to_go(0.9, continue_timeouts=True)
    np.testing.assert_allclose(worth, 30, rtol=1e-6, err_msg="the same at any time")
    long = make((8,), rewards=np.arange(1, 9, dtype=np.float32))
    assert long.returns_to_go(0.75, continue_timeouts=True)[-1] == pytest.approx(8 + 0.75 * 6.5 * 4)
    with pytest.raises(InputError, match="below 1"):
        episodes.returns_to_go(1.0, continue_timeouts=True)


def test_origins_are_places_in_the_list():
    assert make().origins.tolist() == [0, 0, 0]
    both = concatenate([make((3, 5)), make((2,)), make((4, 1))])
    assert both.origins.tolist() == [0, 0, 1, 2, 2]
    assert concatenate([make((3, 5))]).origins.tolist() == [0, 0]


def test_origins_survive_joining():
    def continuous(lengths):
        """Episodes of which the second begins where the first ended, and the third elsewhere."""
        observations = make(lengths).observations.copy()
        observations[lengths[0] + 1] = observations[lengths[0]]
        return make(lengths, observations=observations)

    both = concatenate([continuous((3, 5, 2)), continuous((4, 1, 6, 3))])
    joined = both.joined(100)
    assert joined.lengths.tolist() == [8, 2, 5, 6, 3]
    assert joined.origins.tolist() == [0, 0, 1, 1, 1]


def test_concatenate():
    first, second = make((3, 5)), make((2,))
    both = concatenate([first, second])
    assert both.lengths.tolist() == [3, 5, 2]
    assert both.truncations.nonzero()[0].tolist() == [2, 7, 9]
    for name in ("observations", "actions", "rewards"):
        parts = [getattr(first, name), getattr(second, name)]
        np.testing.assert_array_equal(getattr(both, name), np.concatenate(parts))


def test_joining_continuous_episodes():
    episodes = make((3, 5, 2, 4), goals=np.zeros((4, 2), np.float32))
    observations = episodes.observations.copy()
    observations[4] = observations[3]  # episode 1 begins where episode 0 ended
    observations[10] = observations[9]  # episode 2 where episode 1 did; episode 3 elsewhere
    episodes = make((3, 5, 2, 4), observations=observations)
    joined = episodes.joined(100)
    assert joined.lengths.tolist() == [10, 4]
    assert joined.num_steps == 14
    expected = np.delete(observations, [3, 9], axis=0)
    np.testing.assert_array_equal(joined.observations, expected)
    assert np.flatnonzero(joined.truncations).tolist() == [9, 13]
    assert episodes.joined(4).lengths.tolist() == [8, 2, 4], "closed once it is long enough"


def test_a_termination_is_never_joined():
    episodes = make((3, 5))
    observations = episodes.observations.copy()
    observations[4] = observations[3]
    terminations = np.zeros(8, bool)
    terminations[2] = True
    joined = make((3, 5), observations=observations, terminations=terminations).joined(100)
    assert joined.lengths.tolist() == [3, 5]


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_values_are_named(name, value):
    array = getattr(make(), name).copy()
    array.reshape(-1)[4] = value
    with pytest.raises(InputError, match=f"{name} hold NaN or infinite"):
        make(**{name: array})


def test_unequal_lengths():
    with pytest.raises(InputError, match="3 episodes of 10 steps need 10 actions, not 9"):
        make(actions=np.zeros((9, 1), np.float32))
