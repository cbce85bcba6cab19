"""The replay buffer, and batches of steps that come while an agent learns."""

from itertools import pairwise

import pytest
import torch
from helpers import rows

from diffrl_lightning import InputError, OnlineData
from diffrl_lightning.data import ReplayBuffer, ReplayData


def step(t, episodes, terminations=(0, 0)):
    """Of two environments, whose observations are the time and the environment."""
    observations = torch.tensor([[t, 0.0], [t, 1.0]])
    return {
        "observations": observations,
        "actions": observations[:, :1],
        "rewards": observations[:, 0],
        "next_observations": observations + torch.tensor([1.0, 0.0]),
        "terminations": torch.tensor(terminations).float(),
        "episodes": torch.tensor(episodes),
    }


@pytest.fixture
def buffer():
    """Ten steps of two environments, of which the last eight are held."""
    made = ReplayBuffer(17, 2, 1, num_envs=2)
    for t in range(10):
        # The first one's episode really ends with step 6, the second one's is cut off with step 4.
        made.add(step(float(t), (int(t > 6), 2 + int(t > 4)), (int(t == 6), 0)))
    return made


def test_chunks_stay_within_episodes_and_within_what_is_held(buffer):
    assert len(buffer) == 16
    batch = buffer.chunks(torch.tensor([0, 3, 6, 8, 9, 15]), 3)
    assert batch["observations"][:, 0].tolist() == [[2, 0], [5, 0], [8, 0], [2, 1], [3, 1], [9, 1]]
    assert batch["observations"][..., 0].tolist() == [
        [2, 3, 4],
        [5, 6, 6],
        [8, 9, 9],
        [2, 3, 4],
        [3, 4, 4],
        [9, 9, 9],
    ]
    assert batch["steps"].tolist() == [3, 2, 2, 3, 2, 1]
    assert batch["rewards"].tolist()[1] == [5, 6, 0]
    assert batch["next_observations"][:, 0].tolist() == [5, 7, 10, 5, 5, 10]
    assert batch["terminations"].tolist() == [0, 1, 0, 0, 0, 0]


def test_what_is_held_travels(buffer):
    other = ReplayBuffer(17, 2, 1, num_envs=2)
    other.load_state_dict(buffer.state_dict())
    index = torch.arange(16)
    for name, value in buffer.chunks(index, 4).items():
        assert torch.equal(value, other.chunks(index, 4)[name]), name
    with pytest.raises(InputError, match="the same capacity and num_envs"):
        ReplayBuffer(10, 2, 1, num_envs=2).load_state_dict(buffer.state_dict())


def test_several_steps_at_once(buffer):
    """As one after the other, and no more of them than there is room for."""
    steps = [step(float(t), (int(t > 6), 2 + int(t > 4)), (int(t == 6), 0)) for t in range(10)]
    for splits in ((0, 10), (0, 3, 10), (0, 9, 10)):
        other = ReplayBuffer(17, 2, 1, num_envs=2)
        for first, end in pairwise(splits):
            other.add({k: torch.cat([s[k] for s in steps[first:end]]) for k in steps[0]})
        assert other.added == 10
        for name, value in buffer.chunks(torch.arange(16), 4).items():
            assert torch.equal(other.chunks(torch.arange(16), 4)[name], value), name


def test_transitions_are_whole_steps(buffer):
    batch = buffer.transitions(torch.arange(16))
    seen = sorted(batch["observations"].tolist())
    assert seen == [[t, e] for t in range(2, 10) for e in range(2)]
    assert torch.equal(batch["rewards"], batch["observations"][:, 0])
    assert torch.equal(batch["next_observations"][:, 0], batch["rewards"] + 1)
    assert batch["terminations"].sum() == 1
    assert (batch["steps"] == 1).all()


def test_a_full_buffer_drops_the_oldest():
    buffer = ReplayBuffer(10, 3, 1)
    for i in range(4):
        buffer.add(rows(4, 0.0, 0) | {"rewards": torch.full((4,), float(i))})
    assert sorted(buffer.values("rewards")[:, 0].tolist()) == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    buffer.add(rows(25, 0.0, 1) | {"rewards": torch.arange(25.0)})
    assert set(buffer.values("rewards")[:, 0].tolist()) == set(range(15, 25))
    with pytest.raises(InputError, match="rewards of new steps"):
        buffer.add(rows(1, 0.0, 0) | {"rewards": torch.tensor([torch.nan])})
    assert (len(buffer), buffer.added) == (10, 41)
    assert set(buffer.values("rewards")[:, 0].tolist()) == set(range(15, 25))
    buffer.clear()
    assert len(buffer) == 0
    state = ReplayBuffer(1000, 3, 1).state_dict()
    assert state["observations"].untyped_storage().nbytes() == 0


def test_data_begin_with_random_actions():
    data = OnlineData(
        "InvertedPendulum-v5", num_envs=3, prefill_steps=100, horizon=5, batch_size=16
    )
    data.setup("fit")
    assert (data.observation_dim, data.action_dim) == (4, 1)
    assert len(data.buffer) == 102
    actions, _ = data.training_rows("actions")
    assert actions.abs().max() > 2  # its bounds are 3
    first, again, other = data.batch(0), data.batch(0), data.batch(1)
    assert torch.equal(first["observations"], again["observations"])
    assert not torch.equal(first["observations"], other["observations"])


@pytest.mark.parametrize("wrong", [{"num_envs": 0}, {"prefill_steps": 0}, {"batch_size": 0}])
def test_refuses(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        OnlineData("InvertedPendulum-v5", **wrong)


def test_batches_are_mixed_as_asked_and_all_real_until_there_is_enough():
    data = ReplayData(3, 1, synthetic_share=0.25, batch_size=32, capacity=100)
    with pytest.raises(InputError, match="no transitions yet"):
        data.batch(0)
    data.buffer.add(rows(60, 0.0, 0))
    data.synthetic.add(rows(7, 100.0, 1))
    assert (data.batch(0)["observations"] < 50).all()
    data.synthetic.add(rows(1, 100.0, 2))
    assert (data.batch(0)["observations"][:, 0] > 50).sum() == 8
    torch.testing.assert_close(data.batch(3), data.batch(3))
