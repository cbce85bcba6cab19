"""What is refused in files of flat arrays, and what is warned of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffrl_lightning.types import InputError

BLOCK = 8_192
"""Rows that are read at a time."""

_MATRICES = ("observations", "actions", "next_observations")
_RUN = 10  # one-step episodes in a row that are warned of
_SAMPLE = 100_000  # steps that the usual change of a state is taken from
_JUMPS = 3  # that are warned of


def check_arrays(
    dataset: str, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], required: Sequence[str]
) -> None:
    """Refuse a file whose arrays do not make steps, by their shapes and dtypes alone.

    Raises:
        InputError: naming the array and what is wrong with it.
    """
    for name in required:
        if name not in arrays:
            raise InputError(f"{dataset!r} has no array {name!r}: it needs {', '.join(required)}.")
    steps = arrays["observations"][0][:1]
    lengths = {name: shape[0] if shape else "none" for name, (shape, _) in arrays.items()}
    for name, (shape, dtype) in arrays.items():
        if dtype.kind not in "fiub":
            raise InputError(f"{dataset!r}: {name} must be numbers, not {dtype}.")
        if len(shape) != 2 if name in _MATRICES else shape not in (steps, (*steps, 1)):
            raise InputError(
                f"{dataset!r}: {name} has the shape {shape}, but every array needs one row a step "
                f"(arrays of unequal lengths: {lengths})."
            )
        if shape[:1] != steps:
            raise InputError(f"{dataset!r} has arrays of unequal lengths: {lengths}.")
        if 0 in shape[1:]:
            raise InputError(f"{dataset!r}: {name} has no columns, as its shape {shape} says.")
    if steps == (0,):
        raise InputError(f"{dataset!r} holds no steps.")
    following = arrays.get("next_observations", arrays["observations"])[0]
    if following != arrays["observations"][0]:
        raise InputError(f"{dataset!r}: next_observations must be shaped like observations.")
    columns = sum(arrays[name][0][1] for name in ("observations", "actions"))
    check_memory(repr(dataset), 4 * steps[0] * (columns + 1))


def not_a_file(dataset: str, path: Path, kind: str) -> InputError:
    """What to say of a file that is not of the kind that its name says."""
    with path.open("rb") as file:
        return InputError(
            f"{dataset!r} is not a readable {kind} file, whatever its name says: it begins with "
            f"{file.read(12)!r}."
        )


def damaged(dataset: str, kind: str, error: Exception) -> InputError:
    """What to say of a file at which its reader failed."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:150].strip(" .")
    return InputError(f"{dataset!r} is damaged or not a readable {kind} file: {reason}.")


def check_memory(what: str, num_bytes: int) -> None:
    """Refuse data that the free memory does not hold, where the system tells how much that is.

    Raises:
        InputError: saying what they need.
    """
    free = _free_memory()
    if free is not None and num_bytes > free:
        raise InputError(
            f"{what} declares arrays that need {num_bytes / 1e9:.1f} GB of memory, of which "
            f"{free / 1e9:.1f} GB are free: check the file, or train on a part of it."
        )


def _free_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if "MemAvailable" in line))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return None


