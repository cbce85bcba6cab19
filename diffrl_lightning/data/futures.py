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
from diffrl_lightning.types import FutureBatch, InputError

_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it fill the unit interval evenly


class Futures(Transitions):
    """Single steps, each with a state from its future, as a :class:`FutureBatch`.

    The state is k steps later, k >= 1 geometric with success 1 - discount and cut off where the episode
    ends: with the probability that it lies there, ``1 - discount ** K``, is left to the model. Of an
    episode that was cut off by a time-out the last state is a future one too, if it was recorded; of
    one that really ended it is not, as no reward follows it.

    Every step has ``num_draws`` futures, one in each of as many equal parts of the distribution.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        discount: of a step, below 1.
        num_draws: futures of each step.
        context_size: M, steps of the same origin that come with each.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        discount: float = 0.99,
        num_draws: int = 16,
        context_size: int = 0,
    ) -> None:
        check_futures(discount, num_draws, context_size)
        which = np.arange(len(episodes)) if which is None else np.sort(which)  # by origin
        super().__init__(episodes, which, discount=discount)
        self.returns = torch.from_numpy(episodes.returns_to_go(discount, continue_timeouts=True))
        self.num_draws, self.log_discount = num_draws, math.log(discount)
        really = episodes.terminations[episodes.offsets[1:] - 1]
        # Row of the last step whose next observation is a future one.
        self.ended = torch.from_numpy(really).float()
        last = episodes.offsets[1:] - 1 - (really | ~episodes.final_observed)
        self.last = torch.from_numpy(last)
        self.phase = torch.rand(len(self.starts), generator=torch.Generator().manual_seed(0))
        of_origin = torch.from_numpy(episodes.origins)[
            self.starts(torch.arange(len(self.starts)))[1]
        ]
        self.origin_ends = of_origin.bincount().cumsum(0)
        self.places = torch.arange(context_size) * _GOLDEN

    def __len__(self) -> int:
        return self.num_draws * len(self.starts)

    def __getitem__(self, index: int | Tensor) -> FutureBatch:
        """Steps of these indices with a future each, (B, ...)."""
        index = torch.as_tensor(index)
        number = index // len(self.starts)
        index = index % len(self.starts)
        batch = super().__getitem__(index)
        rows, episode = self.starts(index)
        following = (self.last[episode] - rows + 1).float()
        part = (self.phase[index] + number / self.num_draws) % 1
        offsets = cut_geometric(part, following, self.log_discount)
        place = (self.phase[index][..., None] * (1 + number[..., None]) + self.places) % 1
        end = self.origin_ends[batch["origins"]][..., None]
        begin = torch.where(batch["origins"] > 0, self.origin_ends[batch["origins"] - 1], 0)[
            ..., None
        ]
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


def cut_geometric(part: Tensor, most: Tensor, log_discount: float) -> Tensor:
    """The k up to which lies this part (B,) of a geometric distribution, cut off at ``most`` (B,)."""
    reached = -torch.expm1(most * log_discount)  # the chance to lie inside
    return (torch.log1p(-part * reached) / log_discount).ceil().minimum(most).clamp(min=1)


def check_futures(discount: float, num_draws: int, context_size: int) -> None:
    """Refuse arguments of :class:`Futures`.

    Raises:
        InputError: if one is out of range.
    """
    if not 0 < discount < 1:
        raise InputError(f"{discount=} must lie in (0, 1): futures are drawn by it.")
    if num_draws < 1 or context_size < 0:
        raise InputError(f"{num_draws=} must be at least 1, {context_size=} at least 0.")


class FutureData(OfflineData):
    """Single transitions, each with a state from its discounted future, for diffused values.

    Args:
        dataset: what to train on: a Minari id, a D4RL file (.hdf5), an OGBench file (.npz), a PointMaze
            to generate (``pointmaze/umaze``), or a list of these, one for each policy.
        discount: the future is k steps away with probability (1 - discount) discount^(k - 1); the
            model's own.
        num_draws: futures of each transition, spread evenly over that distribution.
        context_size: steps of the same dataset of the list that come with each transition, for models
            that know a policy by what it does.
        env_id: Gymnasium id of the evaluation environment, where the dataset does not name it.
        env_kwargs: keywords of ``gymnasium.make``; a ``maze_map`` here is also the map of a PointMaze
            to generate.
        observation_keys: entries of a dictionary observation that make the state, in this order.
        goal_key: entry of a dictionary observation that is the goal; default ``desired_goal`` where
            there is one, "none" for no goal.
        ref_scores: random and expert return for the normalised score, where the dataset has none.
        batch_size: samples of a batch, on each device.
        val_fraction: share of the episodes held out for validation.
        train_fraction: share of the others to train on; less than 1 shows what becomes of a method
            where data are scarce.
        generate_steps: steps of a dataset that is generated; default as stored, or 100,000.
        join_episodes: join episodes that continue physically into the next up to this many steps
            (PointMaze); 0 leaves them apart.
        seed: of the split and of the batches.
        pin_memory: copy batches to page-locked memory, for CUDA.
    """

    makes = "futures"

    def __init__(
        self,
        dataset: str | list[str],
        discount: float = 0.99,
        num_draws: int = 16,
        context_size: int = 0,
        env_id: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        observation_keys: list[str] | None = None,
        goal_key: str | None = None,
        ref_scores: tuple[float, float] | None = None,
        batch_size: int = 256,
        val_fraction: float = 0.05,
        train_fraction: float = 1.0,
        generate_steps: int | None = None,
        join_episodes: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        check_futures(discount, num_draws, context_size)
        super().__init__(
            dataset,
            env_id=env_id,
            env_kwargs=env_kwargs,
            observation_keys=observation_keys,
            goal_key=goal_key,
            ref_scores=ref_scores,
            batch_size=batch_size,
            val_fraction=val_fraction,
            train_fraction=train_fraction,
            generate_steps=generate_steps,
            join_episodes=join_episodes,
            seed=seed,
            pin_memory=pin_memory,
        )
        self.discount, self.num_draws, self.context_size = discount, num_draws, context_size

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> Futures:
        """Transitions of these episodes with their futures."""
        return Futures(
            episodes,
            which,
            discount=self.discount,
            num_draws=self.num_draws,
            context_size=self.context_size,
        )
