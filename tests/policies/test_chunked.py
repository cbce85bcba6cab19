"""Acting by chunks: whose turn it is, what is played, what a decision sees."""

import pytest
import torch

from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import InputError


class Recorder:
    """Chunks that count: environment n's step h of call c is 100 c + 10 n + h."""

    def __init__(self, length=6):
        self.calls, self.length = [], length

    def __call__(self, states, *, generator):
        c = len(self.calls)
        noise = [torch.rand((), generator=g).item() for g in generator]
        self.calls.append({"states": states, "noise": noise})
        now = states if states.ndim == 2 else states[:, -1]
        return (100 * c + 10 * now[:, :1] + torch.arange(self.length))[..., None]


def observe(n, clock=0):
    """Environment n's observation is (n, clock), with something behind it that is no state."""
    return torch.tensor([[row, clock, 9.0] for row in range(n)])


def everyone(n):
    return torch.ones(n, dtype=torch.bool)


def test_the_first_actions_of_each_chunk_are_played():
    decide = Recorder()
    policy = ChunkedPolicy(decide, n_action_steps=3, observation_dim=2)
    policy.reset(everyone(2), [0, 1])
    played = [policy.act(observe(2, step))[:, 0].tolist() for step in range(7)]
    assert [row[1] for row in played] == [10, 11, 12, 110, 111, 112, 210]
    assert [row[0] for row in played] == [0, 1, 2, 100, 101, 102, 200]
    assert [call["states"][0].tolist() for call in decide.calls] == [[0, 0], [0, 3], [0, 6]]


def test_one_action_a_chunk_decides_at_every_step():
    decide = Recorder(length=1)
    policy = ChunkedPolicy(decide, observation_dim=2)
    policy.reset(everyone(2), [0, 1])
    assert [policy.act(observe(2))[1].item() for _ in range(3)] == [10, 110, 210]


def test_an_episode_that_begins_decides_alone_with_its_own_noise():
    decide = Recorder()
    policy = ChunkedPolicy(decide, n_action_steps=3, observation_dim=2)
    policy.reset(everyone(3), [7, 8, 9])
    policy.act(observe(3))
    policy.reset(torch.tensor([False, True, False]), [7, 9, 9])
    played = [policy.act(observe(3))[:, 0].tolist() for _ in range(2)]
    assert played == [[1, 110, 21], [2, 111, 22]]
    assert decide.calls[1]["states"][:, 0].tolist() == [1]
    assert decide.calls[1]["noise"][0] == decide.calls[0]["noise"][2], "noise is the seed's alone"
    policy.act(observe(3))
    assert decide.calls[2]["states"][:, 0].tolist() == [0, 2], "each at its own place"


def test_history_begins_with_the_first_observation_repeated():
    decide = Recorder()
    policy = ChunkedPolicy(decide, n_action_steps=2, observation_dim=2, n_obs_steps=3)
    policy.reset(everyone(2), [0, 1])
    for step in range(5):
        policy.act(observe(2, step))
        if step == 2:
            policy.reset(torch.tensor([True, False]), [5, 1])
    seen = [call["states"][:, :, 1].tolist() for call in decide.calls]
    assert seen[0] == [[0, 0, 0], [0, 0, 0]]
    assert seen[1] == [[0, 1, 2], [0, 1, 2]]
    assert seen[2] == [[3, 3, 3]], "where an episode begins, nothing is left of the one before"
    assert seen[3] == [[2, 3, 4]]


def test_another_number_of_environments_starts_afresh():
    policy = ChunkedPolicy(Recorder(), n_action_steps=3, observation_dim=2, n_obs_steps=2)
    assert policy.act(observe(2)).shape == (2, 1)
    assert policy.act(observe(4)).shape == (4, 1)


@pytest.mark.parametrize("kwargs", [{"n_action_steps": 0}, {"n_obs_steps": 0}])
def test_bad_arguments(kwargs):
    with pytest.raises(InputError, match="must be at least 1"):
        ChunkedPolicy(Recorder(), observation_dim=2, **kwargs)
