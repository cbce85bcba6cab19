"""Evaluation environments with flat observations."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.types import InputError

_LONGEST_TEXT = 300  # of what an environment says when it fails


@dataclass(frozen=True)
class EnvConfig:
    """What is needed to build an environment, and how its observations are laid flat.

    Args:
        env_id: Gymnasium id; ``module:Id`` imports the module that registers it.
        kwargs: keywords of ``gymnasium.make``.
        observation_keys: of a dictionary observation, the entries that make the state, in order.
            Default: ``observation`` where there is one, else all in the space's order.
        goal_key: the entry appended as the goal; default ``desired_goal`` where there is one; "none"
            for no goal.
        wrappers: Gymnasium's own wrappers, each by its name in ``gymnasium.wrappers`` and its
            keywords, the innermost first.

    Raises:
        InputError: if the id is no string, or the keywords are no dictionary.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    observation_keys: Sequence[str] | None = None
    goal_key: str | None = None
    wrappers: Sequence[tuple[str, Mapping[str, Any]]] = ()

    def __post_init__(self) -> None:
        check_env_names(self.env_id, self.kwargs, self.observation_keys)
        check_ranges({"max_episode_steps": self.kwargs.get("max_episode_steps")})

    def make(self, render_mode: str | None = None) -> gym.Env:
        """One environment, with flat observations.

        Raises:
            InputError: if the id is unknown, what it needs is not installed, or its constructor fails.
        """
        return self._flat(self.make_unflattened(render_mode))

    def make_unflattened(self, render_mode: str | None = None) -> gym.Env:
        """One environment with the observations that it has, otherwise as :meth:`make`."""
        import_plugins()
        # An environment that is not to be drawn need not know of modes.
        drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        with self._errors():
            env = gym.make(self.env_id, **(dict(self.kwargs) | drawn))
            for name, keywords in self.wrappers:
                env = getattr(gym.wrappers, name)(env, **keywords)
        return env

    def make_vector(self, num_envs: int, asynchronous: bool = False) -> VectorEnv:
        """``num_envs`` environments, in one process or in one each; they are never auto-reset."""
        kind = AsyncVectorEnv if asynchronous else SyncVectorEnv
        with self._errors():
            return kind([self.make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)  # type: ignore[operator]

    @cached_property
    def spaces(self) -> tuple[gym.Space, gym.Space]:
        """Spaces of the observations, before they are laid flat, and of the actions."""
        env = self.make_unflattened()
        env.close()
        return env.observation_space, env.action_space

    def _errors(self) -> Any:
        return env_errors(
            f"Environment {self.env_id!r} can not be made",
            "correct env_id or env_kwargs, or install what it needs",
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


@contextmanager
def env_errors(what: str, fix: str) -> Iterator[None]:
    """Turn whatever an environment raises into one sentence, which names the error.

    Raises:
        InputError: from the environment's own error.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:_LONGEST_TEXT].rstrip(".")
        raise InputError(f"{what} ({type(error).__name__}: {text}): {fix}.") from error


def check_env_names(env_id: Any, kwargs: Any, observation_keys: Any) -> None:
    """Refuse an id that is no string, keywords that are no dictionary, and keys that are no list."""
    if not isinstance(env_id, str) or not env_id:
        raise InputError(f"env_id must be a Gymnasium id, such as 'Hopper-v5', not {env_id!r}.")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise InputError(f"env_kwargs must be a dictionary of keywords, not {kwargs!r}.")
    listed = isinstance(observation_keys, (list, tuple))
    if observation_keys is not None and not (
        listed and observation_keys and all(isinstance(key, str) for key in observation_keys)
    ):
        raise InputError(
            f"observation_keys must be a list of the observation's keys, not {observation_keys!r}."
        )


def registered_spec(env_id: str) -> EnvSpec:
    """What is registered under an id; ``module:Id`` imports the module first.

    Raises:
        InputError: if nothing is.
    """
    import_plugins()
    module, _, name = env_id.rpartition(":")
    with env_errors(f"Environment {env_id!r} is not registered", "correct env_id"):
        if module:
            importlib.import_module(module)
        return gym.spec(name)


def import_plugins() -> None:
    """Register the environments of gymnasium-robotics."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)


def layout(
    space: gym.Space, observation_keys: Sequence[str] | None = None, goal_key: str | None = None
) -> tuple[tuple[str, ...], str | None]:
    """The keys of the state and of the goal in a dictionary space; ((), None) for a flat one.

    Raises:
        InputError: if a key is not in the space, or the space is neither flat nor a dictionary, or flat
            where keys are given.
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
                arrays = [n for n in names if isinstance(space[n], gym.spaces.Box)]
                raise InputError(
                    f"The observation has no array {key!r}: choose observation_keys and goal_key "
                    f"among {', '.join(arrays) or 'those of another environment, this one has none'}."
                )
        return keys, goal_key
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InputError(f"Observations must be vectors or dictionaries of vectors, not {space}.")
    if observation_keys or goal_key not in (None, "none"):
        raise InputError(
            "observation_keys and goal_key are of dictionary observations, and these are vectors: "
            "leave them out."
        )
    return (), None


def layout_dims(
    space: gym.Space, keys: Sequence[str] = (), goal_key: str | None = None
) -> tuple[int, int]:
    """Length of the flat state and of the goal, given the space and its :func:`layout`."""
    if isinstance(space, gym.spaces.Dict):
        dims = {key: int(np.prod(box.shape or ())) for key, box in space.spaces.items()}
        return sum(dims[key] for key in keys), dims[goal_key] if goal_key else 0
    return int(np.prod(space.shape or ())), 0
