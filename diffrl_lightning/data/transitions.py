"""Single transitions, for policies, critics and synthesizers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sampler import Starts, check_starts, lengths_observed
from diffrl_lightning.types import InputError, TransitionBatch

RewardKind = Literal["raw", "standard", "return_range", "minus_one", "antmaze"]


class Transitions(Dataset):
    """Single steps with their next observations, as a :class:`TransitionBatch`.

    Steps whose next observation was not recorded are left out, as D4RL's ``qlearning_dataset``
    does, unless the episode ended there for good: then nothing depends on it. The data are shared,
    not copied.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        reward_scale: rewards are multiplied by this ...
        reward_shift: ... and then this is added.
        discount: of a step, in the return to go, which is of rewards as they were, and in ``n_steps``.
        n_steps: a transition leads so many steps ahead, or to its episode's end: its reward is the
            discounted sum of theirs.
        start_steps: transitions within so many steps of an episode's start ...
        start_repeats: ... come so many times in an epoch.

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
        start_steps: int = 0,
        start_repeats: int = 1,
    ) -> None:
        if n_steps < 1:
            raise InputError(f"{n_steps=} must be at least 1.")
        check_starts(start_steps, start_repeats)
        self.reward_scale, self.reward_shift = reward_scale, reward_shift
        usable = lengths_observed(episodes)
        self.ends = torch.from_numpy(episodes.offsets[:-1] + usable)
        self.ahead = torch.arange(n_steps)
        self.weights = discount**self.ahead
        self.starts = Starts(episodes, usable, which, start_steps, start_repeats)
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        self.rewards = torch.from_numpy(episodes.rewards)
        self.terminations = torch.from_numpy(episodes.terminations)
        self.returns = torch.from_numpy(episodes.returns_to_go(discount))
        self.origins = torch.from_numpy(episodes.origins)

    def __len__(self) -> int:
        return len(self.starts)

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

    def __getitems__(self, indices: list[int]) -> TransitionBatch:
        return self[torch.as_tensor(indices)]


def reward_map(kind: RewardKind, episodes: Episodes, which: np.ndarray) -> tuple[float, float]:
    """Scale and shift of the rewards, by name, from these of the episodes.

    ``raw`` leaves them; ``standard`` gives them zero mean and unit variance (Diffusion-QL on Adroit);
    ``return_range`` multiplies by 1000 / (highest - lowest return of an episode) (IQL on MuJoCo);
    ``minus_one`` subtracts 1 (IQL on AntMaze); ``antmaze`` is 4 (r - 0.5) (Diffusion-QL on AntMaze).

    Raises:
        InputError: if the name is unknown, or all rewards or returns are equal.
    """
    if kind == "standard":
        steps = np.repeat(np.isin(np.arange(len(episodes)), which), episodes.lengths)
        mean, spread = episodes.rewards[steps].mean(), episodes.rewards[steps].std()
        scale, shift = 1 / max(spread, 1e-12), -mean / max(spread, 1e-12)
    elif kind == "return_range":
        spread = np.ptp(episodes.returns[which])
        scale, shift = 1000 / max(spread, 1e-12), 0.0
    else:
        fixed = {"raw": (1.0, 0.0), "minus_one": (1.0, -1.0), "antmaze": (4.0, -2.0)}
        if kind not in fixed:
            names = ", ".join([*fixed, "standard", "return_range"])
            raise InputError(f"rewards={kind!r} is unknown: choose one of {names}.")
        return fixed[kind]
    if spread < 1e-8:
        raise InputError(f"rewards={kind!r} needs rewards that differ: use rewards=raw.")
    return float(scale), float(shift)


class TransitionData(OfflineData):
    """Single transitions, for policies, critics and synthesizers.

    Args:
        dataset: what to train on: a Minari id, a D4RL file (.hdf5), an OGBench file (.npz), a PointMaze
            to generate (``pointmaze/umaze``), or a list of these.
        rewards: ``raw``; ``standard``: zero mean and unit variance, as Diffusion-QL has them on Adroit;
            ``return_range``: times 1000 over the range of the episodes' returns, as IQL and IDQL have
            them on MuJoCo; ``minus_one``: less 1, as IQL has them on AntMaze; ``antmaze``: 4 (r - 0.5),
            as Diffusion-QL has them there.
        n_steps: steps in one transition, whose reward is their discounted sum: critics then learn of
            what comes faster, and from whole stretches of what was done.
        discount: of a step in that sum, the model's own; and in the return to go, for roles that are
            conditioned on it.
        start_steps: transitions within so many steps of an episode's start come ``start_repeats``
            times in an epoch: rollouts begin there, where data are scarce.
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

    makes = "transitions"

    def __init__(
        self,
        dataset: str | list[str],
        rewards: RewardKind = "raw",
        n_steps: int = 1,
        discount: float = 0.99,
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
        if n_steps < 1:
            raise InputError(f"{n_steps=} must be at least 1.")
        self.rewards, self.n_steps, self.discount = rewards, n_steps, discount
        self.start_steps, self.start_repeats = start_steps, start_repeats

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> Transitions:
        """Transitions of these episodes; their rewards follow the training episodes'."""
        scale, shift = reward_map(self.rewards, episodes, self.train_indices)
        return Transitions(
            episodes,
            which,
            reward_scale=scale,
            reward_shift=shift,
            discount=self.discount,
            n_steps=self.n_steps,
            start_steps=self.start_steps,
            start_repeats=self.start_repeats,
        )
