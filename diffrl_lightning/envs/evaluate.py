"""Rolling a policy out in environments."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from diffrl_lightning.envs.actions import begin, play
from diffrl_lightning.types import Episode, InputError, PlanSnapshot, Policy

_MOST_SNAPSHOTS = 12  # an episode
_MOST_CANDIDATES = 32  # a snapshot


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
    snapshot_every: int = 20,
    progress: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Run one episode for each seed, as many at once as there are environments.

    An episode depends on its seed alone: the environment and the policy's noise both start from it.
    An environment that has finished takes the next seed at once.

    Args:
        policy: a fresh policy.
        envs: environments with autoreset disabled.
        seeds: one an episode.
        keep_paths: of how many of the first episodes the observations and some plans are kept.
        snapshot_every: steps from one plan that is kept to the next, at least.
        progress: called with the number of steps made, after each.

    Raises:
        InputError: if an action or a plan is NaN or infinite, or an environment fails.
    """
    if not seeds:
        return Evaluation([])
    n = envs.num_envs
    queue = deque(Episode(index, int(seed)) for index, seed in enumerate(seeds))
    running: list[Episode | None] = [None] * n
    result = Evaluation([])
    observations = np.zeros((n, *(envs.single_observation_space.shape or ())), np.float32)
    ended = np.ones(n, bool)
    while len(result.episodes) < len(seeds):
        if ended.any():
            for i in np.flatnonzero(ended).tolist():
                running[i] = queue.popleft() if queue else None
            # An environment left without an episode idles; nobody looks at it.
            row_seeds = [seeds[-1] if e is None else e.seed for e in running]
            observations[ended] = begin(envs, row_seeds, ended)[ended]
            policy.reset(torch.as_tensor(ended), row_seeds)
        started = time.perf_counter()
        actions = policy.act(torch.from_numpy(observations)).cpu().numpy()
        result.decision_seconds += time.perf_counter() - started
        result.num_decisions += sum(episode is not None for episode in running)
        _record_plans(policy, running, keep_paths, snapshot_every)
        busy = np.array([episode is not None for episode in running])
        following, rewards, terminations, truncations, infos = play(envs, actions, busy)
        ended = terminations | truncations
        for i, episode in enumerate(running):
            if episode is not None:
                _record(episode, observations[i], rewards[i], infos, i, episode.index < keep_paths)
                if ended[i]:
                    result.episodes.append(episode)
        observations = following.astype(np.float32)
        if progress is not None:
            progress(1)
    result.episodes.sort(key=lambda episode: episode.index)
    return result


def _record_plans(
    policy: Policy, running: Sequence[Episode | None], keep_paths: int, snapshot_every: int
) -> None:
    """Record the plans that a planner has just made, except for idle environments.

    Raises:
        InputError: if one of them is NaN or infinite.
    """
    for rows, plan in getattr(policy, "new_plans", ()):
        for k, (row, states) in enumerate(zip(rows.tolist(), plan.observations, strict=True)):
            episode = running[row]
            if episode is None:
                continue
            if not torch.isfinite(states).all():
                raise InputError(
                    "The policy's plans are NaN or infinite: train it longer or with a lower learning "
                    "rate, or use another checkpoint."
                )
            episode.plans.append(states[:, :2].numpy().copy())
            kept, now = episode.snapshots, episode.length
            due = not kept or (
                now - kept[-1].step >= snapshot_every and len(kept) < _MOST_SNAPSHOTS
            )
            if due and episode.index < keep_paths:
                kept.append(_snapshot(policy, plan, k, now))


def _snapshot(policy: Policy, plan: Any, k: int, step: int) -> PlanSnapshot:
    """Copy the k-th plan, with candidates evenly over the ranks of their values."""
    stride, states = getattr(policy, "stride", 1), plan.observations[k].numpy().copy()
    if plan.candidates is None or plan.values is None:
        return PlanSnapshot(step, stride, states)
    ranked = plan.values[k].argsort()
    count = min(len(ranked), _MOST_CANDIDATES)
    kept = ranked[torch.linspace(0, len(ranked) - 1, count).round().long().to(ranked.device)]
    candidates, values = (part[k, kept].float().cpu() for part in (plan.candidates, plan.values))
    return PlanSnapshot(step, stride, states, candidates.numpy(), values.numpy())


def _record(
    episode: Episode,
    observation: np.ndarray,
    reward: float,
    infos: dict[str, Any],
    i: int,
    keep_path: bool,
) -> None:
    """Record a step; an episode is a success if any of its steps was one."""
    if episode.length == 0:
        episode.start = observation.copy()
    if keep_path:
        episode.path.append(observation.copy())
    episode.episode_return += float(reward)
    episode.length += 1
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
        for i in np.flatnonzero(mask).tolist():
            self.rngs[i] = np.random.default_rng(None if seeds is None else seeds[i])

    def act(self, observations: Tensor) -> Tensor:
        """(N, O) -> (N, A)."""
        rows = [rng.uniform(self.low, self.high) for rng in self.rngs]
        return torch.as_tensor(np.stack(rows), dtype=torch.float32)
