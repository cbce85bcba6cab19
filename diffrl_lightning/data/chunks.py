"""Chunks of episodes with what came after them, for latent skills and models of dynamics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.futures import cut_geometric
from diffrl_lightning.data.transitions import RewardKind, reward_map
from diffrl_lightning.data.windows import Windows
from diffrl_lightning.types import ChunkBatch, InputError


class Chunks(Windows):
    """Chunks of H steps with the state behind them, as a :class:`ChunkBatch`.

    A chunk begins at every step; one that reaches its episode's end has fewer steps, with the last one
    repeated behind them. Steps whose next observation was not recorded are left out, unless the
    episode really ended there.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        horizon: H.
        reward_scale: rewards are multiplied by this ...
        reward_shift: ... and then this is added.
        discount: of the goals' distance.
        num_goals: goals in hindsight that a chunk comes with, one after the other: states of its own
            future, k >= 1 steps after its first one with probability (1 - discount) discount^(k - 1)
            and cut off where the episode ends, one in each of as many equal parts of that
            distribution. 0: its end, always.
        start_steps: chunks that begin within so many steps of an episode's start ...
        start_repeats: ... come so many times in an epoch.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        horizon: int,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        discount: float = 0.99,
        num_goals: int = 0,
        start_steps: int = 0,
        start_repeats: int = 1,
    ) -> None:
        if num_goals < 0 or not 0 < discount < 1:
            raise InputError(f"{num_goals=} must be at least 0, {discount=} lie in (0, 1).")
        super().__init__(
            episodes,
            which,
            horizon=horizon,
            padding="edge",
            discount=discount,
            start_steps=start_steps,
            start_repeats=start_repeats,
            unobserved_ends=False,
        )
        self.reward_scale, self.reward_shift = reward_scale, reward_shift
        self.log_discount, self.num_goals = math.log(discount), num_goals
        self.terminations = torch.from_numpy(episodes.terminations)
        self.phase = torch.rand(len(self.starts), generator=torch.Generator().manual_seed(0))

    @property
    def num_chunks(self) -> int:
        """N: an index counts chunks, and goes round them once for each goal."""
        return len(self.starts)

    def __len__(self) -> int:
        return max(1, self.num_goals) * self.num_chunks

    def __getitem__(self, index: int | Tensor) -> ChunkBatch:
        """Chunks of these indices, (B, ...)."""
        index = torch.as_tensor(index)
        number, chunk = index // self.num_chunks, index % self.num_chunks
        batch = super().__getitem__(chunk)
        start, episode = self.starts(chunk)
        count = batch["mask"].sum(-1)
        last = start + count - 1
        goal = last + 1
        if self.num_goals:
            part = (self.phase[chunk] + number / self.num_goals) % 1
            following = (self.ends[episode] - start).float()
            goal = start + cut_geometric(part, following, self.log_discount).long()
        rewards = batch["rewards"] * self.reward_scale + self.reward_shift * batch["mask"]
        return ChunkBatch(
            **batch | {"rewards": rewards},
            next_observations=self.observations[last + episode + 1],
            terminations=self.terminations[last].float(),
            steps=count.float(),
            goal_observations=self.observations[goal + episode],
            chunks=chunk,
        )


class ChunkData(OfflineData):
    """Chunks of episodes with what came after them, for latent skills and models of dynamics.

    Args:
        dataset: what to train on: a Minari id, a D4RL file (.hdf5), an OGBench file (.npz), a PointMaze
            to generate (``pointmaze/umaze``), or a list of these.
        horizon: H, steps of a skill; the model takes its horizon from here.
        rewards: how rewards are preprocessed: ``raw``, or as a paper has it, ``standard``,
            ``return_range``, ``minus_one`` or ``antmaze``.
        discount: a goal in hindsight is k steps away with probability (1 - discount) discount^(k - 1).
        num_goals: goals in hindsight of each chunk, states of its own future; 0 for none.
        start_steps: chunks that begin within so many steps of an episode's start come
            ``start_repeats`` times in an epoch: rollouts begin there, where data are scarce.
        start_repeats: how often they come.
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

    makes = "chunks"

    def __init__(
        self,
        dataset: str | list[str],
        horizon: int = 10,
        rewards: RewardKind = "raw",
        discount: float = 0.99,
        num_goals: int = 0,
        start_steps: int = 0,
        start_repeats: int = 1,
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
        self.horizon, self.rewards, self.discount = horizon, rewards, discount
        self.num_goals = num_goals
        self.start_steps, self.start_repeats = start_steps, start_repeats

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> Chunks:
        """Chunks of these episodes; their rewards follow the training episodes'."""
        scale, shift = reward_map(self.rewards, episodes, self.train_indices)
        return Chunks(
            episodes,
            which,
            horizon=self.horizon,
            reward_scale=scale,
            reward_shift=shift,
            discount=self.discount,
            num_goals=self.num_goals,
            start_steps=self.start_steps,
            start_repeats=self.start_repeats,
        )
