"""Generates PointMaze datasets: a waypoint controller that wanders from goal to goal."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer
from tqdm.auto import tqdm

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources import minari
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.envs.evaluate import RandomPolicy, evaluate
from diffrl_lightning.envs.make import EnvConfig, import_plugins
from diffrl_lightning.envs.pointmaze import (
    ENV_IDS,
    GOAL_CELLS,
    GOAL_RADIUS,
    Maze,
    MazeMap,
    WaypointController,
    WaypointPolicy,
    evaluation_kwargs,
)
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.types import InputError

NAMESPACE = "pointmaze/"
_DEFAULT_STEPS = 100_000
_STREAM_STEPS = 5_000  # the agent is put elsewhere after so many steps
_REFERENCE_EPISODES = 50


def minari_id(dataset: str) -> str:
    """The Minari id, which has a version: ``pointmaze/umaze`` is ``pointmaze/umaze-v0``."""
    return dataset if re.search(r"-v\d+$", dataset) else f"{dataset}-v0"


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Metadata, known before the dataset is generated but for its reference scores.

    Raises:
        InputError: if the maze is unknown, or the stored dataset of this name has another maze or size.
    """
    config = _evaluation_env(dataset, options)
    observation_dim, goal_dim = options.dims(config.spaces[0])
    info = DatasetInfo(
        observation_dim=observation_dim,
        action_dim=2,
        goal_dim=goal_dim,
        env_id=config.env_id,
        env_kwargs=config.kwargs,
    )
    stored = minari_id(dataset)
    if not minari.is_local(stored):
        return info
    found = minari.describe(stored, SourceOptions())
    if found.env_kwargs.get("maze_map") != config.kwargs["maze_map"]:
        raise InputError(
            f"The stored dataset {stored!r} is of another maze: choose another name, or delete it."
        )
    if options.generate_steps not in (None, found.num_steps):
        name, _, version = stored.rpartition("-v")
        raise InputError(
            f"The stored dataset {stored!r} has {found.num_steps} steps, not generate_steps="
            f"{options.generate_steps}: ask for those, give it another version "
            f"({name}-v{int(version) + 1}), or delete it."
        )
    if options.env_id is None:  # as it was generated, with that time limit
        info = replace(info, env_id=found.env_id, env_spec=found.env_spec)
    # Scores of other rewards or time limits would be wrong.
    changed = options.env_id or set(options.kwargs) - {"maze_map"}
    return replace(info, ref_scores=None if changed else found.ref_scores)


def prepare(dataset: str, options: SourceOptions) -> None:
    """Generate the dataset where it is not on disk."""
    if not minari.is_local(minari_id(dataset)):
        generate(
            dataset,
            num_steps=options.generate_steps or _DEFAULT_STEPS,
            maze_map=options.kwargs.get("maze_map"),
            env_id=options.env_id,
        )


def load(dataset: str, options: SourceOptions) -> Episodes:
    """All episodes, each with its own goal."""
    return minari.load(minari_id(dataset), options)


def generate(
    dataset: str,
    *,
    num_steps: int = _DEFAULT_STEPS,
    maze_map: MazeMap | None = None,
    env_id: str | None = None,
    action_noise: float = 0.5,
    seed: int = 0,
) -> None:
    """Write a Minari dataset of a noisy waypoint controller, an episode for each goal.

    As in D4RL's and Minari's generation the agent goes on from goal to goal, so that consecutive
    episodes are physically continuous; every 5,000 steps it starts elsewhere. The reward is 1 at the
    goal, which each observation of its episode carries as ``desired_goal``. A dataset of one goal is of
    episodes from anywhere to it. With a rest the agent stays at each goal for so many steps before it
    goes on; without, the data show nobody who stays anywhere.

    Args:
        dataset: Minari id ``pointmaze/NAME``; NAME is open, umaze, medium or large, or free where
            a ``maze_map`` is given; with ``-to-ROW-COLUMN`` behind it, that cell is the only goal; with
            ``-rest-STEPS`` at the end, the agent rests at goals.
        num_steps: environment steps.
        maze_map: rows of cells, 1 a wall, 0 free, "g" the evaluation goal.
        env_id: PointMaze environment, for its time limit; default that of the maze of this name, or
            the large one's.
        action_noise: standard deviation of the noise added to the controller's actions.
        seed: of starts, goals and noise.

    Raises:
        InputError: if the maze is unknown.
    """
    check_ranges(locals())
    config = _evaluation_env(dataset, SourceOptions(env_id, {"maze_map": maze_map}))
    dataset = minari_id(dataset)
    if minari.is_local(dataset):
        raise InputError(
            f"There is a dataset {dataset!r} already: choose another name, or delete it."
        )
    scores = _reference_scores(config, seed)
    cells = [[0 if c == "g" else c for c in row] for row in config.kwargs["maze_map"]]
    name = _parts(dataset)
    env = gym.make(
        config.env_id,
        maze_map=cells,
        continuing_task=True,
        reset_target=name.goal_cell is None,
        max_episode_steps=10**9,
        disable_env_checker=True,
    )
    minari.write(
        dataset,
        _collect(env, num_steps, action_noise, seed, name),
        scores,
        env=env,
        eval_env=config.make_unflattened(),
        algorithm_name="waypoint controller",
        description=f"PointMaze, PD waypoint controller, action noise {action_noise}",
    )
    env.close()


