"""Stepping for good: transitions are the environment's, and an interrupted run goes on."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diffrl_lightning.envs.collect import Collector
from diffrl_lightning.envs.make import EnvConfig


def collector(env_id, seed=3, num_envs=3, **kwargs):
    return Collector(EnvConfig(env_id, kwargs).make_vector(num_envs), seed)


def noisy(k, dim=1):
    def act(observations):
        g = torch.Generator().manual_seed(k)
        return 3 * torch.rand(len(observations), dim, generator=g) - 1.5

    return act


def test_transitions_follow_each_other_and_episodes_begin_anew():
    found = collector("InvertedPendulum-v5", max_episode_steps=9)
    rows, returns = zip(*(found.step(noisy(k)) for k in range(40)), strict=True)
    ends = 0
    for now, then in pairwise(rows):
        same = now["episodes"] == then["episodes"]
        assert torch.equal(now["next_observations"][same], then["observations"][same])
        assert not (now["terminations"][same] == 1).any()
        ends += int((~same).sum())
    finished = [x for part in returns for x in part]
    assert len(finished) >= ends > 9
    assert max(finished) <= 9


def test_an_episode_begins_by_the_seed_and_its_number_alone():
    def beginnings(num_envs, seed):
        found = collector("InvertedPendulum-v5", seed, num_envs=num_envs, max_episode_steps=2)
        begun = {}
        for k in range(6):
            rows, _ = found.step(noisy(k))
            for number, state in zip(rows["episodes"].tolist(), rows["observations"], strict=True):
                begun.setdefault(number, state)
        return torch.stack([begun[k] for k in range(6)])

    assert torch.equal(beginnings(3, 0), beginnings(2, 0))
    assert not torch.equal(beginnings(3, 0), beginnings(3, 1))


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Hopper-v5"])
def test_an_interrupted_run_goes_on_as_if_it_were_not(env_id):
    """In mid-episode, with the simulator's state and the time that is left."""
    dim = 1 if env_id.startswith("Inv") else 3
    whole = collector(env_id, max_episode_steps=30)
    for k in range(20):
        whole.step(noisy(k, dim))
    state = whole.state_dict()
    resumed = collector(env_id, max_episode_steps=30)
    resumed.load_state_dict(state)
    for k in range(20, 70):
        (expected, returns), (found, others) = (
            whole.step(noisy(k, dim)),
            resumed.step(noisy(k, dim)),
        )
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (k, name)
        assert returns == others


def test_environments_without_a_simulator_to_read_begin_anew():
    whole = collector("Pendulum-v1")
    for k in range(5):
        whole.step(noisy(k))
    resumed = collector("Pendulum-v1")
    resumed.load_state_dict(whole.state_dict())
    assert resumed.episodes == 6
    assert not np.array_equal(resumed.observations, whole.observations)
