"""Single transitions, for policies, critics and synthesizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes, RewardKind
from diffrl_lightning.data.sampler import StepDataset
from diffrl_lightning.types import InputError, TransitionBatch


class Transitions(StepDataset):
    """Steps with their next observations, as a :class:`TransitionBatch`.

    Steps whose next observation was not recorded are left out, as D4RL's ``qlearning_dataset``
    does, unless the episode ended there for good: then nothing depends on it. The keywords are
    those of :class:`TransitionData` and of :class:`StepDataset`.

    Raises:
        InputError: if no step is left.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        discount: float = 0.99,
        n_steps: int = 1,
        **shared: Any,
    ) -> None:
        usable, returns = episodes.lengths_observed, episodes.returns_to_go(discount)
        super().__init__(episodes, which, usable=usable, lengths=usable, returns=returns, **shared)
        if not self.num_starts:
            raise InputError(
                "No episode has a step with a next observation: give the file next_observations, or "
                "episodes of more than one row."
            )
        self.ahead = torch.arange(n_steps)
        self.weights = discount**self.ahead
        self.terminate_within = episodes.terminate_within

    def __getitem__(self, index: int | Tensor) -> TransitionBatch:
        """Transitions of these indices, (B, ...)."""
        rows, episode = self.starts(index)
        ahead = rows[..., None] + self.ahead
        inside = ahead < self.ends[episode][..., None]
        if self.terminate_within:
            done = self.terminations[ahead.minimum(self.ends[episode][..., None] - 1)].long()
            inside &= done.cumsum(-1) == done  # up to the first one
        steps = inside.sum(-1)
        last = rows + steps - 1
        rewards = self.rewards[torch.where(inside, ahead, last[..., None])]
        return TransitionBatch(
            observations=self.observations[rows + episode],
            actions=self.actions[rows],
            rewards=(rewards * inside * self.weights).sum(-1),
            next_observations=self.observations[last + episode + 1],
            terminations=self.terminations[last].float(),
            steps=steps.float(),
            returns=self.returns[rows],
            origins=self.origins[episode],
        )


class TransitionData(OfflineData):
    """Single transitions, for policies, critics and synthesizers.

    Args:
        rewards: ``raw``; ``standard``: zero mean and unit variance, as Diffusion-QL has them on Adroit;
            ``return_range``: times 1000 over the range of the episodes' returns, as IQL and IDQL have
            them on MuJoCo; ``minus_one``: less 1, as IQL has them on AntMaze; ``antmaze``: 4 (r - 0.5),
            as Diffusion-QL has them there.
        n_steps: steps in one transition, or up to its episode's end: its reward is their discounted
            sum, so that critics learn of what comes faster, and from whole stretches of what was done.
        shared: keywords of :class:`OfflineData`.
    """

    batch_type = TransitionBatch
    dataset_type = Transitions

    def __init__(
        self,
        dataset: str | list[str],
        *,
        rewards: RewardKind = "raw",
        n_steps: int = 1,
        **shared: Any,
    ) -> None:
        super().__init__(dataset, **shared)
        self.rewards = rewards
        self.keep(n_steps=n_steps)
