"""What readers of datasets have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from diffrl_lightning.envs.make import check_env_names, layout, layout_dims
from diffrl_lightning.envs.stored import StoredSpec
from diffrl_lightning.types import InputError, at_least


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself before its arrays are read.

    ``observation_dim`` counts the state, ``goal_dim`` the goal that its environment adds. The
    environment is as the dataset has it, not to be made before
    :func:`~diffrl_lightning.data.sources.environments.evaluation_env` has looked at it.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int = 0
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    ref_scores: tuple[float, float] | None = None
    num_steps: int | None = None
    env_spec: StoredSpec | None = None  # the rest of the environment, where it is known
    action_space: gym.spaces.Box | None = None  # that actions were recorded in


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say of a dataset beside its name.

    Args:
        env_id: Gymnasium id of the evaluation environment, where the dataset does not name it;
            ``module:Id`` imports the module that registers it.
        env_kwargs: keywords of ``gymnasium.make``, which go over those that the dataset stores; a
            ``maze_map`` here is also the map of a PointMaze to generate.
        observation_keys: entries of a dictionary observation that make the state, in this order.
        goal_key: entry of a dictionary observation that is the goal; default ``desired_goal`` where
            there is one, "none" for no goal.
        generate_steps: steps of a dataset that is generated; default as stored, or 100,000.

    Raises:
        InputError: if a value is of another type.
    """

    env_id: str | None = None
    env_kwargs: dict[str, Any] | None = None
    observation_keys: list[str] | None = None
    goal_key: str | None = None
    generate_steps: int | None = None

    def __post_init__(self) -> None:
        env_id = "Hopper-v5" if self.env_id is None else self.env_id  # any, where none is given
        check_env_names(env_id, self.kwargs, self.observation_keys)
        at_least(1, generate_steps=self.generate_steps)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keywords of ``gymnasium.make``."""
        return {} if self.env_kwargs is None else self.env_kwargs

    def dims(self, space: gym.Space) -> tuple[int, int]:
        """Length of the flat state and of the goal in a space of observations."""
        return layout_dims(space, *layout(space, self.observation_keys, self.goal_key))


def check_arrays(
    dataset: str, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], required: Sequence[str]
) -> None:
    """Refuse a file whose arrays do not make steps, by their shapes and dtypes alone.

    Raises:
        InputError: naming the array and what is wrong with it.
    """
    for name in required:
        if name not in arrays:
            raise InputError(f"{dataset!r} has no array {name!r}: it needs {', '.join(required)}.")
    steps = arrays["observations"][0][:1]
    lengths = {name: shape[0] if shape else "none" for name, (shape, _) in arrays.items()}
    for name, (shape, dtype) in arrays.items():
        matrix = name in ("observations", "actions", "next_observations")
        if dtype.kind not in "fiub":
            raise InputError(f"{dataset!r}: {name} must be numbers, not {dtype}.")
        if len(shape) != 2 if matrix else shape not in (steps, (*steps, 1)):
            raise InputError(
                f"{dataset!r}: {name} has the shape {shape}, but every array needs one row a step "
                f"(arrays of unequal lengths: {lengths})."
            )
        if shape[:1] != steps:
            raise InputError(f"{dataset!r} has arrays of unequal lengths: {lengths}.")
    if steps == (0,):
        raise InputError(f"{dataset!r} holds no steps.")
    following = arrays.get("next_observations", arrays["observations"])[0]
    if following != arrays["observations"][0]:
        raise InputError(f"{dataset!r}: next_observations must be shaped like observations.")
