"""OGBench's npz layouts, as they are downloaded, and as its own functions and others make them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator

import numpy as np

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.data.sources.checks import (
    check_arrays,
    flags,
    take_next,
    warn_of_jumps,
    warn_of_mismatches,
    warn_of_single_steps,
)
from diffrl_lightning.data.sources.npz import Header, blocks, headers, open_npz
from diffrl_lightning.data.sources.outline import Outline, gather
from diffrl_lightning.types import InputError

_REQUIRED = ("observations", "actions", "terminals")
_OPTIONAL = ("next_observations", "rewards", "masks", "valids")
_UNREAD = ("timeouts", "terminations", "truncations", "dones")  # that would say something else


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Dimensions, and whether there are rewards: the file does not name its environment."""
    arrays = _headers(dataset)
    return DatasetInfo(
        observation_dim=arrays["observations"].shape[1],
        action_dim=arrays["actions"].shape[1],
        has_rewards="rewards" in arrays,
    )


def prepare(dataset: str, options: SourceOptions) -> None:
    """A file is there or it is not."""


def load(dataset: str, options: SourceOptions) -> Episodes:
    """Read a file; rewards that it does not have are zero."""
    return gather([outline(dataset, options)])


def outline(dataset: str, options: SourceOptions) -> Outline:
    """Where the file's episodes end.

    An episode of T steps is T + 1 rows, the last of which is an observation alone: the one that
    ``terminals`` marks, or that ``valids`` says is none. With ``next_observations`` and without
    ``valids`` every row is a step, and ``terminals`` marks the last one. An episode's end is a
    truncation, but where ``masks`` is 0 nothing follows for a value.
    """
    arrays = _headers(dataset)
    unread = [name for name in _UNREAD if name in arrays]
    if unread:
        warnings.warn(
            f"{dataset!r} has {', '.join(unread)}, which are not read: in an npz file terminals end "
            "episodes, and masks say after which steps nothing follows.",
            stacklevel=2,
        )
    with open_npz(dataset) as archive:
        ends = np.flatnonzero(_ends(dataset, archive, arrays))
        n, e = arrays["observations"].shape[0], len(ends)
        if not e or ends[-1] != n - 1:
            raise InputError(f"{dataset!r} must end with a terminal: it seems to be cut off.")
        step = np.ones(n, bool)  # rows that are steps
        if not _followed(arrays):
            if np.diff(ends, prepend=-1).min() < 2:
                raise InputError(
                    f"{dataset!r} has an episode without an action: write T + 1 rows for T steps."
                )
            step[ends] = False
        masked = np.ones(n, bool)
        if "masks" in arrays:
            masked = flags(dataset, "masks", (block for _, block in blocks(archive, "masks")))
    offsets = np.concatenate([[0], np.cumsum(step)[ends]]).astype(np.int64)
    terminations = ~masked[step]
    truncations = np.zeros(len(terminations), bool)
    truncations[offsets[1:] - 1] = ~terminations[offsets[1:] - 1]
    warn_of_single_steps(dataset, offsets, _followed(arrays))
    return Outline(
        observation_dim=arrays["observations"].shape[1],
        action_dim=arrays["actions"].shape[1],
        terminations=terminations,
        truncations=truncations,
        offsets=offsets,
        final_observed=np.ones(e, bool),
        fill=lambda *into: _fill(dataset, arrays, step, offsets, *into),
    )


def _ends(dataset: str, archive: zipfile.ZipFile, arrays: dict[str, Header]) -> np.ndarray:
    """Rows (N,) bool that are the last ones of their episodes."""
    name = "valids" if "valids" in arrays else "terminals"
    found = flags(dataset, name, (block for _, block in blocks(archive, name)))
    return ~found if name == "valids" else found


def _followed(arrays: dict[str, Header]) -> bool:
    """Whether every row is a step with its next observation."""
    return "next_observations" in arrays and "valids" not in arrays


def _fill(
    dataset: str,
    arrays: dict[str, Header],
    step: np.ndarray,
    offsets: np.ndarray,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
) -> None:
    """Read the large arrays into these."""
    rewards[:] = 0
    with open_npz(dataset) as archive:
        for start, block in blocks(archive, "observations"):
            rows = np.arange(start, start + len(block))
            if _followed(arrays):
                rows += np.searchsorted(offsets, rows, side="right") - 1
            observations[rows] = block
        _take_steps(blocks(archive, "actions"), step, actions)
        if "rewards" in arrays:
            _take_steps(blocks(archive, "rewards"), step, rewards)
        if not _followed(arrays):
            warn_of_jumps(dataset, observations, offsets, repeated=False)
            return
        count = 0
        for start, block in blocks(archive, "next_observations"):
            count += take_next(dataset, start, block, offsets, observations)
    warn_of_mismatches(dataset, count, len(actions) - len(offsets) + 1)
    final = offsets[1:-1] + np.arange(len(offsets) - 2)
    if len(final) and np.array_equal(observations[final], observations[final + 1]):
        warnings.warn(
            f"{dataset!r} has next observations that lead from each episode into the next one: if the "
            "last row of an episode is an observation alone, remove next_observations.",
            stacklevel=2,
        )


def _take_steps(
    parts: Iterator[tuple[int, np.ndarray]], step: np.ndarray, into: np.ndarray
) -> None:
    """Copy those rows that are steps."""
    row = 0
    for start, block in parts:
        kept = block[step[start : start + len(block)]].reshape(-1, *into.shape[1:])
        into[row : row + len(kept)] = kept
        row += len(kept)


def _headers(dataset: str) -> dict[str, Header]:
    """Headers of the file's arrays, checked here for all that follows."""
    arrays = headers(dataset)
    known = {
        name: (array.shape, array.dtype)
        for name, array in arrays.items()
        if name in (*_REQUIRED, *_OPTIONAL)
    }
    check_arrays(dataset, known, _REQUIRED)
    return arrays
