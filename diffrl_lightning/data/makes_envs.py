"""Environments of a datamodule."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.vector import VectorEnv
from torch.utils.data import DataLoader

from diffrl_lightning.envs.actions import continuous
from diffrl_lightning.envs.make import EnvConfig


class MakesEnvs:
    """The part of a datamodule that makes environments, as its ``env_config`` says."""

    env_id: str | None
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
