"""Acting on plans: open loop or receding horizon, by planned actions or by tracking states."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from diffrl_lightning.inputs import at_least, one_of
from diffrl_lightning.policies.base import BatchPolicy
from diffrl_lightning.types import Generators, InputError

Execute = Literal["actions", "states"]


class Plan(NamedTuple):
    """Plans for N environments, in environment units."""

    observations: Tensor  # (N, H, O)
    actions: Tensor  # (N, H, A)
    candidates: Tensor | None = None  # (N, K, H, O) states of all plans that these were chosen from
    values: Tensor | None = None  # (N, K) values that they were chosen by


class PlanFn(Protocol):
    """Makes plans: a role's ``plan`` with its way to act bound."""

    def __call__(
        self,
        observations: Tensor,
        goals: Tensor | None,
        *,
        generator: Generators,
        elapsed: Tensor,
        previous: Plan | None,
    ) -> Plan:
        """Plans from states (N, O) to goals (N, G), in environment units.

        Args:
            observations: states (N, O); with ``n_obs_steps`` C > 1 the last C of them (N, C, O), the
                oldest first, a stride apart; an episode's first state stands for those before it.
            goals: (N, G), None where the environment has none.
            generator: source of noise, one for each state.
            elapsed: steps of a plan (N,) since an episode's first plan.
            previous: the last plans, shifted to begin now; None without a warm start.
        """


class PlannerPolicy(BatchPolicy):
    """Executes plans in N environments, each at its own place in its own plan.

    With ``stride`` s and replanning every k steps::

        environment step   0   1   2  ..  s  s+1 ..  k-1 | k
        plan's step        0   0   0  ..  1   1  ..      | a new plan's 0

    Args:
        plan: makes the plans.
        execute: ``actions`` plays the planned actions; ``states`` follows the planned positions with
            the force ``kp (x* - x) + kd (v* - v)``, where the state is (positions, velocities) and the
            action a force on each position; beyond the plan's end the last position is held.
        replan_every: environment steps from one plan to the next; None plans once (open loop).
        warm_start: begin a new plan from the last one, shifted to begin now.
        lookahead: environment steps that the law aims ahead on the plan, against its lag.
        kp: gain of the position's error.
        kd: gain of the velocity's error.
        options: keywords of :class:`BatchPolicy`; ``stride`` is that of plans too.
    """

    def __init__(
        self,
        plan: PlanFn,
        *,
        execute: Execute = "actions",
        replan_every: int | None = None,
        warm_start: bool = False,
        lookahead: int = 1,
        kp: float = 10.0,
        kd: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        one_of(get_args(Execute), execute=execute)
        at_least(1, replan_every=replan_every)
        if warm_start and replan_every is None:
            raise InputError("warm_start needs replan_every: an open-loop plan has none before it.")
        self.plan = plan
        self.execute, self.replan_every, self.warm_start = execute, replan_every, warm_start
        self.lookahead, self.kp, self.kd = lookahead, kp, kd
        self.new_plans: list[tuple[Tensor, Plan]] = []  # rows (M,) and their plans, just made

    def act(self, observations: Tensor) -> Tensor:
        """Observations (N, O + G) -> actions (N, A)."""
        self._observe(observations)
        due = self._due(self.replan_every)
        # Warm starts are batched apart from cold ones, so that an episode does not depend on what its
        # neighbours do.
        warm = due & (self._age >= 0) & torch.tensor(self.warm_start)
        groups = [mask.nonzero()[:, 0] for mask in (due & ~warm, warm) if mask.any()]
        self.new_plans = [(rows, self._replan(observations, rows)) for rows in groups]
        action = self._track(observations) if self.execute == "states" else self._planned_actions()
        self._tick()
        return action

    def _replan(self, observations: Tensor, rows: Tensor) -> Plan:
        """Plan for some environments."""
        plan = self.plan(
            self._states(observations, rows),
            self._goals(observations, rows),
            generator=self._noise(rows),
            elapsed=(self._clock[rows] // self.stride).to(self.device),
            previous=self._previous(rows),
        )
        states, actions = plan.observations.float().cpu(), plan.actions.float().cpu()
        self._keep(rows, states, actions)
        return plan._replace(observations=states, actions=actions)

    def _previous(self, rows: Tensor) -> Plan | None:
        """The last plans of these rows, shifted to begin now; None where they have none."""
        if not self.warm_start or bool((self._age[rows] < 0).any()):
            return None
        horizon = self._kept[0].shape[1]
        shift = self._age[rows] // self.stride
        steps = (torch.arange(horizon) + shift[:, None]).clamp_max(horizon - 1)
        parts = (part[rows[:, None], steps] for part in self._kept)
        return Plan(*(part.to(self.device, self.dtype) for part in parts))

    def _planned_actions(self) -> Tensor:
        """The actions (N, A) of each plan's current step."""
        _, actions = self._kept
        step = (self._age // self.stride).clamp_max(actions.shape[1] - 1)
        return actions[torch.arange(len(actions)), step]

    def _track(self, observations: Tensor) -> Tensor:
        """PD law towards the planned state ``lookahead`` environment steps ahead."""
        states, _ = self._kept
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
