"""The PointMaze generator and the datamodule on what it writes."""

import minari
import numpy as np
import pytest
import torch

from diffrl_lightning.data import SequenceData
from diffrl_lightning.data.sources import pointmaze
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.envs.pointmaze import Maze
from diffrl_lightning.types import InputError

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
    for episode in stored.iterate_episodes():
        observations = episode.observations
        goals = observations["desired_goal"]
        assert (goals == goals[0]).all(), "every row carries the episode's own goal"
        distance = np.linalg.norm(observations["achieved_goal"][1:] - goals[0], axis=1)
        np.testing.assert_array_equal(episode.rewards, distance <= 0.45)
        assert episode.rewards[:-1].sum() == 0
        assert not episode.terminations.any()
        assert episode.truncations[-1]

    episodes = module.episodes
    assert episodes.num_steps == 6000
    assert episodes.goals.shape == (len(episodes), 2)
    joined = episodes.joined(10**6)
    assert joined.lengths.tolist() == [5000, 1000], "two streams, each physically continuous"


def test_it_is_generated_once(monkeypatch):
    data("pointmaze/umaze")
    monkeypatch.setattr(pointmaze, "generate", lambda *a, **k: pytest.fail("generated again"))
    data("pointmaze/umaze-v0")


def test_a_dataset_of_one_goal():
    """Every episode begins anywhere and ends in the cell, which is the environment's goal too."""
    module = data("pointmaze/umaze-to-3-1", val_fraction=0.0)
    episodes, maze = module.episodes, Maze.of(module.make_env())
    assert maze.maze_map[3][1] == "g"
    assert (maze.to_cells(episodes.goals) == (3, 1)).all()
    firsts = episodes.observations[episodes.offsets[:-1] + np.arange(len(episodes))]
    lasts = episodes.observations[episodes.offsets[1:] + np.arange(len(episodes))]
    assert len(np.unique(maze.to_cells(firsts[:, :2]), axis=0)) > 4
    distance = np.linalg.norm(lasts[:, :2] - episodes.goals, axis=1)
    assert (distance <= 0.45).sum() >= len(episodes) - 2  # streams end where they are
    with pytest.raises(InputError, match="ends in a wall"):
        data("pointmaze/umaze-to-0-0")


def test_rest_at_goals():
    """Each episode goes on for so many steps at its goal, and the next one from there."""
    module = data("pointmaze/umaze-rest-20", val_fraction=0.0)
    episodes = module.episodes
    assert episodes.joined(10**6).lengths.tolist() == [5000, 1000]
    for first, length in zip(episodes.offsets, episodes.lengths, strict=False):
        rewards = episodes.rewards[first : first + length]
        if first + length in (5000, 6000):  # streams end where they are
            continue
        assert rewards[:-21].sum() == 0
        assert rewards[-21] == 1, "it arrives"
        assert rewards[-20:].mean() > 0.9, "and stays"
    names = ("pointmaze/medium-to-6-1-rest-30-v2", "pointmaze/medium", "pointmaze/my-maze-rest-3")
    found = [tuple(pointmaze._parts(name)) for name in names]
    assert found == [("medium", (6, 1), 30), ("medium", None, 0), ("my-maze", None, 3)]


def test_any_maze():
    module = data("pointmaze/corridor", env_kwargs={"maze_map": CORRIDOR}, generate_steps=1500)
    xy = module.episodes.observations[:, :2]
    assert np.abs(xy[:, 1]).max() < 0.5
    assert xy[:, 0].max() > 1.0 > -1.0 > xy[:, 0].min()
    env = module.make_env()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6,)
    assert abs(observation[4] + 1.5) < 0.26, "the goal is in the cell marked g"


