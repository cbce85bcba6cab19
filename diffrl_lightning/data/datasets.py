"""Windows and transitions of episodes, indexed a whole batch at a time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.types import InputError, SequenceBatch, TransitionBatch

Padding = Literal["none", "edge", "zero"]
RewardKind = Literal["raw", "standard", "return_range", "minus_one", "antmaze"]


class _Starts:
    """The i-th usable step of some episodes, found by bisection: no array with an entry a step."""

    def __init__(
        self,
        episodes: Episodes,
        usable: np.ndarray,
        which: np.ndarray | None,
        first: int = 0,
        repeats: int = 1,
    ) -> None:
        """Every episode once, and the ``first`` steps of each ``repeats - 1`` times more."""
        which = np.arange(len(episodes)) if which is None else np.asarray(which)
        counts = [usable[which], *[np.minimum(usable[which], first)] * (repeats - 1)]
        ends, which = np.cumsum(np.concatenate(counts)), np.tile(which, repeats)
        self.ends = torch.from_numpy(ends)
        self.shift = torch.from_numpy(episodes.offsets[which] - ends + np.concatenate(counts))
        self.which = torch.from_numpy(which)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __call__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the steps, and their episodes."""
        index = torch.as_tensor(index)
        entry = torch.searchsorted(self.ends, index, right=True)
        return index + self.shift[entry], self.which[entry]


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
        _check_starts(start_steps, start_repeats)
        self.steps = torch.arange(horizon) * stride
        self.padding, self.pad_before = padding, pad_before
        lengths = episodes.lengths if unobserved_ends else _lengths_observed(episodes)
        self.ends = torch.from_numpy(episodes.offsets[:-1] + lengths)
        usable = num_windows(
            lengths, horizon, stride, padding, pad_before=pad_before, pad_after=pad_after
        )
        self.starts = _Starts(episodes, usable, which, start_steps, start_repeats)
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
        _check_starts(start_steps, start_repeats)
        self.reward_scale, self.reward_shift = reward_scale, reward_shift
        usable = _lengths_observed(episodes)
        self.ends = torch.from_numpy(episodes.offsets[:-1] + usable)
        self.ahead = torch.arange(n_steps)
        self.weights = discount**self.ahead
        self.starts = _Starts(episodes, usable, which, start_steps, start_repeats)
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


def _lengths_observed(episodes: Episodes) -> np.ndarray:
    """Steps (E,) whose next observation was recorded, or after which the episode really ended."""
    ended = episodes.terminations[episodes.offsets[1:] - 1]
    return episodes.lengths - ~(episodes.final_observed | ended)


def _check_starts(start_steps: int, start_repeats: int) -> None:
    if start_steps < 0 or start_repeats < 1:
        raise InputError(f"{start_steps=} must be at least 0, {start_repeats=} at least 1.")


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
