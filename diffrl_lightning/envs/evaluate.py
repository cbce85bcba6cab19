"""Rolling a policy out in environments: the one place with ``env.step``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from diffrl_lightning.types import Policy


@dataclass
class Episode:
    """What happened in one episode."""

    seed: int
    start: np.ndarray  # (O,) the first observation
    episode_return: float = 0.0
    length: int = 0
    success: bool | None = None  # None where the environment does not say
    path: list[np.ndarray] = field(default_factory=list)  # observations, where they were kept


@dataclass
class Evaluation:
    """All episodes of an evaluation, in the order of their seeds, and the time of a decision."""

    episodes: list[Episode]
    decision_seconds: float = 0.0
    num_decisions: int = 0


def evaluate(
    policy: Policy,
    envs: VectorEnv,
    seeds: Sequence[int],
    *,
    keep_paths: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Run one episode for each seed, as many at once as there are environments.

    An episode depends on its seed alone: the environment and the policy's noise both start from it.
    An environment that has finished takes the next seed at once.

    Args:
        policy: a fresh policy.
        envs: environments with autoreset disabled.
        seeds: one an episode.
        keep_paths: of how many of the first episodes the observations are kept.
        progress: called with the number of steps made, after each.
    """
    if not seeds:
        return Evaluation([])
    n = envs.num_envs
    finished: dict[int, Episode] = {}
    queue = list(enumerate(seeds))
    current: list[tuple[int, Episode] | None] = [None] * n
    observations = np.zeros((n, *envs.single_observation_space.shape), np.float32)  # type: ignore[misc]
    result = Evaluation([])
    restart = np.ones(n, bool)
    while len(finished) < len(seeds):
        if restart.any():
            # Environments without an episode left idle from the last seed on; nobody looks at them.
            taken = {i: queue.pop(0) for i in np.flatnonzero(restart) if queue}
            row_seeds = [int(taken[i][1]) if i in taken else int(seeds[-1]) for i in range(n)]
            fresh = envs.reset(seed=row_seeds, options={"reset_mask": restart})[0]
            observations[restart] = fresh[restart]
            policy.reset(torch.as_tensor(restart), row_seeds)
            for i in np.flatnonzero(restart):
                entry = taken.get(i)
                current[i] = entry and (entry[0], Episode(entry[1], observations[i].copy()))
        begin = time.perf_counter()
        actions = policy.act(torch.from_numpy(observations)).cpu().numpy()
        result.decision_seconds += time.perf_counter() - begin
        result.num_decisions += n
        space = envs.single_action_space
        actions = np.clip(actions, space.low, space.high).astype(space.dtype)  # type: ignore[attr-defined]
        stepped, rewards, terminations, truncations, infos = envs.step(actions)
        restart = terminations | truncations
        for i, entry in enumerate(current):
            if entry is not None:
                index, episode = entry
                _record(episode, observations[i] if index < keep_paths else None, rewards[i])
                _record_success(episode, infos, i)
                if restart[i]:
                    finished[index], current[i] = episode, None
        observations = stepped.astype(np.float32)
        if progress is not None:
            progress(1)
    result.episodes = [finished[i] for i in range(len(seeds))]
    return result


def _record(episode: Episode, observation: np.ndarray | None, reward: float) -> None:
    episode.episode_return += float(reward)
    episode.length += 1
    if observation is not None:
        episode.path.append(observation.copy())


def _record_success(episode: Episode, infos: dict[str, Any], i: int) -> None:
    """An episode is a success if any of its steps was one."""
    for key in ("success", "is_success"):
        if key in infos and infos.get(f"_{key}", np.ones(i + 1, bool))[i]:
            episode.success = bool(episode.success) or bool(infos[key][i])


class RandomPolicy:
    """Uniform actions, the lower reference of a normalised score."""

    def __init__(self, low: np.ndarray, high: np.ndarray, num_envs: int) -> None:
        self.low, self.high = low, high
        self.rngs = [np.random.default_rng(0)] * num_envs

    def reset(self, mask: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Reseed where an episode begins."""
        for i in np.flatnonzero(mask):
            self.rngs[i] = np.random.default_rng(None if seeds is None else seeds[i])

    def act(self, observations: Tensor) -> Tensor:
        """(N, O) -> (N, A)."""
        rows = [rng.uniform(self.low, self.high) for rng in self.rngs]
        return torch.as_tensor(np.stack(rows), dtype=torch.float32)