class _Name(NamedTuple):
    """What a dataset's name says: ``pointmaze/medium-to-6-1-rest-30``."""

    maze: str
    goal_cell: tuple[int, int] | None  # the only goal
    rest_steps: int  # at each goal


def _parts(dataset: str) -> _Name:
    name = re.sub(r"-v\d+$", "", dataset.removeprefix(NAMESPACE))
    found = re.fullmatch(r"(.*?)(?:-to-(\d+)-(\d+))?(?:-rest-(\d+))?", name)
    assert found is not None
    goal_cell = None if found[2] is None else (int(found[2]), int(found[3]))
    return _Name(found[1], goal_cell, int(found[4] or 0))


def _evaluation_env(dataset: str, options: SourceOptions) -> EnvConfig:
    import_plugins()
    name, goal_cell, _ = _parts(dataset)
    maze_map = options.kwargs.get("maze_map")
    if maze_map is None and name not in ENV_IDS:
        raise InputError(
            f"There is no maze {name!r}: choose one of {', '.join(ENV_IDS)}, or give env_kwargs a "
            "maze_map of your own."
        )
    env_id = options.env_id or ENV_IDS.get(name, ENV_IDS["large"])
    maze_map = maze_map or gym.spec(ENV_IDS[name]).kwargs["maze_map"]
    maze = Maze(maze_map)
    if goal_cell is not None:
        free = maze.free_cells
        if goal_cell not in free:
            raise InputError(f"{dataset!r} ends in a wall: choose one of the free cells, {free}.")
        maze_map = [[0 if cell == "g" else cell for cell in row] for row in maze_map]
    kwargs = evaluation_kwargs(maze_map, goal_cell or GOAL_CELLS.get(name))
    others = {key: value for key, value in options.kwargs.items() if key != "maze_map"}
    return EnvConfig(env_id, kwargs | others)


def _reference_scores(config: EnvConfig, seed: int) -> tuple[float, float]:
    """Mean return of random actions and of the noiseless controller."""
    envs = config.make_vector(10)
    maze = Maze.of(envs.envs[0])  # type: ignore[attr-defined]
    assert maze is not None
    space = envs.single_action_space
    seeds = range(seed, seed + _REFERENCE_EPISODES)
    scores = []
    for policy in (RandomPolicy(space.low, space.high, 10), WaypointPolicy(maze, 10)):  # type: ignore[attr-defined]
        episodes = evaluate(policy, envs, list(seeds)).episodes
        scores.append(float(np.mean([e.episode_return for e in episodes])))
    envs.close()
    return scores[0], scores[1]


def _collect(
    env: gym.Env, num_steps: int, noise: float, seed: int, name: _Name
) -> list[EpisodeBuffer]:
    """Walk from goal to goal, or again and again to one; an episode a goal."""
    rng = np.random.default_rng(seed)
    maze, base = Maze.of(env), cast(Any, env.unwrapped)
    assert maze is not None
    options = None if name.goal_cell is None else {"goal_cell": np.array(name.goal_cell)}

    def begin() -> np.ndarray:
        """A state anywhere, with a goal anywhere or in the cell."""
        return env.reset(seed=int(rng.integers(2**31)), options=options)[0]["observation"]

    buffers: list[EpisodeBuffer] = []
    for step in tqdm(range(num_steps), desc="Generating PointMaze", unit="step"):
        if step % _STREAM_STEPS == 0:
            state, controller = begin(), WaypointController(maze, rng)
            states: list[np.ndarray] = []
        if not states:
            states, actions, goal = [state], [], base.goal.copy()
            rested = -1  # steps at the goal; -1 on the way
        action = controller.act(state, goal) + noise * rng.standard_normal(2)
        action = np.clip(action, -1, 1).astype(np.float32)
        result, _, _, _, info = env.step(action)
        state = result["observation"]
        states.append(state)
        actions.append(action)
        if rested >= 0 or info["success"]:  # of the environment's goal, which is then another one
            rested += 1
        if rested == name.rest_steps or (step + 1) % _STREAM_STEPS == 0 or step + 1 == num_steps:
            buffers.append(_buffer(len(buffers), states, actions, goal))
            states = []
            if name.goal_cell is not None:
                state = begin()
    return buffers


def _buffer(
    index: int, states: list[np.ndarray], actions: list[np.ndarray], goal: np.ndarray
) -> EpisodeBuffer:
    n = len(actions)
    observation = np.array(states)
    return EpisodeBuffer(
        id=index,
        observations={
            "achieved_goal": observation[:, :2],
            "desired_goal": np.repeat(goal[None], n + 1, 0),
            "observation": observation,
        },
        actions=np.array(actions),
        rewards=(np.linalg.norm(observation[1:, :2] - goal, axis=1) <= GOAL_RADIUS).astype(float),  # type: ignore[arg-type]
        terminations=np.zeros(n, bool),  # type: ignore[arg-type]
        truncations=np.arange(n) == n - 1,  # type: ignore[arg-type]
    )
