"""Acting by chunks of actions; a reactive policy is one with chunks of one action."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from diffrl_lightning.policies.base import BatchPolicy
from diffrl_lightning.types import Generators, InputError


class ChunkFn(Protocol):
    """Decides; what a module lends to its policy."""

    def __call__(self, states: Tensor, *, generator: Generators) -> Tensor:
        """Chunks of actions from now on (N, K, A) for states (N, O), or the last C (N, C, O)."""


class ChunkedPolicy(BatchPolicy):
    """Plays the first actions of a chunk in each environment, then decides anew (receding horizon).

    Args:
        decide: makes the chunks.
        n_action_steps: actions that are played of a chunk; 1 decides at every step.
        options: those of :class:`BatchPolicy`.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, decide: ChunkFn, *, n_action_steps: int = 1, **options: Any) -> None:
        super().__init__(**options)
        if n_action_steps < 1:
            raise InputError(f"{n_action_steps=} must be at least 1.")
        self.decide, self.n_action_steps = decide, n_action_steps
        self._chunks = torch.zeros(0, 0, 0)  # (N, n_action_steps, A)

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Observations (N, O) -> actions (N, A)."""
        self._observe(observations)
        rows = self._due(self.n_action_steps).nonzero()[:, 0]
        if len(rows):
            states = self._states(observations, rows)
            chunks = self.decide(states, generator=self._noise(rows)).float().cpu()
            if len(self._chunks) != len(observations):
                n, shape = len(observations), chunks.shape[2:]
                self._chunks = chunks.new_zeros(n, self.n_action_steps, *shape)
            self._chunks[rows] = chunks[:, : self.n_action_steps]
            self._age[rows] = 0
        actions = self._chunks[torch.arange(len(observations)), self._age]
        self._tick()
        return actions
