"""Noise, history, clock and last decision of each environment, for every policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffrl_lightning.inputs import at_least


class BatchPolicy:
    """Acts in N environments at once, each with noise of its own.

    Args:
        observation_dim: O, length of the state; what follows it in an observation is the goal.
        n_obs_steps: C, states up to now that are decided by.
        stride: environment steps from one of them to the next.
        device: where decisions are made.
        dtype: of the states that they are made from.
    """

    def __init__(
        self,
        *,
        observation_dim: int,
        n_obs_steps: int = 1,
        stride: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        at_least(1, n_obs_steps=n_obs_steps)
        self.observation_dim, self.n_obs_steps, self.stride = observation_dim, n_obs_steps, stride
        self.device, self.dtype = torch.device(device), dtype
        self._history = torch.zeros(0, 0, 0)  # (N, (C - 1) * stride + 1, O)
        self._kept: list[Tensor] = []  # the last decisions (N, ...), in their parts
        self._age = torch.zeros(0, dtype=torch.long)  # steps since the last decision; -1 before one
        self._clock = torch.zeros(0, dtype=torch.long)  # steps since the episode began
        self._generators: list[torch.Generator] = []

    def reset(self, mask: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Forget the past where an episode begins, and reseed its noise."""
        if len(self._age) != len(mask):
            self._history, self._kept = torch.zeros(0, 0, 0), []
            self._age = torch.full((len(mask),), -1)
            self._clock = torch.zeros(len(mask), dtype=torch.long)
            self._generators = [torch.Generator() for _ in mask]
        self._age[mask] = -1
        self._clock[mask] = 0
        for i in mask.nonzero()[:, 0].tolist():
            if seeds is None:
                self._generators[i].seed()
            else:
                self._generators[i].manual_seed(seeds[i])

    def _observe(self, observations: Tensor) -> None:
        """Take in observations (N, O + G); before an episode's first one was that same one."""
        if len(self._age) != len(observations):
            self.reset(torch.ones(len(observations), dtype=torch.bool))
        if self.n_obs_steps == 1:
            return
        states = observations[:, : self.observation_dim]
        if not len(self._history):
            length = (self.n_obs_steps - 1) * self.stride + 1
            self._history = states[:, None].repeat(1, length, 1)
        self._history = torch.cat([self._history[:, 1:], states[:, None]], 1)
        begins = self._clock == 0
        self._history[begins] = states[begins, None]

    def _due(self, every: int | None) -> Tensor:
        """Which environments (N,) bool need a decision; by default only at an episode's start."""
        due = self._age < 0
        return due if every is None else due | (self._age >= every)

    def _states(self, observations: Tensor, rows: Tensor) -> Tensor:
        """States (M, O) of these rows, or their last C (M, C, O), the oldest first."""
        states = observations[rows, : self.observation_dim]
        if self.n_obs_steps > 1:
            states = self._history[rows, :: self.stride]
        return states.to(self.device, self.dtype)

    def _goals(self, observations: Tensor, rows: Tensor) -> Tensor | None:
        """Goals (M, G) of these rows, None where there is none."""
        goals = observations[rows, self.observation_dim :].to(self.device, self.dtype)
        return goals if goals.shape[1] else None

    def _keep(self, rows: Tensor, *decision: Tensor) -> None:
        """Take in the parts (M, ...) of a decision for these rows."""
        if not self._kept:
            self._kept = [part.new_zeros(len(self._age), *part.shape[1:]) for part in decision]
        for kept, part in zip(self._kept, decision, strict=True):
            kept[rows.to(kept.device)] = part
        self._age[rows] = 0

    def _noise(self, rows: Tensor) -> list[torch.Generator]:
        """The generators of these rows."""
        return [self._generators[i] for i in rows.tolist()]

    def _tick(self) -> None:
        """Count a step."""
        self._age += 1
        self._clock += 1
