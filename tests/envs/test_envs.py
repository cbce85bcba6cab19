"""Mazes, environments and the rollout loop."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from diffrl_lightning.envs.evaluate import RandomPolicy, evaluate
from diffrl_lightning.envs.make import EnvConfig, layout
from diffrl_lightning.envs.pointmaze import Maze, evaluation_kwargs
from diffrl_lightning.policies.planner import Plan
from diffrl_lightning.types import InputError

UMAZE = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]


def test_geometry():
    maze = Maze(UMAZE)
    assert maze.to_xy([[1, 1], [2, 2], [3, 3]]).tolist() == [[-1, 1], [0, 0], [1, -1]]
    assert maze.to_cells([[-1.4, 1.4], [0.4, -0.4], [9, 9]]).tolist() == [[1, 1], [2, 2], [0, 4]]
    assert maze.in_wall([[0, 0], [1, 0]]).tolist() == [True, False]
    assert len(maze.shortest_path((1, 1), (3, 1))) == 7
    path = maze.to_xy(maze.shortest_path((1, 1), (3, 1)))
    line = np.linspace(path[0], path[-1], 7)
    assert maze.crosses_wall(np.stack([path, line])).tolist() == [False, True]
    thin = [[-1, 1], [-1, -1]]  # both ends are free, the segment between them is not
    assert maze.crosses_wall([thin]).tolist() == [True]


def test_geometry_agrees_with_the_simulator():
    env = EnvConfig("PointMaze_Medium-v3").make()
    theirs, ours = env.unwrapped.maze, Maze.of(env)
    for cell in ours.free_cells:
        np.testing.assert_allclose(ours.to_xy(cell), theirs.cell_rowcol_to_xy(cell))
        assert ours.to_cells(ours.to_xy(cell)).tolist() == list(cell)


def test_means_of_squares():
    """Rows run down and columns to the right, as the map is written."""
    maze = Maze([[1, 1, 1], [1, 0, 0]])
    xy = maze.to_xy([[1, 1], [1, 1], [1, 2]])
    means = maze.square_means(xy, np.array([1.0, 3.0, 5.0]))
    assert means.tolist() == [[None, None, None], [None, 2.0, 5.0]]
    fine = maze.square_means(xy + 0.25, np.array([1.0, 3.0, 5.0]), squares=2)
    assert fine.shape == (4, 6)
    assert fine[2].tolist() == [None, None, None, 2.0, None, 5.0]


def test_busy_cells_and_their_occupancy():
    maze = Maze(UMAZE)
    cells = [[1, 1]] * 3 + [[3, 3]] * 5 + [[1, 2], [1, 3], [3, 1], [3, 2]]
    xy = maze.to_xy(cells) + 0.2
    assert [rows.tolist() for rows in maze.busy_cells(xy, 2)] == [[3, 4, 5, 6, 7], [0, 1, 2]]
    assert maze.busy_cells(xy, 0) == []
    assert maze.total_variation(xy, xy[::-1]) == 0
    assert maze.total_variation(xy[:3], xy[3:]) == 1
    assert maze.total_variation(xy[:8], xy[:3]) == pytest.approx(5 / 8)


def test_bad_mazes():
    with pytest.raises(InputError, match="equal lengths"):
        Maze([[1, 1], [1]])
    with pytest.raises(InputError, match="no free cell"):
        Maze([[1, 1]])
    assert evaluation_kwargs(UMAZE)["maze_map"][3][3] == "g"


@pytest.mark.parametrize(
    ("env_id", "keys", "dims"),
    [
        ("PointMaze_UMaze-v3", None, (4, 2)),
        ("FetchReach-v4", None, (10, 3)),
        ("FetchReach-v4", ("observation", "desired_goal"), (13, 0)),
        ("FrankaKitchen-v1", None, (59, 0)),
    ],
)
def test_dictionary_observations_of_real_environments(env_id, keys, dims):
    config = EnvConfig(env_id, observation_keys=keys)
    env = config.make()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (sum(dims),)
    found, goal = layout(env.unwrapped.observation_space, keys)
    assert found == (keys or ("observation",))
    assert goal == ("desired_goal" if dims[1] else None)
    env.close()


def test_unknown_environment():
    with pytest.raises(InputError, match="can not be made"):
        EnvConfig("NoSuchEnv-v0").make()


class Fixed:
    """A deterministic policy that counts its resets."""

    def __init__(self):
        self.resets = []

    def reset(self, mask, seeds=None):
        self.resets += [seeds[i] for i in mask.nonzero()[:, 0]]

    def act(self, observations):
        return torch.tanh(observations[:, :1] * 3)


class Short(gym.Wrapper):
    """Ends episodes after a number of steps that depends on the seed."""

    def reset(self, *, seed=None, options=None):
        self.left = 3 + seed % 5
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.left -= 1
        *rest, info = self.env.step(action)
        info["success"] = self.left == 0 and action[0] > 0
        return rest[0], rest[1], self.left == 0, rest[3], info


def vector(n):
    mode = gym.vector.AutoresetMode.DISABLED
    return gym.vector.SyncVectorEnv(
        [lambda: Short(gym.make("Pendulum-v1"))] * n, autoreset_mode=mode
    )


@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_each_seed_is_one_episode_however_environments_are_grouped(num_envs):
    seeds = list(range(100, 107))
    policy = Fixed()
    result = evaluate(policy, vector(num_envs), seeds, keep_paths=2)
    assert [e.seed for e in result.episodes] == seeds
    assert [e.length for e in result.episodes] == [3 + s % 5 for s in seeds]
    assert set(policy.resets) == set(seeds)
    for episode in result.episodes:  # against a loop of one environment
        env, total, wins = Short(gym.make("Pendulum-v1")), 0.0, []
        observation, _ = env.reset(seed=episode.seed)
        done = False
        while not done:
            batch = torch.as_tensor(observation, dtype=torch.float32)[None]
            action = Fixed().act(batch)[0].numpy()
            observation, reward, done, _, info = env.step(action)
            total += reward
            wins.append(bool(info["success"]))
        assert episode.episode_return == pytest.approx(total, rel=1e-5)
        assert episode.success == any(wins)
    assert [len(e.path) for e in result.episodes] == [*(e.length for e in result.episodes[:2])] + [
        0
    ] * 5


def test_random_policy_depends_on_its_seed_alone():
    low, high = np.full(2, -1.0), np.ones(2)
    policy = RandomPolicy(low, high, 3)
    policy.reset(torch.ones(3, dtype=torch.bool), [5, 6, 5])
    actions = policy.act(torch.zeros(3, 4))
    assert torch.equal(actions[0], actions[2])
    assert not torch.equal(actions[0], actions[1])


class Planner(Fixed):
    """Makes a plan at every step, for every environment."""

    def act(self, observations):
        n = len(observations)
        self.new_plans = [(torch.arange(n), Plan(torch.zeros(n, 4, 4), torch.zeros(n, 4, 2)))]
        return super().act(observations)


@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_plans_and_decisions_of_idle_environments_do_not_count(num_envs):
    result = evaluate(Planner(), vector(num_envs), list(range(100, 107)))
    steps = sum(3 + s % 5 for s in range(100, 107))
    assert sum(len(e.plans) for e in result.episodes) == steps == result.num_decisions
