"""What readers of datasets have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from diffrl_lightning.envs.make import check_env_names, layout, layout_dims
from diffrl_lightning.envs.stored import StoredSpec
from diffrl_lightning.inputs import check_ranges


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself before its arrays are read.

    ``observation_dim`` counts the state, ``goal_dim`` the goal that its environment adds; rewards
    that it does not have are read as zeros. The environment is as the dataset has it, not to be made
    before :func:`~diffrl_lightning.data.sources.environments.evaluation_env` has looked at it.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int = 0
    has_rewards: bool = True
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
        check_ranges({"generate_steps": self.generate_steps})

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keywords of ``gymnasium.make``."""
        return {} if self.env_kwargs is None else self.env_kwargs

    def dims(self, space: gym.Space) -> tuple[int, int]:
        """Length of the flat state and of the goal in a space of observations."""
        return layout_dims(space, *layout(space, self.observation_keys, self.goal_key))