def test_keywords_of_the_environment_reach_it():
    options = {"maze_map": CORRIDOR, "reward_type": "dense"}
    dense = data("pointmaze/corridor", env_kwargs=options, generate_steps=1500)
    env = dense.make_env()
    env.reset(seed=0)
    assert 0 < env.step(env.action_space.sample())[1] < 1
    assert data("pointmaze/umaze").make_env().spec.max_episode_steps == 300
    longer = data("pointmaze/umaze", env_id="PointMaze_Medium-v3").make_env()
    assert longer.spec.max_episode_steps == 600
    assert longer.unwrapped.maze.map_length == 5, "only the time limit is the other's"


def test_keys_of_the_observation():
    module = data("pointmaze/umaze", observation_keys=["observation", "desired_goal"])
    assert (module.observation_dim, module.goal_dim) == (6, 0)
    assert data("pointmaze/umaze", goal_key="none").goal_dim == 0
    assert data("pointmaze/umaze", goal_key="none").make_env().reset(seed=0)[0].shape == (4,)


def test_scores_of_other_rewards_are_not_used():
    dense = {"maze_map": CORRIDOR, "reward_type": "dense"}
    assert data("pointmaze/corridor", env_kwargs=dense, generate_steps=1500).ref_scores is None


def test_an_existing_dataset_is_not_overwritten():
    data("pointmaze/umaze")
    with pytest.raises(InputError, match="already"):
        pointmaze.generate("pointmaze/umaze", num_steps=1000)
    with pytest.raises(InputError, match=r"has 6000 steps, not generate_steps=7000.*umaze-v1"):
        data("pointmaze/umaze", generate_steps=7000)
    assert data("pointmaze/umaze", generate_steps=None).episodes.num_steps == 6000


def test_a_goal_elsewhere_in_the_state_is_refused():
    data("pointmaze/umaze").check_goal_leads_state()
    other = data("pointmaze/umaze")
    other.goal_dim = 3
    other.env_config = EnvConfig("FetchReach-v4")  # the gripper is the goal, and comes first
    other.check_goal_leads_state()
    other.env_config = EnvConfig("FetchPush-v4")  # the block is, and does not
    with pytest.raises(InputError, match="observation_keys"):
        other.check_goal_leads_state()


def test_a_name_is_one_maze():
    data("pointmaze/corridor", env_kwargs={"maze_map": CORRIDOR}, generate_steps=1500)
    other = [CORRIDOR[0], [1, "g", 0, 0, 1, 1], CORRIDOR[2]]
    with pytest.raises(InputError, match="is of another maze"):
        data("pointmaze/corridor", env_kwargs={"maze_map": other})


def test_a_maze_in_two_parts_is_refused():
    split = [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]
    with pytest.raises(InputError, match="can not be reached"):
        data("pointmaze/split", env_kwargs={"maze_map": split}, generate_steps=500)


def test_split_is_by_episode_and_repeatable():
    first, second = (data("pointmaze/umaze", val_fraction=0.2) for _ in range(2))
    n = len(first.episodes)
    assert len(first.val_indices) == round(0.2 * n)
    assert sorted([*first.train_indices, *first.val_indices]) == list(range(n))
    assert first.val_indices.tolist() == second.val_indices.tolist()
    steps = first.episodes.lengths
    assert len(first.train_data) == steps[first.train_indices].sum()
    assert len(first.val_data) == steps[first.val_indices].sum()
    _, episode = first.val_data.starts(torch.arange(len(first.val_data)))
    assert set(episode.tolist()) == set(first.val_indices.tolist())
    actions, rows = first.training_rows("actions")
    assert rows.sum() == len(first.train_data)
    starts, ends = first.episodes.offsets[:-1], first.episodes.offsets[1:]
    expected = [first.episodes.actions[starts[e] : ends[e]] for e in first.train_indices]
    assert torch.equal(actions[rows], torch.from_numpy(np.concatenate(expected)))
    observations, rows = first.training_rows("observations")
    expected = [
        first.episodes.observations[starts[e] + e : ends[e] + e + 1] for e in first.train_indices
    ]
    assert torch.equal(observations[rows], torch.from_numpy(np.concatenate(expected)))
