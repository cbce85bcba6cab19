"""How datamodules make environments, and what they compare them with."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from torch.utils.data import DataLoader

from diffrl_lightning.data.sources import DatasetInfo, SourceOptions
from diffrl_lightning.data.sources.environments import check_action_bounds
from diffrl_lightning.envs.actions import continuous, outside
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.types import InputError


class MakesEnvs:
    """The part of a datamodule that makes environments, as its ``env_config`` says."""

    env_id: str | None
    datasets: list[str]
    env_config: EnvConfig

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        """One evaluation environment with flat observations."""
        return self.env_config.make(render_mode)

    def make_vector_env(self, num_envs: int, asynchronous: bool = False) -> VectorEnv:
        """Several evaluation environments, which are not reset automatically."""
        return self.env_config.make_vector(num_envs, asynchronous)

    def action_space(self) -> gym.spaces.Box | None:
        """The environment's bounds of actions, None where no environment is known.

        Raises:
            InputError: if actions are not vectors of numbers.
        """
        if self.env_id is None:
            return None
        return continuous(self.env_config.spaces[1], self.env_id)

    def test_dataloader(self) -> DataLoader:
        """A single token: tests are rollouts."""
        return DataLoader([0])  # type: ignore[arg-type]

    def check_env(self, info: DatasetInfo, options: SourceOptions) -> int:
        """Refuse an environment whose spaces are not those of a dataset.

        Returns:
            The length of the environment's goal.

        Raises:
            InputError: if dimensions differ, or the bounds of actions that both name.
        """
        space, env_id = self.action_space(), self.env_id
        assert space is not None
        assert env_id is not None
        observation_dim, goal_dim = options.dims(self.env_config.spaces[0])
        found = (observation_dim, space.shape[0])
        if found != (info.observation_dim, info.action_dim):
            raise InputError(
                f"Dataset and environment do not match: {self.datasets[0]!r} has observations of "
                f"{info.observation_dim} and actions of {info.action_dim} dimensions, "
                f"{env_id!r} has {found[0]} and {found[1]}; correct env_id or dataset."
            )
        check_action_bounds(self.datasets[0], info, options, env_id, space)
        return goal_dim

    def check_actions(self, actions: np.ndarray) -> None:
        """Warn of recorded actions (N, A) that the environment would not take as they are."""
        space = self.action_space()
        share = 0.0 if space is None else outside(actions, space)
        if share:
            warnings.warn(
                f"{share:.2%} of the actions of {self.datasets[0]!r} lie outside the bounds of "
                f"{self.env_id!r}, {space}: they are of another environment, or another scale.",
                stacklevel=2,
            )
