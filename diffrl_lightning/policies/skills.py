"""Acting by skills: one is chosen, then its decoder acts for a while."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from diffrl_lightning.inputs import within
from diffrl_lightning.policies.base import BatchPolicy
from diffrl_lightning.types import Generators


class ChooseFn(Protocol):
    """A role's ``choose`` with its way to act bound."""

    def __call__(self, states: Tensor, goals: Tensor | None, *, generator: Generators) -> Tensor:
        """Skills (N, D) in states (N, O), for goals (N, G)."""


class DecodeFn(Protocol):
    """A role's ``decode``, the low-level policy."""

    def __call__(
        self, states: Tensor, skills: Tensor, steps: Tensor, *, generator: Generators
    ) -> Tensor:
        """Actions (N, A) in states (N, O), of skills (N, D) that have acted for so many steps (N,)."""


class SkillPolicy(BatchPolicy):
    """Chooses a skill in each environment, lets it act for a while, then chooses anew.

    Unlike a chunk of actions a skill sees every state that it leads to.

    Args:
        choose: the high-level policy.
        decode: the low-level policy, given a skill.
        horizon: H, steps of a skill as it was learned.
        n_action_steps: steps that a skill acts for; default H.
        options: keywords of :class:`BatchPolicy`.
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

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Observations (N, O + G) -> actions (N, A)."""
        self._observe(observations)
        everyone = torch.arange(len(observations))
        rows = self._due(self.n_action_steps).nonzero()[:, 0]
        if len(rows):
            states, goals = self._states(observations, rows), self._goals(observations, rows)
            self._keep(rows, self.choose(states, goals, generator=self._noise(rows)))
        actions = self.decode(
            self._states(observations, everyone),
            self._kept[0],
            self._age.to(self.device),
            generator=self._noise(everyone),
        )
        self._tick()
        return actions.float().cpu()
