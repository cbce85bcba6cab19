"""Windows and transitions of episodes, indexed a whole batch at a time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.types import InputError, SequenceBatch, TransitionBatch

Padding = Literal["none", "edge", "zero"]


class _Starts:
    """The i-th usable step of some episodes, found by bisection: no array with an entry a step."""

    def __init__(
        self,
        episodes: Episodes,
        usable: np.ndarray,
        which: np.ndarray | None,
        first: int = 0,
        repeats: int = 1,
    ) -> None:
        """Every episode once, and the ``first`` steps of each ``repeats - 1`` times more."""
        which = np.arange(len(episodes)) if which is None else np.asarray(which)
        counts = [usable[which], *[np.minimum(usable[which], first)] * (repeats - 1)]
        ends, which = np.cumsum(np.concatenate(counts)), np.tile(which, repeats)
        self.ends = torch.from_numpy(ends)
        self.shift = torch.from_numpy(episodes.offsets[which] - ends + np.concatenate(counts))
        self.which = torch.from_numpy(which)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __call__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the steps, and their episodes."""
        index = torch.as_tensor(index)
        entry = torch.searchsorted(self.ends, index, right=True)
        return index + self.shift[entry], self.which[entry]


class Windows(Dataset):
    """Windows of ``horizon`` steps, ``stride`` steps apart, as a :class:`SequenceBatch`.

    An index may be an integer or a tensor of indices; ``__getitems__`` makes a batch of a list. The
    data are shared, not copied.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        horizon: H, steps of a window.
        stride: environment steps from one step of the window to the next.
        padding: what windows beyond an episode's end hold there: ``none`` leaves such windows out,
            ``edge`` repeats the last step, ``zero`` puts zeros in environment units.
        discount: of the return to go.
        termination_penalty: added to the last reward of episodes that really ended, in the return to
            go alone.
        start_steps: windows that begin within so many steps of an episode's start ...
        start_repeats: ... come so many times in an epoch.

    Raises:
        InputError: if no episode is long enough.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        horizon: int,
        stride: int = 1,
        padding: Padding = "none",
        discount: float = 0.99,
        termination_penalty: float = 0.0,
        start_steps: int = 0,
        start_repeats: int = 1,
    ) -> None:
        if start_steps < 0 or start_repeats < 1:
            raise InputError(f"{start_steps=} must be at least 0, {start_repeats=} at least 1.")
        if padding not in ("none", "edge", "zero"):
            raise InputError(f"{padding=} is unknown: choose none, edge or zero.")
        if horizon < 1 or stride < 1:
            raise InputError(f"{horizon=} and {stride=} must be at least 1.")
        self.steps = torch.arange(horizon) * stride
        self.padding = padding
        span = int(self.steps[-1]) if padding == "none" else 0
        usable = np.maximum(episodes.lengths - span, 0)
        self.starts = _Starts(episodes, usable, which, start_steps, start_repeats)
        if not len(self.starts):
            longest = episodes.lengths[slice(None) if which is None else which].max()
            raise InputError(
                f"{horizon=} at {stride=} spans {span + 1} steps, but the longest episode has "
                f"{longest}: shorten the horizon or choose padding edge or zero."
            )
        self.ends = torch.from_numpy(episodes.offsets[1:])
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        self.rewards = torch.from_numpy(episodes.rewards)
        self.returns = torch.from_numpy(episodes.returns_to_go(discount, termination_penalty))
        self.origins = torch.from_numpy(episodes.origins)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | Tensor) -> SequenceBatch:
        """Windows of these indices, (B, H, ...); without B for a single index."""
        start, episode = self.starts(index)
        rows = start[..., None] + self.steps
        last = self.ends[episode][..., None] - 1
        mask = rows <= last
        rows = torch.minimum(rows, last)
        batch = SequenceBatch(
            observations=self.observations[rows + episode[..., None]],
            actions=self.actions[rows],
            rewards=self.rewards[rows] * mask,
            returns=self.returns[start],
            origins=self.origins[episode],
            mask=mask,
        )
        if self.padding == "zero":
            batch["observations"] *= mask[..., None]
            batch["actions"] *= mask[..., None]
        return batch

    def __getitems__(self, indices: list[int]) -> SequenceBatch:
        return self[torch.as_tensor(indices)]


class Transitions(Dataset):
    """Single steps with their next observations, as a :class:`TransitionBatch`.

    Steps whose next observation was not recorded are left out, as D4RL's ``qlearning_dataset``
    does, unless the episode ended there for good: then nothing depends on it. The data are shared,
    not copied.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
    """

    def __init__(self, episodes: Episodes, which: np.ndarray | None = None) -> None:
        ended = episodes.terminations[episodes.offsets[1:] - 1]
        usable = episodes.lengths - ~(episodes.final_observed | ended)
        self.starts = _Starts(episodes, usable, which)
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        self.rewards = torch.from_numpy(episodes.rewards)
        self.terminations = torch.from_numpy(episodes.terminations)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | Tensor) -> TransitionBatch:
        """Transitions of these indices, (B, ...)."""
        rows, episode = self.starts(index)
        return TransitionBatch(
            observations=self.observations[rows + episode],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            next_observations=self.observations[rows + episode + 1],
            terminations=self.terminations[rows].float(),
        )

    def __getitems__(self, indices: list[int]) -> TransitionBatch:
        return self[torch.as_tensor(indices)]
