"""Acting by chunks of actions; a reactive policy is one with chunks of one action."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from diffrl_lightning.inputs import at_least
from diffrl_lightning.policies.base import BatchPolicy
from diffrl_lightning.types import Generators


class ChunkFn(Protocol):
    """A role's ``decide`` with its way to act bound."""

    def __call__(self, states: Tensor, *, generator: Generators) -> Tensor:
        """Chunks of actions from now on (N, K, A) for states (N, O), or the last C (N, C, O)."""


class ChunkedPolicy(BatchPolicy):
    """Plays the first actions of a chunk in each environment, then decides anew (receding horizon).

    Args:
        decide: makes the chunks.
        n_action_steps: actions that are played of a chunk; 1 decides at every step.
        options: keywords of :class:`BatchPolicy`.
    """

    def __init__(self, decide: ChunkFn, *, n_action_steps: int = 1, **options: Any) -> None:
        super().__init__(**options)
        at_least(1, n_action_steps=n_action_steps)
        self.decide, self.n_action_steps = decide, n_action_steps

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Observations (N, O) -> actions (N, A)."""
        self._observe(observations)
        rows = self._due(self.n_action_steps).nonzero()[:, 0]
        if len(rows):
            states = self._states(observations, rows)
            chunks = self.decide(states, generator=self._noise(rows)).float().cpu()
            self._keep(rows, chunks[:, : self.n_action_steps])
        actions = self._kept[0][torch.arange(len(observations)), self._age]
        self._tick()
        return actions
