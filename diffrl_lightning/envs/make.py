"""Evaluation environments with flat observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.types import InputError


@dataclass(frozen=True)
class EnvConfig:
    """What is needed to build an environment, and how its observations are laid flat.

    Args:
        env_id: Gymnasium id.
        kwargs: keywords of ``gymnasium.make``.
        observation_keys: of a dictionary observation, the entries that make the state, in order.
            Default: ``observation`` where there is one, else all in the space's order.
        goal_key: the entry appended as the goal; default ``desired_goal`` where there is one; "none"
            for no goal.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    observation_keys: Sequence[str] | None = None
    goal_key: str | None = None

    def __post_init__(self) -> None:
        check_ranges({"max_episode_steps": self.kwargs.get("max_episode_steps")})

    def make(self, render_mode: str | None = None) -> gym.Env:
        """One environment.

        Raises:
            InputError: if the id is unknown or what it needs is not installed.
        """
        import_plugins()
        try:
            # An environment that is not to be drawn need not know of modes.
            drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
            env = gym.make(self.env_id, **drawn, **self.kwargs)
        except (gym.error.Error, TypeError, ImportError, AssertionError) as error:
            raise InputError(
                f"Environment {self.env_id!r} can not be made ({error}): correct env_id or env_kwargs, "
                "or install what it needs."
            ) from error
        return self._flat(env)

    def make_vector(self, num_envs: int, asynchronous: bool = False) -> VectorEnv:
        """``num_envs`` environments, in one process or in one each; they are never auto-reset."""
        import_plugins()
        return gym.make_vec(
            self.env_id,
            num_envs=num_envs,
            vectorization_mode="async" if asynchronous else "sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            wrappers=[self._flat],  # type: ignore[list-item]
            **self.kwargs,
        )

    def _flat(self, env: gym.Env) -> gym.Env:
        """Lay dictionary observations flat: the state's keys in order, then the goal."""
        keys, goal_key = layout(env.observation_space, self.observation_keys, self.goal_key)
        if not keys:
            return env
        order = (*keys, *([goal_key] if goal_key else []))
        length = sum(layout_dims(env.observation_space, keys, goal_key))
        space = gym.spaces.Box(-np.inf, np.inf, (length,), np.float64)
        return gym.wrappers.TransformObservation(
            env, lambda o: np.concatenate([np.ravel(o[key]) for key in order]), space
        )


def import_plugins() -> None:
    """Register the environments of gymnasium-robotics."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)


def layout(
    space: gym.Space, observation_keys: Sequence[str] | None = None, goal_key: str | None = None
) -> tuple[tuple[str, ...], str | None]:
    """The keys of the state and of the goal in a dictionary space; ((), None) for a flat one.

    Raises:
        InputError: if a key is not in the space, or the space is neither flat nor a dictionary.
    """
    if isinstance(space, gym.spaces.Dict):
        names = list(space.spaces)
        keys = tuple(observation_keys or (["observation"] if "observation" in names else names))
        if goal_key == "none":
            return keys, None
        if goal_key is None and "desired_goal" in names and "desired_goal" not in keys:
            goal = space["desired_goal"]
            goal_key = "desired_goal" if isinstance(goal, gym.spaces.Box) else None
        for key in (*keys, *([goal_key] if goal_key else [])):
            if not isinstance(space.spaces.get(key), gym.spaces.Box):
                raise InputError(
                    f"The observation has no array {key!r}: choose observation_keys and goal_key "
                    f"among {', '.join(names)}."
                )
        return keys, goal_key
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InputError(f"Observations must be vectors or dictionaries of vectors, not {space}.")
    return (), None


def layout_dims(
    space: gym.Space, keys: Sequence[str] = (), goal_key: str | None = None
) -> tuple[int, int]:
    """Length of the flat state and of the goal, given the space and its :func:`layout`."""
    if isinstance(space, gym.spaces.Dict):
        dims = {key: int(np.prod(box.shape or ())) for key, box in space.spaces.items()}
        return sum(dims[key] for key in keys), dims[goal_key] if goal_key else 0
    return int(np.prod(space.shape or ())), 0
