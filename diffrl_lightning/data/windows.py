"""Windows of trajectories, for planners and chunked policies."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sampler import Starts, check_starts, lengths_observed
from diffrl_lightning.types import InputError, SequenceBatch

Padding = Literal["none", "edge", "zero"]


class Windows(Dataset):
    """Windows of ``horizon`` steps, ``stride`` steps apart, as a :class:`SequenceBatch`.

    An index may be an integer or a tensor of indices; ``__getitems__`` makes a batch of a list. The
    data are shared, not copied.

    Args:
        episodes: the data.
        which: indices of the episodes to draw from; default all.
        horizon: H, steps of a window.
        stride: environment steps from one step of the window to the next.
        padding: what windows beyond an episode's end hold there: ``none`` leaves such windows out,
            ``edge`` repeats the last step, ``zero`` puts zeros in environment units.
        discount: of the return to go.
        termination_penalty: added to the last reward of episodes that really ended, in the return to
            go alone.
        continue_timeouts: in the return to go, episodes that were cut off go on as they ended.
        start_steps: windows that begin within so many steps of an episode's start ...
        start_repeats: ... come so many times in an epoch.
        pad_before: windows begin up to so many steps before an episode, with its first step there.
        pad_after: with padding, windows end up to so many steps beyond an episode's end; default all.
        unobserved_ends: whether steps count whose next observation was not recorded, where the episode
            did not really end.

    Raises:
        InputError: if no episode is long enough, or an argument is out of range.
    """

    def __init__(
        self,
        episodes: Episodes,
        which: np.ndarray | None = None,
        *,
        horizon: int,
        stride: int = 1,
        padding: Padding = "none",
        discount: float = 0.99,
        termination_penalty: float = 0.0,
        continue_timeouts: bool = False,
        start_steps: int = 0,
        start_repeats: int = 1,
        pad_before: int = 0,
        pad_after: int | None = None,
        unobserved_ends: bool = True,
    ) -> None:
        check_starts(start_steps, start_repeats)
        self.steps = torch.arange(horizon) * stride
        self.padding, self.pad_before = padding, pad_before
        lengths = episodes.lengths if unobserved_ends else lengths_observed(episodes)
        self.ends = torch.from_numpy(episodes.offsets[:-1] + lengths)
        usable = num_windows(
            lengths, horizon, stride, padding, pad_before=pad_before, pad_after=pad_after
        )
        self.starts = Starts(episodes, usable, which, start_steps, start_repeats)
        if not len(self.starts):
            longest = episodes.lengths[slice(None) if which is None else which].max()
            raise InputError(
                f"{horizon=} at {stride=} spans {int(self.steps[-1]) + 1} steps, but the longest "
                f"episode has {longest}: shorten the horizon or choose padding edge or zero."
            )
        self.offsets = torch.from_numpy(episodes.offsets)
        self.observations = torch.from_numpy(episodes.observations)
        self.actions = torch.from_numpy(episodes.actions)
        self.rewards = torch.from_numpy(episodes.rewards)
        self.returns = torch.from_numpy(
            episodes.returns_to_go(discount, termination_penalty, continue_timeouts)
        )
        self.origins = torch.from_numpy(episodes.origins)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | Tensor) -> SequenceBatch:
        """Windows of these indices, (B, H, ...); without B for a single index."""
        start, episode = self.starts(index)
        first, last = self.offsets[episode], self.ends[episode] - 1
        rows = (start - self.pad_before)[..., None] + self.steps
        mask = (first[..., None] <= rows) & (rows <= last[..., None])
        rows = rows.clamp(first[..., None], last[..., None])
        batch = SequenceBatch(
            observations=self.observations[rows + episode[..., None]],
            actions=self.actions[rows],
            rewards=self.rewards[rows] * mask,
            returns=self.returns[rows[..., 0]],
            origins=self.origins[episode],
            mask=mask,
        )
        if self.padding == "zero":
            batch["observations"] *= mask[..., None]
            batch["actions"] *= mask[..., None]
        return batch

    def __getitems__(self, indices: list[int]) -> SequenceBatch:
        return self[torch.as_tensor(indices)]


def num_windows(
    lengths: np.ndarray,
    horizon: int,
    stride: int,
    padding: Padding,
    *,
    pad_before: int = 0,
    pad_after: int | None = None,
) -> np.ndarray:
    """How many windows episodes of these lengths (E,) have; the arguments are those of Windows.

    Raises:
        InputError: if an argument is unknown, out of range, or does not go with the others.
    """
    if padding not in ("none", "edge", "zero"):
        raise InputError(f"{padding=} is unknown: choose none, edge or zero.")
    if horizon < 1 or stride < 1:
        raise InputError(f"{horizon=} and {stride=} must be at least 1.")
    span = (horizon - 1) * stride
    if not 0 <= pad_before <= span or (pad_after or 0) < 0:
        raise InputError(
            f"{pad_before=} must lie between 0 and {span}, the span of a window, and {pad_after=} "
            "must be at least 0."
        )
    if padding == "none" and (pad_before or pad_after):
        raise InputError(f"{pad_before=} and {pad_after=} need padding edge or zero.")
    beyond = 0 if padding == "none" else span if pad_after is None else min(pad_after, span)
    return np.maximum(lengths + pad_before + beyond - span, 0)


class SequenceData(OfflineData):
    """Windows of trajectories, for planners and chunked policies.

    Args:
        dataset: what to train on: a Minari id, a D4RL file (.hdf5), an OGBench file (.npz), a PointMaze
            to generate (``pointmaze/umaze``), or a list of these.
        horizon: H, steps of a window; the model takes its horizon from here.
        stride: environment steps from one step of a window to the next, for the model too.
        padding: windows beyond an episode's end: left out, or padded with its last step or zeros.
        discount: of the return to go.
        termination_penalty: added to the last reward of episodes that really ended, in the return to
            go alone; negative to keep plans from falls.
        continue_timeouts: in the return to go, episodes that were cut off by a time-out go on for ever
            at the mean reward of their last 1 / (1 - discount) steps, so that a state is worth the
            same at any time: else its worth falls to nothing towards the time-out.
        start_steps: windows that begin within so many steps of an episode's start come
            ``start_repeats`` times in an epoch: rollouts begin there, where data are scarce.
        start_repeats: how often they come.
        pad_before: windows begin up to so many steps before an episode's start, with its first step
            there; a policy with a history of ``n_obs_steps`` wants one less.
        pad_after: with padding, windows end up to so many steps beyond an episode's end; default all.
        train_on: indices of the datasets of the list that windows are of, default all; statistics are
            of the whole list, so that models of its parts can be held against each other.
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

    makes = "windows"

    def __init__(
        self,
        dataset: str | list[str],
        horizon: int = 32,
        stride: int = 1,
        padding: Padding = "none",
        discount: float = 0.99,
        termination_penalty: float = 0.0,
        continue_timeouts: bool = False,
        start_steps: int = 0,
        start_repeats: int = 1,
        pad_before: int = 0,
        pad_after: int | None = None,
        train_on: list[int] | None = None,
        env_id: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        observation_keys: list[str] | None = None,
        goal_key: str | None = None,
        ref_scores: tuple[float, float] | None = None,
        batch_size: int = 64,
        val_fraction: float = 0.05,
        train_fraction: float = 1.0,
        generate_steps: int | None = None,
        join_episodes: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        count = partial(
            num_windows,
            horizon=horizon,
            stride=stride,
            padding=padding,
            pad_before=pad_before,
            pad_after=pad_after,
        )
        count(np.ones(1, np.int64))  # refuses what does not fit, before anything is read
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
        self.horizon, self.stride = horizon, stride
        self.padding, self.discount = padding, discount
        self.termination_penalty = termination_penalty
        self.continue_timeouts = continue_timeouts
        self.start_steps, self.start_repeats = start_steps, start_repeats
        self.pad_before, self.pad_after, self.num_windows = pad_before, pad_after, count
        if train_on is not None and not set(train_on) <= set(range(self.num_origins)):
            raise InputError(
                f"{train_on=} must name datasets of the list, 0 to {self.num_origins - 1}."
            )
        self.train_on = train_on

    def usable(self, episodes: Episodes) -> np.ndarray:
        """Those that have a window: without padding, only episodes as long as one."""
        return self.num_windows(episodes.lengths) > 0

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> Windows:
        """Windows of these episodes, or of those of them that are of the datasets to train on."""
        if self.train_on is not None:
            which = which[np.isin(episodes.origins[which], self.train_on)]
            if not len(which):
                raise InputError(
                    f"train_on={self.train_on} leaves no episode to train or to validate on: name "
                    "datasets of the list, or raise val_fraction."
                )
        return Windows(
            episodes,
            which,
            horizon=self.horizon,
            stride=self.stride,
            padding=self.padding,
            discount=self.discount,
            termination_penalty=self.termination_penalty,
            continue_timeouts=self.continue_timeouts,
            start_steps=self.start_steps,
            start_repeats=self.start_repeats,
            pad_before=self.pad_before,
            pad_after=self.pad_after,
        )
