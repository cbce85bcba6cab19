"""Chunks of episodes with what came after them, for latent skills and models of dynamics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes, RewardKind
from diffrl_lightning.data.futures import truncated_geometric
from diffrl_lightning.data.windows import Windows
from diffrl_lightning.inputs import between
from diffrl_lightning.types import ChunkBatch


class Chunks(Windows):
    """Chunks of H steps with the state behind them, as a :class:`ChunkBatch`.

    A chunk begins at every step; one that reaches its episode's end has fewer steps, with the last one
    repeated behind them. Steps whose next observation was not recorded are left out, unless the
    episode really ended there. The keywords are those of :class:`ChunkData` and of
    :class:`StepDataset`.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        horizon: int,
        discount: float = 0.99,
        num_goals: int = 0,
        **shared: Any,
    ) -> None:
        between(0, 1, discount=discount)
        episodes.check_ends()
        super().__init__(
            episodes,
            which,
            horizon=horizon,
            padding="edge",
            discount=discount,
            unobserved_ends=False,
            **shared,
        )
        self.log_discount, self.num_goals = math.log(discount), num_goals
        self.phase = torch.rand(self.num_starts, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return max(1, self.num_goals) * self.num_starts

    def __getitem__(self, index: int | Tensor) -> ChunkBatch:
        """Chunks of these indices, (B, ...)."""
        index = torch.as_tensor(index)
        number, chunk = index // self.num_starts, index % self.num_starts
        batch = super().__getitem__(chunk)
        start, episode = self.starts(chunk)
        count = batch["mask"].sum(-1)
        last = start + count - 1
        goal = last + 1
        if self.num_goals:
            quantiles = (self.phase[chunk] + number / self.num_goals) % 1
            following = (self.ends[episode] - start).float()
            goal = start + truncated_geometric(quantiles, following, self.log_discount).long()
        return ChunkBatch(
            **batch,
            next_observations=self.observations[last + episode + 1],
            terminations=self.terminations[last].float(),
            steps=count.float(),
            goal_observations=self.observations[goal + episode],
            chunks=chunk,
        )


class ChunkData(OfflineData):
    """Chunks of episodes with what came after them, for latent skills and models of dynamics.

    Args:
        horizon: H, steps of a chunk; the model takes its horizon from here.
        rewards: how rewards are preprocessed, as in :class:`TransitionData`.
        num_goals: goals in hindsight that a chunk comes with, one after the other: states k steps
            after its first one, k geometric with success 1 - discount and truncated where the episode
            ends, one in each of as many equal parts of that distribution. 0: its end, always.
        shared: keywords of :class:`OfflineData`.
    """

    batch_type = ChunkBatch
    dataset_type = Chunks

    def __init__(
        self,
        dataset: str | list[str],
        *,
        horizon: int = 10,
        rewards: RewardKind = "raw",
        num_goals: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(dataset, **shared)
        between(0, 1, discount=self.discount)
        self.rewards = rewards
        self.keep(horizon=horizon, num_goals=num_goals)
