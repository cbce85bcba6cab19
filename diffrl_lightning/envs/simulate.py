"""Steps MuJoCo environments from given states: ground truth for models of dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from tqdm.auto import tqdm

from diffrl_lightning.types import InputError


class Simulated(NamedTuple):
    """Outcomes of N steps.

    A state is not known where a velocity reached the bound at which observations cut it off.
    """

    next_observations: np.ndarray  # (N, O)
    rewards: np.ndarray  # (N,)
    terminations: np.ndarray  # (N,) bool, where the episode would have ended
    known: np.ndarray  # (N,) bool


def simulate(
    env: gym.Env, observations: np.ndarray, actions: np.ndarray, *, show_progress: bool = True
) -> Simulated:
    """One step from each state, in planar MuJoCo (Hopper, HalfCheetah, Walker2d) or in PointMaze.

    Observations of the former are all positions but the first, which nothing depends on, and all
    velocities; those of PointMaze, and of the inverted pendulum, are all of both. PointMaze's rewards
    are about a goal, and are 0 here.

    Args:
        env: such an environment.
        observations: states (N, O).
        actions: (N, A).
        show_progress: a progress bar.
    """
    base: Any = getattr(env.unwrapped, "point_env", env.unwrapped)
    model = getattr(base, "model", None)
    positions = getattr(model, "nq", 0)
    hidden = 2 * positions - observations.shape[1]  # positions that are not observed
    if model is None or positions != model.nv or hidden not in (0, 1):
        raise InputError(
            f"{env.spec.id if env.spec else env} can not be set to a state by its observation: "
            "use Hopper, HalfCheetah, Walker2d or PointMaze, or simulate nothing."
        )
    env.reset(seed=0)
    seen = positions - hidden
    qpos = np.concatenate([np.zeros((len(observations), hidden)), observations[:, :seen]], 1)
    qvel = observations[:, seen:].astype(np.float64)
    following, rewards = np.empty_like(observations), np.empty(len(observations), np.float32)
    ends = np.zeros(len(observations), bool)
    silent = None if show_progress else True  # None: off without a terminal
    rows = tqdm(range(len(observations)), desc="Simulating", leave=False, disable=silent)
    for i in rows:
        base.set_state(qpos[i], qvel[i])
        following[i], rewards[i], ends[i], *_ = base.step(actions[i])
    unbounded = hidden == 0 or base.spec.id.startswith("HalfCheetah")
    bound = np.inf if unbounded else 10 - 1e-3
    return Simulated(following, rewards, ends, np.all(np.abs(qvel) < bound, 1))


def play(
    env: gym.Env,
    observations: np.ndarray,
    length: int,
    act: Callable[[np.ndarray, int], np.ndarray],
    *,
    show_progress: bool = True,
) -> Simulated:
    """Several steps from each state; it is set anew from its observation at each of them.

    Args:
        env: as for :func:`simulate`.
        observations: states (N, O) to begin with.
        length: L, steps.
        act: states (N, O) and the number of steps made -> actions (N, A), which are clipped to the
            environment's.
        show_progress: a progress bar.

    Returns:
        Outcomes (N, L, ...).
    """
    space: Any = env.action_space
    silent = None if show_progress else True  # None: off without a terminal
    at, steps = observations, []
    for k in tqdm(range(length), desc="Simulating", leave=False, disable=silent):
        actions = np.clip(act(at, k), space.low, space.high)
        steps.append(simulate(env, at, actions, show_progress=False))
        at = steps[-1].next_observations
    return Simulated(*(np.stack(parts, 1) for parts in zip(*steps, strict=True)))
