"""Which rows make batch k: a function of the seed and of k alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.types import InputError


class BatchSampler(DistributedSampler):
    """Yields index tensors (B,), each this process's share of a batch of ``B * num_replicas``.

    All batches together run through one endless sequence of permutations, the p-th drawn from
    (seed, p), so that batch k can be had without the batches before it: a run that is resumed in
    mid-epoch sees just the batches it would have seen. It is a ``DistributedSampler`` so that Lightning
    sees that it shards by itself.

    Args:
        num_items: length of the dataset.
        batch_size: B, of each process.
        seed: of the permutations.
        num_replicas: number of processes.
        rank: of this process.
        position: returns the number of batches that were drawn so far.
    """

    def __init__(
        self,
        num_items: int,
        *,
        batch_size: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(range(num_items), num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.num_items, self.batch_size, self.position = num_items, batch_size, position
        self._permutations: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Batches of one pass over the data, at least one."""
        return max(1, self.num_items // (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        first = self.position()
        for k in range(first, first + len(self)):
            yield self.batch(k)

    def batch(self, k: int) -> Tensor:
        """Indices (B,) of batch ``k``."""
        start = (k * self.num_replicas + self.rank) * self.batch_size
        parts = []
        missing = self.batch_size
        while missing:
            number, offset = divmod(start, self.num_items)
            parts.append(self._permutation(number)[offset : offset + missing])
            start += len(parts[-1])
            missing -= len(parts[-1])
        return torch.cat(parts).long()

    def _permutation(self, number: int) -> Tensor:
        if number not in self._permutations:
            rng = np.random.default_rng([self.seed, number])
            permutation = torch.from_numpy(
                rng.permutation(np.arange(self.num_items, dtype=np.int32))
            )
            self._permutations = {k: v for k, v in self._permutations.items() if k >= number - 1}
            self._permutations[number] = permutation
        return self._permutations[number]


class ResumableLoader(DataLoader):
    """A loader that Lightning knows it can resume: its batches follow the loop's own count."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the loop's count is in every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take."""


class Starts:
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


def lengths_observed(episodes: Episodes) -> np.ndarray:
    """Steps (E,) whose next observation was recorded, or after which the episode really ended."""
    ended = episodes.terminations[episodes.offsets[1:] - 1]
    return episodes.lengths - ~(episodes.final_observed | ended)


def check_starts(start_steps: int, start_repeats: int) -> None:
    """Refuse arguments of :class:`Starts`."""
    if start_steps < 0 or start_repeats < 1:
        raise InputError(f"{start_steps=} must be at least 0, {start_repeats=} at least 1.")
