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


class Windows(Dataset):
    """Windows of ``horizon`` steps, ``stride`` steps apart, as a :class:`SequenceBatch`.

    An index may be an integer or a tensor of indices; ``__getitems__`` makes a batch of a list.

    Args:
        episodes: the data.
        horizon: H, steps of a window.
        stride: environment steps from one step of the window to the next.
        padding: what windows beyond an episode's end hold there: ``none`` leaves such windows out,
            ``edge`` repeats the last step, ``zero`` puts zeros in environment units.
        discount: of the return to go.

    Raises:
        InputError: if no episode is long enough.
    """

    def __init__(
        self,
        episodes: Episodes,
        *,
        horizon: int,
        stride: int = 1,
        padding: Padding = "none",
        discount: float = 0.99,
    ) -> None:
        if padding not in ("none", "edge", "zero"):
            raise InputError(f"{padding=} is unknown: choose none, edge or zero.")
        if horizon < 1 or stride < 1:
            raise InputError(f"{horizon=} and {stride=} must be at least 1.")
        self.steps = torch.arange(horizon) * stride
        self.padding = padding
        span = int(self.steps[-1]) if padding == "none" else 0
        usable = np.maximum(episodes.lengths - span, 0)
        if not usable.any():
            raise InputError(
                f"{horizon=} at {stride=} spans {span + 1} steps, but the longest episode has "
                f"{episodes.lengths.max()}: shorten the horizon or choose padding edge or zero."
            )
        episode = np.repeat(np.arange(len(episodes)), usable)
        within = np.arange(len(episode)) - np.repeat(np.cumsum(usable) - usable, usable)
        self.starts = torch.from_numpy(episodes.offsets[episode] + within)
        self.episode = torch.from_numpy(episode.astype(np.int32))
        self.ends = torch.from_numpy(episodes.offsets[1:])
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        self.rewards = torch.from_numpy(episodes.rewards)
        self.returns = torch.from_numpy(episodes.returns_to_go(discount))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | Tensor) -> SequenceBatch:
        """Windows of these indices, (B, H, ...); without B for a single index."""
        index = torch.as_tensor(index)
        start, episode = self.starts[index], self.episode[index].long()
        rows = start[..., None] + self.steps
        last = self.ends[episode][..., None] - 1
        mask = rows <= last
        rows = torch.minimum(rows, last)
        batch = SequenceBatch(
            observations=self.observations[rows + episode[..., None]],
            actions=self.actions[rows],
            rewards=self.rewards[rows] * mask,
            returns=self.returns[start],
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
    does, unless the episode ended there for good: then nothing depends on it.

    Args:
        episodes: the data.
    """

    def __init__(self, episodes: Episodes) -> None:
        keep = np.ones(episodes.num_steps, bool)
        last = episodes.offsets[1:] - 1
        keep[last] = episodes.final_observed | episodes.terminations[last]
        self.rows = torch.from_numpy(np.flatnonzero(keep))
        self.episode = torch.from_numpy(episodes.episode_of_step.astype(np.int32))
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        self.rewards = torch.from_numpy(episodes.rewards)
        self.terminations = torch.from_numpy(episodes.terminations)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Tensor) -> TransitionBatch:
        """Transitions of these indices, (B, ...)."""
        rows = self.rows[torch.as_tensor(index)]
        observed = rows + self.episode[rows]
        return TransitionBatch(
            observations=self.observations[observed],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            next_observations=self.observations[observed + 1],
            terminations=self.terminations[rows].float(),
        )

    def __getitems__(self, indices: list[int]) -> TransitionBatch:
        return self[torch.as_tensor(indices)]
