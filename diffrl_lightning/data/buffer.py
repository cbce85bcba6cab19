"""The steps that come while an agent learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffrl_lightning.inputs import at_least
from diffrl_lightning.types import ChunkBatch, InputError, TransitionBatch


class ReplayBuffer:
    """The last steps of N environments that step together, as transitions or in chunks.

    Args:
        capacity: steps that it holds, of all environments together; when it is full, the oldest go.
        observation_dim: O.
        action_dim: A.
        num_envs: N.
    """

    def __init__(
        self, capacity: int, observation_dim: int, action_dim: int, num_envs: int = 1
    ) -> None:
        at_least(num_envs, capacity=capacity)
        self.rows, self.num_envs, self.added = capacity // num_envs, num_envs, 0
        shapes = {
            "observations": (observation_dim,),
            "actions": (action_dim,),
            "rewards": (),
            "next_observations": (observation_dim,),
            "terminations": (),
        }
        size = (self.rows, num_envs)
        self.arrays = {name: torch.zeros(*size, *shape) for name, shape in shapes.items()}
        self.arrays["episodes"] = torch.zeros(size, dtype=torch.long)

    def __len__(self) -> int:
        """Steps that it holds."""
        return self._held * self.num_envs

    @property
    def _held(self) -> int:
        """Steps of each environment that it holds."""
        return min(self.added, self.rows)

    def add(self, steps: Mapping[str, Tensor]) -> None:
        """Take in one or more steps of each environment, (n N, ...), the first of each first.

        Args:
            steps: all but ``returns`` of their :class:`TransitionBatch`, and ``episodes``, the number
                of the episode that each is of, where chunks are to be made.

        Raises:
            InputError: if a value is not finite; then none is taken in.
        """
        steps = {name: rows for name, rows in steps.items() if name in self.arrays}
        bad = [name for name, rows in steps.items() if not bool(rows.isfinite().all())]
        if bad:
            raise InputError(f"The {', '.join(bad)} of new steps hold NaN or infinite values.")
        n = len(steps["rewards"]) // self.num_envs
        places = (self.added + torch.arange(n))[-self.rows :] % self.rows
        for name, rows in steps.items():
            array = self.arrays[name]
            array[places] = rows.reshape(n, *array.shape[1:])[-self.rows :].to(array)
        self.added += n

    def values(self, name: str) -> Tensor:
        """All values of a kind that it holds (M, D)."""
        return self.arrays[name][: self._held].reshape(len(self), -1)

    def transitions(self, index: Tensor) -> TransitionBatch:
        """Transitions of these places (B,), in no order of time; returns to go are unknown and 0."""
        rows, env = index // self.num_envs, index % self.num_envs
        steps = {n: array[rows, env] for n, array in self.arrays.items() if n != "episodes"}
        zero = torch.zeros_like(steps["rewards"])
        return TransitionBatch(**steps, steps=zero + 1, returns=zero, origins=zero.long())  # type: ignore[typeddict-item]

    def chunks(self, index: Tensor, horizon: int) -> ChunkBatch:
        """Chunks that begin at these steps (B,), counted from the oldest, environment by environment.

        One that reaches its episode's end, or the last step that there is, has fewer steps, with the
        last one repeated behind them.
        """
        held, arrays = self._held, self.arrays
        env, first = index[:, None] // held, index[:, None] % held
        ahead = first + torch.arange(horizon)
        rows = (self.added - held + ahead.clamp(max=held - 1)) % self.rows
        same = arrays["episodes"][rows, env] == arrays["episodes"][rows[:, :1], env]
        mask = same & (ahead < held)
        steps = mask.sum(1)
        rows = rows.gather(1, torch.arange(horizon).minimum(steps[:, None] - 1))
        last = rows[:, -1], env[:, 0]
        zero = torch.zeros_like(steps, dtype=torch.float32)
        return ChunkBatch(
            observations=arrays["observations"][rows, env],
            actions=arrays["actions"][rows, env],
            rewards=arrays["rewards"][rows, env] * mask,
            returns=zero,
            origins=zero.long(),
            mask=mask,
            next_observations=arrays["next_observations"][last],
            terminations=arrays["terminations"][last],
            steps=steps.float(),
            goal_observations=arrays["next_observations"][last],
            chunks=index,
        )

    def clear(self) -> None:
        """Forget all."""
        self.added = 0

    def state_dict(self) -> dict[str, Any]:
        """What is held, for a checkpoint."""
        # Copies: of a part of a tensor, all of its memory would be written.
        held = {name: array[: self._held].clone() for name, array in self.arrays.items()}
        return {"added": self.added, "rows": self.rows} | held

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another buffer of the same size held."""
        theirs, ours = (state["rows"], state["rewards"].shape[1]), (self.rows, self.num_envs)
        if theirs != ours:
            raise InputError(
                f"The checkpoint's buffer held {theirs[0]} steps of {theirs[1]} environments, this one "
                f"holds {ours[0]} of {ours[1]}: give the same capacity and num_envs."
            )
        self.added = state["added"]
        for name, array in self.arrays.items():
            array[: self._held] = state[name]
