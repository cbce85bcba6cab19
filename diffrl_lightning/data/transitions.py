"""Single transitions, for policies, critics and synthesizers."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sampler import StepDataset
from diffrl_lightning.types import InputError, TransitionBatch, at_least, one_of

RewardKind = Literal["raw", "minus_one", "antmaze", "standard", "return_range"]


class Transitions(StepDataset):
    """Steps with their next observations, as a :class:`TransitionBatch`.

    Steps whose next observation was not recorded are left out, as D4RL's ``qlearning_dataset``
    does, unless the episode ended there for good: then nothing depends on it. The keywords that
    are not explained here are those of :class:`TransitionData`.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        reward_scale: rewards are multiplied by this ...
        reward_shift: ... and then this is added; returns to go are of rewards as they were.
        repeats: ``start_steps`` and ``start_repeats``.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        discount: float = 0.99,
        n_steps: int = 1,
        **repeats: Any,
    ) -> None:
        at_least(1, n_steps=n_steps)
        usable, returns = episodes.lengths_observed, episodes.returns_to_go(discount)
        super().__init__(episodes, which, usable=usable, lengths=usable, returns=returns, **repeats)
        self.reward_scale, self.reward_shift = reward_scale, reward_shift
        self.ahead = torch.arange(n_steps)
        self.weights = discount**self.ahead

    def __getitem__(self, index: int | Tensor) -> TransitionBatch:
        """Transitions of these indices, (B, ...)."""
        rows, episode = self.starts(index)
        ahead = rows[..., None] + self.ahead
        inside = ahead < self.ends[episode][..., None]
        steps = inside.sum(-1)
        last = rows + steps - 1
        rewards = self.rewards[torch.where(inside, ahead, last[..., None])]
        rewards = rewards * self.reward_scale + self.reward_shift
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


class TransitionData(OfflineData):
    """Single transitions, for policies, critics and synthesizers.

    Args:
        rewards: ``raw``; ``standard``: zero mean and unit variance, as Diffusion-QL has them on Adroit;
            ``return_range``: times 1000 over the range of the episodes' returns, as IQL and IDQL have
            them on MuJoCo; ``minus_one``: less 1, as IQL has them on AntMaze; ``antmaze``: 4 (r - 0.5),
            as Diffusion-QL has them there.
        n_steps: steps in one transition, or up to its episode's end: its reward is their discounted
            sum, so that critics learn of what comes faster, and from whole stretches of what was done.
        discount: of a step in that sum, the model's own; and in the return to go, for roles that are
            conditioned on it.
        start_steps: transitions within so many steps of an episode's start come ``start_repeats``
            times in an epoch: rollouts begin there, where data are scarce.
        start_repeats: how often they come.
        shared: keywords of :class:`OfflineData`.
    """

    batch_type = TransitionBatch

    def __init__(
        self,
        dataset: str | list[str],
        *,
        rewards: RewardKind = "raw",
        n_steps: int = 1,
        discount: float = 0.99,
        start_steps: int = 0,
        start_repeats: int = 1,
        batch_size: int = 256,
        **shared: Any,
    ) -> None:
        at_least(1, n_steps=n_steps)
        super().__init__(dataset, batch_size=batch_size, **shared)
        self.rewards, self.n_steps, self.discount = rewards, n_steps, discount
        self.make_transitions = partial(
            Transitions,
            n_steps=n_steps,
            discount=discount,
            start_steps=start_steps,
            start_repeats=start_repeats,
        )

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> Transitions:
        """Transitions of these episodes; their rewards follow the training episodes'."""
        scale, shift = reward_map(self.rewards, episodes, self.train_indices)
        return self.make_transitions(episodes, which, reward_scale=scale, reward_shift=shift)
