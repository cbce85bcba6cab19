"""Episodes in memory: flat arrays and offsets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from diffrl_lightning.inputs import one_of
from diffrl_lightning.types import InputError

RewardKind = Literal["raw", "minus_one", "antmaze", "standard", "return_range"]


@dataclass(frozen=True)
class Episodes:
    """E episodes of N steps in all, as flat float32 arrays.

    Episode e has ``offsets[e + 1] - offsets[e]`` steps and one observation more than steps, so that
    every step has its next observation: row ``i`` of episode e's observations is row
    ``offsets[e] + e + i`` of ``observations``. Where the source did not record an episode's last
    observation, that row repeats the one before and ``final_observed[e]`` is False.

    Args:
        observations: (N + E, O).
        actions: (N, A).
        rewards: (N,).
        terminations: (N,) bool, True where an episode really ended, and within one where nothing that
            follows counts, as at a task that is done.
        truncations: (N,) bool, True where it was cut short.
        offsets: (E + 1,) int64.
        final_observed: (E,) bool.
        goals: (E, G) the goal that each episode pursued, or None.
        origins: (E,) int64, which dataset of a list each episode is from; default all from the first.

    Raises:
        InputError: if lengths disagree or a value is NaN or infinite.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    offsets: np.ndarray
    final_observed: np.ndarray
    goals: np.ndarray | None = None
    origins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        n, e = self.num_steps, len(self)
        if not len(self.origins):
            object.__setattr__(self, "origins", np.zeros(e, np.int64))
        if n == 0:
            raise InputError("The dataset holds no steps.")
        steps = dict.fromkeys(("actions", "rewards", "terminations", "truncations"), n)
        for name, rows in {**steps, "observations": n + e, "final_observed": e}.items():
            if len(getattr(self, name)) != rows:
                raise InputError(
                    f"The dataset's arrays differ in length: {e} episodes of {n} steps need {rows} "
                    f"{name}, not {len(getattr(self, name))}; write it again with one row a step."
                )
        for name in ("observations", "actions", "rewards"):
            # A sum is NaN or infinite as soon as one entry is, and needs no second array.
            array = getattr(self, name)
            if not np.isfinite(np.sum(array, dtype=np.float64)):
                rows = ~np.isfinite(array.reshape(len(array), -1)).all(1)
                raise InputError(
                    f"The dataset's {name} hold NaN or infinite values in {rows.sum()} rows, the "
                    f"first is row {rows.argmax()}: remove those episodes."
                )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        """N."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode (E,)."""
        return np.diff(self.offsets)

    @property
    def lengths_observed(self) -> np.ndarray:
        """Steps (E,) whose next observation was recorded, or after which the episode really ended."""
        ended = self.terminations[self.offsets[1:] - 1]
        return self.lengths - ~(self.final_observed | ended)

    @property
    def terminate_within(self) -> bool:
        """Whether a step terminates that is not its episode's last."""
        return bool(self.terminations.sum() > self.terminations[self.offsets[1:] - 1].sum())

    def check_ends(self) -> None:
        """For items that can not stop in mid-episode.

        Raises:
            InputError: if a step terminates that is not its episode's last.
        """
        if self.terminate_within:
            raise InputError(
                "Masks of the dataset are 0 in mid-episode, which chunks and futures do not stop at: "
                "use TransitionData, or remove the masks."
            )

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode (E,)."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.offsets[:-1])

    def returns_to_go(
        self, discount: float, termination_penalty: float = 0.0, continue_timeouts: bool = False
    ) -> np.ndarray:
        """Discounted sum of rewards from each step to its episode's end (N,) float32.

        The last result is kept: training and validation share it.

        Args:
            discount: of a step.
            termination_penalty: added to the last reward of an episode that really ended.
            continue_timeouts: episodes that were cut off go on for ever at the mean reward of their
                last 1 / (1 - discount) steps.

        Raises:
            InputError: if they are to go on for ever at a discount of 1.
        """
        asked = (discount, termination_penalty, continue_timeouts)
        kept = vars(self).get("_returns_to_go")
        if kept is None or kept[0] != asked:
            kept = asked, self._discounted(*asked)
            object.__setattr__(self, "_returns_to_go", kept)
        return kept[1]

    def _discounted(
        self, discount: float, termination_penalty: float, continue_timeouts: bool
    ) -> np.ndarray:
        result = np.zeros(self.num_steps)
        order = np.argsort(-self.lengths, kind="stable")
        lengths, ends = self.lengths[order], self.offsets[1:][order]
        running = np.zeros(len(self))
        if continue_timeouts:
            running = self._value_beyond(discount)[order]
        # All episodes at once, from their ends; the longest come first, so that those still
        # running are a prefix.
        for back in range(1, int(lengths[0]) + 1):
            alive = np.searchsorted(-lengths, -back, side="right")
            rows = ends[:alive] - back
            rewards = self.rewards[rows] + termination_penalty * self.terminations[rows]
            running[:alive] = rewards + np.where(
                self.terminations[rows], 0.0, discount * running[:alive]
            )
            result[rows] = running[:alive]
        return result.astype(np.float32)

    def _value_beyond(self, discount: float) -> np.ndarray:
        """Discounted sum of the rewards after the last step (E,), 0 for episodes that really ended."""
        if discount >= 1:
            raise InputError(
                f"{discount=} must be below 1 to continue episodes beyond their time-out."
            )
        last = np.minimum(self.lengths, round(1 / (1 - discount)))
        sums = np.concatenate([[0.0], np.cumsum(self.rewards, dtype=np.float64)])
        ends = self.offsets[1:]
        mean = (sums[ends] - sums[ends - last]) / last
        return np.where(self.terminations[ends - 1], 0.0, mean / (1 - discount))

    def joined(self, max_steps: int) -> Episodes:
        """Join episodes that were cut where the next begins in the same state.

        PointMaze's episodes end at their goals while the agent moves on; a plan may well lead
        through a goal. Joined episodes have no goal of their own.

        Args:
            max_steps: a joined episode takes no further one once it is this long.
        """
        firsts = self.offsets[:-1] + np.arange(len(self))
        lasts = self.offsets[1:] + np.arange(len(self))
        same = (self.observations[lasts[:-1]] == self.observations[firsts[1:]]).all(1)
        same &= self.origins[:-1] == self.origins[1:]
        open_ended = ~self.terminations[self.offsets[1:-1] - 1] & self.final_observed[:-1]
        starts = [0]
        for episode in np.arange(1, len(self)):
            length = self.offsets[episode] - self.offsets[starts[-1]]
            if not (same[episode - 1] and open_ended[episode - 1]) or length >= max_steps:
                starts.append(int(episode))
        ends = np.array([*starts[1:], len(self)])
        keep = np.ones(len(self.observations), bool)
        keep[np.delete(lasts, ends - 1)] = False
        offsets = self.offsets[[*starts, len(self)]]
        truncations = np.zeros_like(self.truncations)
        truncations[offsets[1:] - 1] = self.truncations[offsets[1:] - 1]
        return replace(
            self,
            observations=self.observations[keep],
            truncations=truncations,
            offsets=offsets,
            final_observed=self.final_observed[ends - 1],
            goals=None,
            origins=self.origins[starts],
        )


def reward_map(kind: str, episodes: Episodes, which: np.ndarray) -> tuple[float, float]:
    """Scale and shift of rewards as a paper has them, from these of the episodes.

    Raises:
        InputError: if the name is unknown, or all rewards or returns are equal.
    """
    one_of(get_args(RewardKind), rewards=kind)
    if kind == "standard":
        steps = np.repeat(np.isin(np.arange(len(episodes)), which), episodes.lengths)
        mean, spread = episodes.rewards[steps].mean(), episodes.rewards[steps].std()
        scale, shift = 1 / max(spread, 1e-12), -mean / max(spread, 1e-12)
    elif kind == "return_range":
        spread = np.ptp(episodes.returns[which])
        scale, shift = 1000 / max(spread, 1e-12), 0.0
    else:
        return {"raw": (1.0, 0.0), "minus_one": (1.0, -1.0), "antmaze": (4.0, -2.0)}[kind]
    if spread < 1e-8:
        raise InputError(f"rewards={kind!r} needs rewards that differ: use rewards=raw.")
    return float(scale), float(shift)
