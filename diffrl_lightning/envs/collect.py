"""Collects transitions from environments that step together, in runs that can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from diffrl_lightning.envs.actions import begin, play


class Collector:
    """N environments that step together; one that has ended begins anew at once.

    Episode k of all of them begins from the seed (seed, k). The state of MuJoCo's environments is part
    of ``state_dict``, so that an interrupted run goes on in mid-episode; others begin anew.

    Args:
        envs: environments in this process with autoreset disabled.
        seed: of the episodes.
    """

    def __init__(self, envs: SyncVectorEnv, seed: int = 0) -> None:
        self.envs, self.seed = envs, seed
        self.episodes = 0  # that have begun
        self.numbers = np.zeros(envs.num_envs, np.int64)  # of those that run
        self.returns = np.zeros(envs.num_envs)
        shape = envs.single_observation_space.shape or ()
        self.observations = np.zeros((envs.num_envs, *shape), np.float32)
        self._begin(np.ones(envs.num_envs, bool))

    def step(self, act: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], list[float]]:
        """Step all environments by a policy, observations (N, O) -> actions (N, A).

        Returns:
            Transitions (N, ...) with their episodes' numbers, and returns of the episodes that ended.

        Raises:
            InputError: if an action or a reward is NaN or infinite, or an environment fails.
        """
        before = torch.from_numpy(self.observations.copy())
        actions = act(before).float()
        following, rewards, terminations, truncations, _ = play(self.envs, actions.numpy())
        self.returns += rewards
        self.observations = following.astype(np.float32)
        rows = {
            "observations": before,
            "actions": actions,
            "rewards": torch.from_numpy(rewards).float(),
            "next_observations": torch.from_numpy(self.observations.copy()),
            "terminations": torch.from_numpy(terminations).float(),
            "episodes": torch.from_numpy(self.numbers.copy()),
        }
        ended = terminations | truncations
        finished = self.returns[ended].tolist()
        if ended.any():
            self._begin(ended)
        return rows, finished

    def _begin(self, which: np.ndarray) -> None:
        count = int(which.sum())
        self.numbers[which] = self.episodes + np.arange(count)
        self.returns[which] = 0.0
        self.episodes += count
        seeds = [
            int(np.random.SeedSequence([self.seed, int(k)]).generate_state(1)[0])
            for k in self.numbers
        ]
        self.observations[which] = begin(self.envs, seeds, which)[which]

    def state_dict(self) -> dict[str, Any]:
        """Counters, observations and physics of all environments."""
        return {
            "episodes": self.episodes,
            "numbers": torch.from_numpy(self.numbers.copy()),
            "returns": torch.from_numpy(self.returns.copy()),
            "observations": torch.from_numpy(self.observations.copy()),
            "physics": [_physics(env) for env in self.envs.envs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them in new environments."""
        self.episodes = state["episodes"]
        self.numbers = state["numbers"].numpy().copy()
        if any(physics is None for physics in state["physics"]):
            self._begin(np.ones(len(self.numbers), bool))
            return
        self.returns = state["returns"].numpy().copy()
        self.observations = state["observations"].numpy().copy()
        for env, physics in zip(self.envs.envs, state["physics"], strict=True):
            _restore(env, physics)


def _time_limit(env: gym.Env) -> Any:
    """The wrapper that counts an environment's steps, None where there is none."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            return env
        env = env.env
    return None


def _physics(env: Any) -> dict[str, Any] | None:
    """The full state of a MuJoCo environment; None of others."""
    base = env.unwrapped
    if not hasattr(base, "model") or not hasattr(base, "data"):
        return None
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(base.model, spec))
    mujoco.mj_getState(base.model, base.data, state, spec)
    limit = _time_limit(env)
    steps = None if limit is None else limit._elapsed_steps
    return {"state": torch.from_numpy(state), "steps": steps}


def _restore(env: Any, physics: dict[str, Any]) -> None:
    import mujoco

    base = env.unwrapped
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(base.model, base.data, physics["state"].numpy(), spec)
    mujoco.mj_forward(base.model, base.data)
    limit = _time_limit(env)
    if limit is not None:
        limit._elapsed_steps = physics["steps"]
