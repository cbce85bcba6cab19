"""Which items make batch k, a function of the seed and of k alone, and where items begin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.inputs import RangeChecked


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


class FixedBatchSampler(BatchSampler, SequentialSampler):  # type: ignore[misc]
    """The same batches in every epoch, as ``overfit_batches`` wants them.

    Lightning would put a ``SequentialSampler`` in place of any other, and lose whole batches.
    """


class PassSampler(BatchSampler):
    """One pass over the data, each time in another order, for loops without a trainer.

    The last batch of a pass is what is left.
    """

    passes = 0  # that have begun

    def __len__(self) -> int:
        """Batches of a pass."""
        return -(-self.num_items // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        order = self._permutation(self.passes).long()
        self.passes += 1
        yield from order.split(self.batch_size)


class BatchStream(IterableDataset):
    """Yields the batches of an epoch that are made when they are drawn.

    Args:
        batch: makes batch k.
        count: batches of an epoch.
        position: returns the number of batches that were drawn so far.
    """

    def __init__(
        self, batch: Callable[[int], Any], count: int, position: Callable[[], int]
    ) -> None:
        self.batch, self.count, self.position = batch, count, position

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        first = self.position()
        for k in range(first, first + self.count):
            yield self.batch(k)


class ResumableLoader(DataLoader):
    """A loader that Lightning knows it can resume: its batches follow the loop's own count."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the loop's count is in every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take."""


def batches_drawn(trainer: Any, batches_per_epoch: int = 0) -> Callable[[], int]:
    """Counts the batches that a trainer's fit has drawn in all its epochs.

    Without a trainer, the epochs that were asked about, of so many batches.
    """
    if trainer is None:
        firsts = itertools.count(0, batches_per_epoch)
        return lambda: next(firsts)
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return lambda: progress.total.ready


class StepDataset(RangeChecked, Dataset):
    """Items that begin at steps of episodes, indexed a whole batch at a time.

    An index may be an integer or a tensor of indices (B,); ``__getitems__`` makes a batch of a list.
    The states and actions are shared, not copied.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        usable: how many of the first steps of each episode (E,) an item may begin at.
        lengths: how many steps of each episode (E,) items are made of.
        returns: return to go from each step (N,).
        start_steps: items that begin within so many steps of an episode's start ...
        start_repeats: ... come so many times.
        reward_map: rewards are multiplied by the first, then the second is added; returns to go are
            of rewards as they were.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None,
        *,
        usable: np.ndarray,
        lengths: np.ndarray,
        returns: np.ndarray,
        start_steps: int = 0,
        start_repeats: int = 1,
        reward_map: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        which = np.arange(len(episodes)) if which is None else np.asarray(which)
        repeated = [np.minimum(usable[which], start_steps)] * (start_repeats - 1)
        counts, which = np.concatenate([usable[which], *repeated]), np.tile(which, start_repeats)
        ends = np.cumsum(counts)
        self._ends = torch.from_numpy(ends)  # index behind the last item of each
        self._shift = torch.from_numpy(episodes.offsets[which] - ends + counts)
        self._which = torch.from_numpy(which)
        self.offsets = torch.from_numpy(episodes.offsets)
        self.ends = torch.from_numpy(episodes.offsets[:-1] + lengths)  # row behind the last step
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        scale, shift = reward_map
        self.rewards = torch.from_numpy(episodes.rewards)
        if reward_map != (1.0, 0.0):  # else it is shared too
            self.rewards = self.rewards * scale + shift
        self.terminations = torch.from_numpy(episodes.terminations)
        self.returns = torch.from_numpy(returns)
        self.origins = torch.from_numpy(episodes.origins)

    @property
    def num_starts(self) -> int:
        """How many steps items begin at."""
        return int(self._ends[-1])

    def starts(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the steps that these items begin at, and their episodes."""
        index = torch.as_tensor(index)
        # By bisection: there is no array with an entry a step.
        entry = torch.searchsorted(self._ends, index, right=True)
        return index + self._shift[entry], self._which[entry]

    def __len__(self) -> int:
        return self.num_starts

    def __getitems__(self, indices: list[int]) -> Any:
        return self[torch.as_tensor(indices)]
