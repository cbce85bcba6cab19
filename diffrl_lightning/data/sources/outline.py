"""Reads datasets straight into arrays that are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.checks import check_memory
from diffrl_lightning.types import InputError

Fill = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""Reads observations (N + E, O), actions (N, A) and rewards (N,) into float32 arrays."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """E episodes of N steps whose small arrays are known and whose large ones are still to be read.

    Args:
        observation_dim: O.
        action_dim: A.
        terminations: as in :class:`Episodes`, as are the next four.
        truncations: (N,).
        offsets: (E + 1,).
        final_observed: (E,).
        goals: (E, G), or None.
        fill: reads the large arrays.
    """

    observation_dim: int
    action_dim: int
    terminations: np.ndarray
    truncations: np.ndarray
    offsets: np.ndarray
    final_observed: np.ndarray
    goals: np.ndarray | None = None
    fill: Fill

    @classmethod
    def of(cls, load: Callable[[], Episodes]) -> Outline:
        """Of episodes that are mapped from files: loaded again where they are copied."""
        episodes = load()
        names = ("terminations", "truncations", "offsets", "final_observed", "goals")

        def fill(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
            again = load()
            observations[:], actions[:] = again.observations, again.actions
            rewards[:] = again.rewards

        return cls(
            observation_dim=episodes.observations.shape[1],
            action_dim=episodes.actions.shape[1],
            fill=fill,
            **{name: getattr(episodes, name) for name in names},
        )


def gather(outlines: Sequence[Outline]) -> Episodes:
    """All episodes of several datasets of equal dimensions, one dataset after the other.

    Raises:
        InputError: if the memory does not hold them, or what is read is no data to learn from.
    """
    steps = np.cumsum([0, *(len(part.terminations) for part in outlines)])
    counts = [len(part.final_observed) for part in outlines]
    rows = steps + np.cumsum([0, *counts])  # of observations
    shapes = {
        "observations": (rows[-1], outlines[0].observation_dim),
        "actions": (steps[-1], outlines[0].action_dim),
        "rewards": (steps[-1],),
    }
    check_memory("The data", sum(4 * int(np.prod(shape)) for shape in shapes.values()))
    try:
        arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    except MemoryError as error:
        raise InputError(f"The memory does not hold the data: {error}.") from error
    for k, part in enumerate(outlines):
        inside = slice(steps[k], steps[k + 1])
        part.fill(
            arrays["observations"][rows[k] : rows[k + 1]],
            arrays["actions"][inside],
            arrays["rewards"][inside],
        )
    offsets = [part.offsets[:-1] + shift for part, shift in zip(outlines, steps, strict=False)]
    goals = [part.goals for part in outlines if part.goals is not None]
    small = ("terminations", "truncations", "final_observed")
    return Episodes(
        offsets=np.concatenate([*offsets, steps[-1:]]),
        goals=np.concatenate(goals) if len(goals) == len(outlines) else None,
        origins=np.repeat(np.arange(len(outlines)), counts),
        **{name: np.concatenate([getattr(p, name) for p in outlines]) for name in small},
        **arrays,
    )
