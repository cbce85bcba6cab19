"""Chunks of steps that come while an agent learns."""

import pytest
import torch

from diffrl_lightning import InputError, OnlineData
from diffrl_lightning.data import ChunkBuffer


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
    made = ChunkBuffer(17, 2, 2, 1)
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
    other = ChunkBuffer(17, 2, 2, 1)
    other.load_state_dict(buffer.state_dict())
    index = torch.arange(16)
    for name, value in buffer.chunks(index, 4).items():
        assert torch.equal(value, other.chunks(index, 4)[name]), name
    with pytest.raises(InputError, match="the same capacity and num_envs"):
        ChunkBuffer(10, 2, 2, 1).load_state_dict(buffer.state_dict())


def test_a_buffer_refuses_what_is_not_finite(buffer):
    rows = step(0.0, (0, 1))
    rows["rewards"][0] = torch.nan
    with pytest.raises(InputError, match="rewards of new steps"):
        buffer.add(rows)
    assert buffer.added == 10


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
