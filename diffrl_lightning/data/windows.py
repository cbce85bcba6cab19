"""Windows of trajectories, for planners and chunked policies."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sampler import StepDataset
from diffrl_lightning.inputs import one_of, within
from diffrl_lightning.types import InputError, SequenceBatch

Padding = Literal["none", "edge", "zero"]


class Windows(StepDataset):
    """Windows of episodes, as a :class:`SequenceBatch`.

    The keywords are those of :class:`SequenceData` and of :class:`StepDataset`, and
    ``unobserved_ends``: whether last steps count whose next observation was not recorded, where the
    episode did not really end.

    Raises:
        InputError: if no episode is long enough.
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
        pad_before: int = 0,
        pad_after: int | None = None,
        unobserved_ends: bool = True,
        **shared: Any,
    ) -> None:
        lengths = episodes.lengths if unobserved_ends else episodes.lengths_observed
        usable = num_windows(
            lengths, horizon, stride, padding, pad_before=pad_before, pad_after=pad_after
        )
        returns = episodes.returns_to_go(discount, termination_penalty, continue_timeouts)
        super().__init__(episodes, which, usable=usable, lengths=lengths, returns=returns, **shared)
        self.steps = torch.arange(horizon) * stride
        self.padding, self.pad_before = padding, pad_before
        if not self.num_starts:
            longest = episodes.lengths[slice(None) if which is None else which].max()
            raise InputError(
                f"{horizon=} at {stride=} spans {int(self.steps[-1]) + 1} steps, but the longest "
                f"episode has {longest}: shorten the horizon or choose padding edge or zero."
            )

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


def num_windows(
    lengths: np.ndarray,
    horizon: int,
    stride: int,
    padding: Padding,
    *,
    pad_before: int = 0,
    pad_after: int | None = None,
) -> np.ndarray:
    """How many windows episodes of these lengths (E,) have.

    Raises:
        InputError: if an argument is unknown, out of range, or does not go with the others.
    """
    one_of(get_args(Padding), padding=padding)
    span = (horizon - 1) * stride
    within(0, span, pad_before=pad_before)
    if padding == "none" and (pad_before or pad_after):
        raise InputError(f"{pad_before=} and {pad_after=} need padding edge or zero.")
    beyond = 0 if padding == "none" else span if pad_after is None else min(pad_after, span)
    return np.maximum(lengths + pad_before + beyond - span, 0)


class SequenceData(OfflineData):
    """Windows of trajectories, for planners and chunked policies.

    Args:
        horizon: H, steps of a window; the model takes its horizon from here.
        stride: environment steps from one step of a window to the next, for the model too.
        padding: windows beyond an episode's end: left out (``none``), or padded with its last step
            (``edge``) or with zeros in environment units (``zero``).
        termination_penalty: added to the last reward of episodes that really ended, in the return to
            go alone; negative to keep plans from falls.
        continue_timeouts: in the return to go, episodes that were cut off by a time-out go on for ever
            at the mean reward of their last 1 / (1 - discount) steps, so that a state is worth the
            same at any time: else its worth falls to nothing towards the time-out.
        pad_before: windows begin up to so many steps before an episode's start, with its first step
            there; a policy with a history of ``n_obs_steps`` wants one less.
        pad_after: with padding, windows end up to so many steps beyond an episode's end; default all.
        train_on: indices of the datasets of the list that windows are of, default all; statistics are
            of the whole list, so that models of its parts can be held against each other.
        shared: keywords of :class:`OfflineData`.
    """

    batch_type = SequenceBatch
    dataset_type = Windows

    def __init__(
        self,
        dataset: str | list[str],
        *,
        horizon: int = 32,
        stride: int = 1,
        padding: Padding = "none",
        termination_penalty: float = 0.0,
        continue_timeouts: bool = False,
        pad_before: int = 0,
        pad_after: int | None = None,
        train_on: list[int] | None = None,
        batch_size: int = 64,
        **shared: Any,
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, **shared)
        self.span: dict[str, Any] = {
            "horizon": horizon,
            "stride": stride,
            "padding": padding,
            "pad_before": pad_before,
            "pad_after": pad_after,
        }
        num_windows(np.ones(1, np.int64), **self.span)  # refuses what does not fit
        self.keep(
            **self.span,
            termination_penalty=termination_penalty,
            continue_timeouts=continue_timeouts,
        )
        if not set(train_on or ()) <= set(range(self.num_origins)):
            raise InputError(
                f"{train_on=} must name datasets of the list, 0 to {self.num_origins - 1}."
            )
        self.train_on = train_on

    def usable(self, episodes: Episodes) -> np.ndarray:
        """Those that have a window: without padding, only episodes as long as one."""
        return num_windows(episodes.lengths, **self.span) > 0

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> StepDataset:
        """Windows of these episodes, or of those of them that are of the datasets to train on."""
        if self.train_on is not None:
            which = which[np.isin(episodes.origins[which], self.train_on)]
            if not len(which):
                raise InputError(
                    f"train_on={self.train_on} leaves no episode to train or to validate on: name "
                    "datasets of the list, or raise val_fraction."
                )
        return super().make_dataset(episodes, which)