def flags(dataset: str, name: str, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """An array of zeros and ones (N,) as bool.

    Raises:
        InputError: if another value, such as NaN or a half, is among them.
    """
    parts = []
    for block in blocks:
        values = block.reshape(-1)
        parts.append(values == 1)
        wrong = ~(parts[-1] | (values == 0))
        if wrong.any():
            row = sum(map(len, parts[:-1])) + int(wrong.argmax())
            raise InputError(
                f"{dataset!r}: {name} must be 0 or 1, but row {row} is {values[wrong][0]}."
            )
    return np.concatenate(parts)


def take_next(
    dataset: str, start: int, block: np.ndarray, offsets: np.ndarray, observations: np.ndarray
) -> int:
    """Take final observations from a block of next ones (B, O).

    Args:
        dataset: the file.
        start: row of the block's first.
        block: every step's next observation.
        offsets: of all episodes (E + 1,).
        observations: where the final ones go (N + E, O), the others are there.

    Returns:
        How many steps that are no episode's last are not followed by the next row's observation.

    Raises:
        InputError: if a value is NaN or infinite.
    """
    finite = np.isfinite(block).all(1)
    if not finite.all():
        raise InputError(
            f"{dataset!r}: next_observations hold NaN or infinite values, first in row "
            f"{start + int(finite.argmin())}: remove those episodes."
        )
    rows = np.arange(start, start + len(block))
    episode = np.searchsorted(offsets, rows, side="right") - 1
    final = offsets[episode + 1] == rows + 1
    following = rows + episode + 1
    observations[following[final]] = block[final]
    same = np.isclose(block, observations[following], rtol=1e-4, atol=1e-6).all(1)
    return int((~same & ~final).sum())


def warn_of_single_steps(dataset: str, offsets: np.ndarray, followed: bool) -> None:
    """Warn of runs of episodes of one step; not of a file of single transitions.

    Args:
        dataset: the file.
        offsets: of its episodes (E + 1,).
        followed: whether the file has next observations.
    """
    single = np.diff(offsets) == 1
    if single.all() and followed:
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[False], single, [False]]).astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    runs = runs[runs >= _RUN]
    if len(runs):
        warnings.warn(
            f"{dataset!r} has {runs.sum()} episodes of one step in {len(runs)} runs of at least "
            f"{_RUN}: are its terminals or timeouts right?",
            stacklevel=2,
        )


def warn_of_mismatches(dataset: str, count: int, steps: int) -> None:
    """Warn of next observations that are not the next row's observations, inside episodes."""
    if count:
        warnings.warn(
            f"{dataset!r} has {count} of {steps} steps inside its episodes whose next observation is "
            "not the observation of the next row: are its rows in order, and its terminals and "
            "timeouts right?",
            stacklevel=2,
        )


def warn_of_jumps(
    dataset: str, observations: np.ndarray, offsets: np.ndarray, *, repeated: bool
) -> None:
    """Warn of states that change inside episodes as they do where a new one begins.

    Changes are measured by the 95 % quantile of each entry. A jump is a step at which half of the
    entries change by more than 3 of these, or any entry by more than 5 of them so many rows beside
    the ends of most episodes: in D4RL's AntMaze-v0 the time-outs lie two rows before the resets.

    Args:
        dataset: the file.
        observations: of its episodes (N + E, O).
        offsets: of its episodes (E + 1,).
        repeated: whether the last row of each episode only repeats the one before.
    """
    ends = offsets[1:-1] + np.arange(len(offsets) - 2)  # last rows of all episodes but the last one
    inside = np.ones(len(observations) - 1, bool)
    inside[ends] = False
    sample = np.flatnonzero(inside)
    sample = sample[:: max(1, len(sample) // _SAMPLE)]
    if not len(sample):
        return
    usual = np.quantile(_changes(observations, sample), 0.95, axis=0)
    moving = usual > 0
    if not moving.any():
        return
    for k in (-3, -2, -1, 1, 2, 3):
        rows = ends + k - (repeated and k < 0)
        rows = rows[(rows >= 0) & (rows < len(inside))]
        rows = rows[inside[rows]]
        beside = _changes(observations, rows)[:, moving] > 5 * usual[moving]
        count = int(beside.any(1).sum())
        if count >= _JUMPS and 2 * count > len(ends):
            warnings.warn(
                f"{dataset!r} has jumps in {count} of {len(offsets) - 1} episodes, {abs(k)} rows "
                f"{'behind' if k > 0 else 'before'} the end of one: its terminals or timeouts are "
                "not where the environment was reset.",
                stacklevel=2,
            )
            return
    count = 0
    for start in range(0, len(inside), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(inside)))
        far = _changes(observations, rows)[:, moving] > 3 * usual[moving]
        count += int((inside[rows] & (2 * far.sum(1) > moving.sum())).sum())
    if count >= _JUMPS:
        warnings.warn(
            f"{dataset!r} has {count} jumps inside its episodes, steps at which the state changes "
            "far more than it usually does: are its terminals and timeouts right?",
            stacklevel=2,
        )


def _changes(observations: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """By how much states change from these rows to the next ones (M, O)."""
    return np.abs(observations[rows + 1] - observations[rows])
