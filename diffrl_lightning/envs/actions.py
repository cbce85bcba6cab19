"""Resets and steps of environments, with actions as they take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from diffrl_lightning.envs.make import env_errors
from diffrl_lightning.types import InputError


def continuous(space: gym.Space, env_id: str) -> gym.spaces.Box:
    """The space of actions, if a continuous policy can act in it.

    Raises:
        InputError: if actions are not vectors of numbers.
    """
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InputError(
            f"Policies act by vectors of real numbers, but {env_id!r} has the actions {space}: name "
            "an environment with a one-dimensional Box of actions."
        )
    return space


def playable(
    actions: np.ndarray, space: gym.spaces.Box, rows: np.ndarray | None = None
) -> np.ndarray:
    """Actions (N, A) within an environment's bounds; where it takes integers they are rounded.

    Args:
        actions: as a policy has them.
        space: the environment's.
        rows: (N,) bool, which of them are looked at; default all.

    Raises:
        InputError: if one of these is NaN or infinite.
    """
    finite = np.isfinite(actions).all(1)
    if rows is not None:
        finite |= ~rows
    if not finite.all():
        raise InputError(
            f"The policy's actions are NaN or infinite in {(~finite).sum()} of {len(finite)} "
            "environments: train it longer or with a lower learning rate, or use another checkpoint."
        )
    actions = np.clip(actions, space.low, space.high)
    if np.issubdtype(space.dtype, np.integer):
        actions = np.rint(actions)
    return actions.astype(space.dtype)


def outside(actions: np.ndarray, space: gym.spaces.Box) -> float:
    """Share of actions (N, A) that lie outside the bounds by more than a thousandth of the range."""
    beyond = np.zeros(len(actions), bool)
    for column, low, high in zip(actions.T, space.low, space.high, strict=True):
        bounded = np.isfinite(low) and np.isfinite(high)
        slack = 1e-3 * (float(high) - float(low)) if bounded else 1e-3
        beyond |= (column < low - slack) | (column > high + slack)
    return float(beyond.mean())


def begin(envs: VectorEnv, seeds: Sequence[int], which: np.ndarray) -> np.ndarray:
    """Begin new episodes in these (N,) bool of the environments; observations of all (N, O).

    Raises:
        InputError: if an environment fails.
    """
    reset: Any = envs.reset
    with _errors_of(envs, "reset"):
        return reset(seed=list(seeds), options={"reset_mask": which})[0]


def play(envs: VectorEnv, actions: np.ndarray, rows: np.ndarray | None = None) -> tuple[Any, ...]:
    """A step of all environments, by :func:`playable` actions (N, A); what their ``step`` returns.

    Args:
        envs: environments.
        actions: as a policy has them.
        rows: (N,) bool, which of them are looked at; default all.

    Raises:
        InputError: if an action or a reward is NaN or infinite, or an environment fails.
    """
    space = continuous(envs.single_action_space, _name(envs))
    played = playable(actions, space, rows)
    with _errors_of(envs, "step"):
        result = envs.step(played)
        rewards = result[1] if rows is None else result[1][rows]
        if not np.isfinite(rewards).all():
            raise ValueError("a reward is NaN or infinite")
    return result


def _name(envs: VectorEnv) -> str:
    return envs.spec.id if envs.spec else "the environment"


def _errors_of(envs: VectorEnv, method: str) -> Any:
    return env_errors(
        f"The {method} of {_name(envs)!r} failed",
        "correct env_kwargs, or name another environment by env_id",
    )
