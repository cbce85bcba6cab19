"""The PointMaze generator and the datamodule on what it writes."""

import minari
import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

from diffrl_lightning.data import SequenceData, pointmaze  # noqa: E402
from diffrl_lightning.types import InputError  # noqa: E402

CORRIDOR = [[1, 1, 1, 1, 1, 1], [1, "g", 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]]


def data(dataset, **kwargs):
    options = {"horizon": 8, "stride": 4, "padding": "edge", "generate_steps": 6000}
    module = SequenceData(dataset, **(options | kwargs))
    module.prepare_data()
    module.setup("fit")
    return module


def test_generated_dataset_is_a_correct_minari_dataset():
    module = data("pointmaze/umaze", val_fraction=0.0)
    assert (module.observation_dim, module.action_dim, module.goal_dim) == (4, 2, 2)
    low, high = module.ref_scores
    assert low < 30 < 180 < high

    stored = minari.load_dataset("pointmaze/umaze-v0")
    assert stored.total_steps == 6000
    cells = stored.recover_environment(eval_env=True).unwrapped.maze.maze_map
    assert cells[1][1] == "g"
    previous = None
    for episode in stored.iterate_episodes():
        observations = episode.observations
        goals = observations["desired_goal"]
        assert (goals == goals[0]).all(), "every row carries the episode's own goal"
        distance = np.linalg.norm(observations["achieved_goal"][1:] - goals[0], axis=1)
        np.testing.assert_array_equal(episode.rewards, distance <= 0.45)
        assert episode.rewards[:-1].sum() == 0
        assert not episode.terminations.any()
        assert episode.truncations[-1]
        if previous is not None and episode.id % 1 == 0:
            gap = np.abs(observations["observation"][0] - previous).max()
            assert gap == 0 or episode.id > 0
        previous = observations["observation"][-1]

    episodes = module.train_episodes
    assert episodes.num_steps == 6000
    assert episodes.goals.shape == (len(episodes), 2)
    joined = episodes.joined(10**6)
    assert joined.lengths.tolist() == [5000, 1000], "two streams, each physically continuous"


def test_it_is_generated_once(monkeypatch):
    data("pointmaze/umaze")
    monkeypatch.setattr(pointmaze, "generate", lambda *a, **k: pytest.fail("generated again"))
    data("pointmaze/umaze-v0")


def test_any_maze():
    module = data("pointmaze/corridor", env_kwargs={"maze_map": CORRIDOR}, generate_steps=1500)
    xy = module.train_episodes.observations[:, :2]
    assert np.abs(xy[:, 1]).max() < 0.5
    assert xy[:, 0].max() > 1.0 > -1.0 > xy[:, 0].min()
    env = module.make_env()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6,)
    assert abs(observation[4] + 1.5) < 0.26, "the goal is in the cell marked g"


def test_a_maze_in_two_parts_is_refused():
    split = [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]
    with pytest.raises(InputError, match="can not be reached"):
        data("pointmaze/split", env_kwargs={"maze_map": split}, generate_steps=500)


def test_split_is_by_episode_and_repeatable():
    first, second = (data("pointmaze/umaze", val_fraction=0.2) for _ in range(2))
    n, m = len(first.train_episodes), len(first.val_data.ends)
    assert m == round(0.2 * (n + m))
    assert torch.equal(first.val_data.observations, second.val_data.observations)
    train = {tuple(row) for row in first.train_episodes.observations.round(5).tolist()}
    ends = first.val_data.ends - 1
    rows = first.val_data.observations[ends + torch.arange(m)]
    assert not train & {tuple(row) for row in rows.numpy().round(5).tolist()}


def test_environment_must_match(pendulum_file):
    with pytest.raises(InputError, match="Dataset and environment do not match"):
        SequenceData(str(pendulum_file), env_id="MountainCarContinuous-v0")
