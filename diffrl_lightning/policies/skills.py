"""Acting by skills: one is chosen, then its decoder acts for a while."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from diffrl_lightning.policies.base import BatchPolicy
from diffrl_lightning.types import Generators, within


class ChooseFn(Protocol):
    """Chooses skills; what a module lends to its policy."""

    def __call__(self, states: Tensor, goals: Tensor | None, *, generator: Generators) -> Tensor:
        """Skills (N, D) in states (N, O), for goals (N, G)."""


class DecodeFn(Protocol):
    """Acts by skills; what a module lends to its policy."""

    def __call__(
        self, states: Tensor, skills: Tensor, steps: Tensor, *, generator: Generators
    ) -> Tensor:
        """Actions (N, A) in states (N, O), of skills (N, D) that have acted for so many steps (N,)."""


class SkillPolicy(BatchPolicy):
    """Chooses a skill in each environment, lets it act for a while, then chooses anew.

    Unlike a chunk of actions a skill sees every state that it leads to.

    Args:
        choose: chooses skills.
        decode: acts by them.
        horizon: H, steps of a skill as it was learned.
        n_action_steps: steps that a skill acts for; default H.
        options: those of :class:`BatchPolicy`.

    Raises:
        InputError: if a skill is to act for longer than it was learned.
    """

    def __init__(
        self,
        choose: ChooseFn,
        decode: DecodeFn,
        *,
        horizon: int,
        n_action_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        within(1, horizon, n_action_steps=n_action_steps)
        self.choose, self.decode = choose, decode
        self.n_action_steps = horizon if n_action_steps is None else n_action_steps
        self._skills = torch.zeros(0, 0)  # (N, D)

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Observations (N, O + G) -> actions (N, A)."""
        self._observe(observations)
        everyone = torch.arange(len(observations))
        rows = self._due(self.n_action_steps).nonzero()[:, 0]
        if len(rows):
            goals = observations[rows, self.observation_dim :].to(self.device, self.dtype)
            chosen = self.choose(
                self._states(observations, rows),
                goals if goals.shape[1] else None,
                generator=self._noise(rows),
            )
            if len(self._skills) != len(observations):
                self._skills = chosen.new_zeros(len(observations), chosen.shape[1])
            self._skills[rows.to(chosen.device)] = chosen
            self._age[rows] = 0
        actions = self.decode(
            self._states(observations, everyone),
            self._skills,
            self._age.to(self.device),
            generator=self._noise(everyone),
        )
        self._tick()
        return actions.float().cpu()
