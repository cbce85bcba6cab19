"""States from the discounted future of each step, for diffused values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.transitions import Transitions
from diffrl_lightning.inputs import between
from diffrl_lightning.types import FutureBatch

_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it fill the unit interval evenly


class Futures(Transitions):
    """Steps, each with a state from its future, as a :class:`FutureBatch`.

    The state is k steps later, k >= 1 geometric with success 1 - discount and truncated at K, where the
    episode ends: what lies beyond, with probability ``discount ** K``, is left to the model. Of an
    episode that was cut off by a time-out the last state is a future one too, if it was recorded;
    of one that really ended it is not, as no reward follows it. The keywords are those of
    :class:`FutureData` and of :class:`StepDataset`.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        discount: float = 0.99,
        num_draws: int = 16,
        context_size: int = 0,
        **shared: Any,
    ) -> None:
        between(0, 1, discount=discount)
        episodes.check_ends()
        which = np.arange(len(episodes)) if which is None else np.sort(which)  # by origin
        super().__init__(episodes, which, discount=discount, **shared)
        self.returns = torch.from_numpy(episodes.returns_to_go(discount, continue_timeouts=True))
        self.num_draws, self.log_discount = num_draws, math.log(discount)
        ended = episodes.terminations[episodes.offsets[1:] - 1]
        self.ended = torch.from_numpy(ended).float()
        # Row of the last step whose next observation is a future one.
        last = episodes.offsets[1:] - 1 - (ended | ~episodes.final_observed)
        self.last = torch.from_numpy(last)
        self.phase = torch.rand(self.num_starts, generator=torch.Generator().manual_seed(0))
        once = int(episodes.lengths_observed[which].sum())  # starts that are repeated come behind
        _, episode = self.starts(torch.arange(once))
        counts = self.origins[episode].bincount()
        self.origin_ends = counts.cumsum(0)
        self.origin_begins = self.origin_ends - counts
        self.places = torch.arange(context_size) * _GOLDEN

    def __len__(self) -> int:
        return self.num_draws * self.num_starts

    def __getitem__(self, index: int | Tensor) -> FutureBatch:
        """Steps of these indices with a future each, (B, ...)."""
        index = torch.as_tensor(index)
        number = index // self.num_starts
        index = index % self.num_starts
        batch = super().__getitem__(index)
        rows, episode = self.starts(index)
        following = (self.last[episode] - rows + 1).float()
        quantiles = (self.phase[index] + number / self.num_draws) % 1
        offsets = truncated_geometric(quantiles, following, self.log_discount)
        place = (self.phase[index][..., None] * (1 + number[..., None]) + self.places) % 1
        begin = self.origin_begins[batch["origins"]][..., None]
        end = self.origin_ends[batch["origins"]][..., None]
        context, context_episode = self.starts(begin + (place * (end - begin)).long())
        return FutureBatch(
            **batch,
            future_observations=self.observations[rows + episode + offsets.long()],
            offsets=offsets,
            following=following,
            ended=self.ended[episode],
            context_observations=self.observations[context + context_episode],
            context_actions=self.actions[context],
        )


def truncated_geometric(quantiles: Tensor, most: Tensor, log_discount: float) -> Tensor:
    """Inverse CDF of the geometric distribution with success 1 - discount, truncated at ``most`` (B,).

    Returns:
        Offsets k of these quantiles (B,), 1 <= k <= most.
    """
    inside = -torch.expm1(most * log_discount)  # probability that k <= most, without truncation
    return (torch.log1p(-quantiles * inside) / log_discount).ceil().minimum(most).clamp(min=1)


class FutureData(OfflineData):
    """Single transitions, each with a state from its discounted future, for diffused values.

    Of a list of datasets each is taken as that of one policy.

    Args:
        num_draws: futures of each transition: k steps away with probability
            (1 - discount) discount^(k - 1), one in each of as many equal parts of that distribution.
        context_size: M, steps of the same dataset of the list that come with each transition, for
            models that know a policy by what it does.
        shared: keywords of :class:`OfflineData`.
    """

    batch_type = FutureBatch
    dataset_type = Futures

    def __init__(
        self,
        dataset: str | list[str],
        *,
        num_draws: int = 16,
        context_size: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(dataset, **shared)
        between(0, 1, discount=self.discount)
        self.keep(num_draws=num_draws, context_size=context_size)
