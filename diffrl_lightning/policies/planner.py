"""Acting on plans: open loop or receding horizon, by planned actions or by tracking states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from diffrl_lightning.types import Generators, InputError

Execute = Literal["actions", "states"]


class Plan(NamedTuple):
    """Plans for N environments, in environment units."""

    observations: Tensor  # (N, H, O)
    actions: Tensor  # (N, H, A)
    candidates: Tensor | None = None  # (N, K, H, O) states of all plans that these were chosen from
    values: Tensor | None = None  # (N, K) values that they were chosen by


class PlanFn(Protocol):
    """Makes plans; what a planner's module lends to its policy."""

    def __call__(
        self,
        observations: Tensor,
        goals: Tensor | None,
        *,
        generator: Generators,
        elapsed: Tensor,
        previous: Plan | None,
    ) -> Plan:
        """Plans from states (N, O) to goals (N, G).

        With ``n_obs_steps`` C > 1 the last C states (N, C, O), the oldest first, a stride apart; before
        an episode's first step they repeat its first state. ``elapsed`` (N,) counts the plan's steps
        since an episode's first plan; ``previous`` plans are moved on to now.
        """


class PlannerPolicy:
    """Executes plans in N environments, each at its own place in its own plan.

    With ``stride`` s and replanning every k steps::

        environment step   0   1   2  ..  s  s+1 ..  k-1 | k
        plan's step        0   0   0  ..  1   1  ..      | a new plan's 0

    Args:
        plan: makes the plans.
        observation_dim: O, length of the state; what follows it in an observation is the goal.
        stride: environment steps from one step of a plan to the next.
        execute: ``actions`` plays the planned actions; ``states`` follows the planned positions with
            the force ``kp (x* - x) + kd (v* - v)``, where the state is (positions, velocities) and the
            action a force on each position; after the plan's end it holds the last position.
        replan_every: environment steps from one plan to the next; None plans once (open loop).
        warm_start: begin a new plan from the last one, moved on in time.
        lookahead: environment steps that the law aims ahead on the plan; it makes up for its lag.
        kp: gain of the position's error.
        kd: gain of the velocity's error.
        n_obs_steps: states, the last ones, that a plan is made from.
        device: where the plans are made.
        dtype: of the states that they are made from.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        plan: PlanFn,
        *,
        observation_dim: int,
        stride: int = 1,
        execute: Execute = "actions",
        replan_every: int | None = None,
        warm_start: bool = False,
        lookahead: int = 1,
        kp: float = 10.0,
        kd: float = 1.0,
        n_obs_steps: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if execute not in ("actions", "states"):
            raise InputError(f"{execute=} is unknown: choose actions or states.")
        if replan_every is not None and replan_every < 1:
            raise InputError(f"{replan_every=} must be at least 1, or null for open loop.")
        if warm_start and replan_every is None:
            raise InputError("warm_start needs replan_every: an open-loop plan has none before it.")
        if n_obs_steps < 1:
            raise InputError(f"{n_obs_steps=} must be at least 1.")
        self.plan, self.observation_dim, self.stride = plan, observation_dim, stride
        self.execute, self.replan_every, self.warm_start = execute, replan_every, warm_start
        self.lookahead, self.kp, self.kd = lookahead, kp, kd
        self.n_obs_steps = n_obs_steps
        self.device, self.dtype = torch.device(device), dtype
        self.new_plans: list[tuple[Tensor, Plan]] = []  # rows (M,) and their plans, just made
        self._plan: Plan | None = None
        self._history = torch.zeros(0, 0, 0)  # (N, (C - 1) * stride + 1, O)
        self._age = torch.zeros(0, dtype=torch.long)  # environment steps since the plan was made
        self._clock = torch.zeros(0, dtype=torch.long)  # environment steps since the first plan
        self._generators: list[torch.Generator] = []

    def reset(self, mask: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Drop the plans where an episode begins, and reseed their noise."""
        if len(self._age) != len(mask):
            self._plan = None
            self._history = torch.zeros(0, 0, 0)
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

    def act(self, observations: Tensor) -> Tensor:
        """Observations (N, O + G) -> actions (N, A)."""
        if len(self._age) != len(observations):
            self.reset(torch.ones(len(observations), dtype=torch.bool))
        self._remember(observations[:, : self.observation_dim])
        due = self._age < 0
        if self.replan_every is not None:
            due |= self._age >= self.replan_every
        # Those with a plan to start from apart from those without: so an episode does not depend on
        # what its neighbours do.
        warm = due & (self._age >= 0) & torch.tensor(self.warm_start)
        groups = [mask.nonzero()[:, 0] for mask in (due & ~warm, warm) if mask.any()]
        self.new_plans = [(rows, self._replan(observations, rows)) for rows in groups]
        assert self._plan is not None
        action = self._track(observations) if self.execute == "states" else self._played()
        self._age += 1
        self._clock += 1
        return action

    def _remember(self, states: Tensor) -> None:
        """Take in states (N, O); where an episode begins, all of its past is the first one."""
        if self.n_obs_steps == 1:
            return
        if not len(self._history):
            length = (self.n_obs_steps - 1) * self.stride + 1
            self._history = states[:, None].repeat(1, length, 1)
        self._history = torch.cat([self._history[:, 1:], states[:, None]], 1)
        begins = self._clock == 0
        self._history[begins] = states[begins, None]

    def _replan(self, observations: Tensor, rows: Tensor) -> Plan:
        """Plan for some environments."""
        goals = observations[rows, self.observation_dim :].to(self.device, self.dtype)
        states = observations[rows, : self.observation_dim]
        if self.n_obs_steps > 1:
            states = self._history[rows, :: self.stride]
        elapsed = torch.div(self._clock[rows], self.stride, rounding_mode="floor")
        made = self.plan(
            states.to(self.device, self.dtype),
            goals if goals.shape[1] else None,
            generator=[self._generators[i] for i in rows.tolist()],
            elapsed=elapsed.to(self.device),
            previous=self._previous(rows),
        )
        plan = made._replace(
            observations=made.observations.float().cpu(), actions=made.actions.float().cpu()
        )
        if self._plan is None:
            n = len(observations)
            parts = (plan.observations, plan.actions)
            self._plan = Plan(*(part.new_zeros(n, *part.shape[1:]) for part in parts))
        self._plan.observations[rows] = plan.observations
        self._plan.actions[rows] = plan.actions
        self._age[rows] = 0
        return plan

    def _previous(self, rows: Tensor) -> Plan | None:
        """The last plans of these rows moved on to now; None where they have none."""
        if not self.warm_start or self._plan is None or bool((self._age[rows] < 0).any()):
            return None
        horizon = self._plan.observations.shape[1]
        shift = torch.div(self._age[rows], self.stride, rounding_mode="floor")
        steps = (torch.arange(horizon) + shift[:, None]).clamp_max(horizon - 1)
        parts = (self._plan.observations, self._plan.actions)
        moved = (part[rows[:, None], steps].to(self.device, self.dtype) for part in parts)
        return Plan(*moved)

    def _played(self) -> Tensor:
        assert self._plan is not None
        actions = self._plan.actions
        step = torch.div(self._age, self.stride, rounding_mode="floor")
        return actions[torch.arange(len(actions)), step.clamp_max(actions.shape[1] - 1)]

    def _track(self, observations: Tensor) -> Tensor:
        """PD law towards the planned state ``lookahead`` environment steps ahead."""
        assert self._plan is not None
        states = self._plan.observations
        rows, last = torch.arange(len(states)), states.shape[1] - 1
        position = (self._age + self.lookahead) / self.stride
        low = position.long().clamp_max(last)
        high = (low + 1).clamp_max(last)
        weight = (position - low).clamp(0, 1)[:, None]
        target = torch.lerp(states[rows, low], states[rows, high], weight)
        half = self.observation_dim // 2
        velocity = torch.where((position > last)[:, None], 0.0, target[:, half : 2 * half])
        state = observations.cpu()
        error = target[:, :half] - state[:, :half]
        return self.kp * error + self.kd * (velocity - state[:, half : 2 * half])
