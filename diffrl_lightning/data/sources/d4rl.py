"""D4RL's HDF5 layout: flat arrays, an episode ends at a terminal or a timeout."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.data.sources.checks import (
    BLOCK,
    check_arrays,
    damaged,
    flags,
    not_a_file,
    take_next,
    warn_of_jumps,
    warn_of_mismatches,
    warn_of_single_steps,
)
from diffrl_lightning.data.sources.environments import trusted_id
from diffrl_lightning.data.sources.hdf5 import check_entry
from diffrl_lightning.data.sources.outline import Outline, gather
from diffrl_lightning.data.sources.scores import d4rl_reference
from diffrl_lightning.envs.make import registered_spec
from diffrl_lightning.types import InputError

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_METADATA = ("ref_min_score", "ref_max_score", "env_id")
_USUAL_STEPS = 1_000  # of an episode in D4RL


@contextmanager
def _open(dataset: str) -> Iterator[h5py.File]:
    """A file whose entries that are read were checked: they lie in the file, and whole."""
    path = Path(dataset).expanduser()
    try:
        if not h5py.is_hdf5(path):
            raise not_a_file(dataset, path, "HDF5")
        with h5py.File(path, "r") as file:
            # No array stays open: each would keep a cache of its chunks.
            found = {}
            for name in (*_REQUIRED, *_OPTIONAL):
                if check_entry(dataset, file, name):
                    found[name] = (file[name].shape, file[name].dtype)
            for name in _METADATA:
                if check_entry(dataset, file, f"metadata/{name}"):
                    _check_single(dataset, file[f"metadata/{name}"])
            check_arrays(dataset, found, _REQUIRED)
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py's, of damaged files
        raise damaged(dataset, "HDF5", error) from error


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Dimensions, and what the file's metadata has of the environment's id and reference scores."""
    with _open(dataset) as file:
        env_id = _env_id(dataset, file)
        return DatasetInfo(
            observation_dim=file["observations"].shape[1],
            action_dim=file["actions"].shape[1],
            env_id=env_id,
            ref_scores=_ref_scores(dataset, file) or d4rl_reference(options.env_id or env_id or ""),
        )


def prepare(dataset: str, options: SourceOptions) -> None:
    """A file is there or it is not."""


def load(dataset: str, options: SourceOptions) -> Episodes:
    """Read a file block by block, so that no array is ever in memory twice."""
    return gather([outline(dataset, options)])


def outline(dataset: str, options: SourceOptions) -> Outline:
    """Where the file's episodes end."""
    with _open(dataset) as file:
        terminations = flags(dataset, "terminals", _blocks(file, "terminals"))
        n = len(terminations)
        if "timeouts" in file:
            truncations = flags(dataset, "timeouts", _blocks(file, "timeouts"))
        else:
            truncations = _timeouts(terminations, _time_limit(dataset, file, options))
        ends = terminations | truncations
        truncations[-1] |= not ends[-1]  # a file may stop in mid-episode
        offsets = np.concatenate([[0], np.flatnonzero(ends) + 1, [] if ends[-1] else [n]])
        offsets = offsets.astype(np.int64)
        with_next = "next_observations" in file
        warn_of_single_steps(dataset, offsets, with_next)
        return Outline(
            observation_dim=file["observations"].shape[1],
            action_dim=file["actions"].shape[1],
            terminations=terminations,
            truncations=truncations,
            offsets=offsets,
            final_observed=np.full(len(offsets) - 1, with_next),
            fill=lambda *arrays: _fill(dataset, offsets, *arrays),
        )


def _fill(
    dataset: str,
    offsets: np.ndarray,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
) -> None:
    """Read the large arrays into these."""
    last = offsets[1:] + np.arange(len(offsets) - 1)  # rows of the final observations
    with _open(dataset) as file:
        for start, block in _numbered(file, "observations"):
            rows = np.arange(start, start + len(block))
            observations[rows + np.searchsorted(offsets, rows, side="right") - 1] = block
        for start, block in _numbered(file, "actions"):
            actions[start : start + len(block)] = block
        for start, block in _numbered(file, "rewards"):
            rewards[start : start + len(block)] = block.reshape(-1)
        observations[last] = observations[last - 1]
        if "next_observations" not in file:
            warn_of_jumps(dataset, observations, offsets, repeated=True)
            return
        count = 0
        for start, block in _numbered(file, "next_observations"):
            count += take_next(dataset, start, block, offsets, observations)
        warn_of_mismatches(dataset, count, len(actions) - len(last))


def _blocks(file: h5py.File, name: str) -> Iterator[np.ndarray]:
    return (block for _, block in _numbered(file, name))


def _numbered(file: h5py.File, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """An array block by block, each with its first row."""
    array = file[name]
    for start in range(0, len(array), BLOCK):
        yield start, array[start : start + BLOCK]


def _check_single(dataset: str, array: h5py.Dataset) -> None:
    if array.shape not in ((), (1,)):
        raise InputError(
            f"{dataset!r}: {array.name[1:]} must be a single value, not of shape {array.shape}."
        )


def _ref_scores(dataset: str, file: h5py.File) -> tuple[float, float] | None:
    """Random and expert return of the metadata, where it has both; NaN where one is no number."""
    stored = [file.get(f"metadata/{name}") for name in _METADATA[:2]]
    if None in stored:
        return None
    kinds = {array.dtype.kind for array in stored}
    low, high = (
        float(np.ravel(array[()])[0]) if kinds <= set("fiu") else math.nan for array in stored
    )
    return low, high


def _time_limit(dataset: str, file: h5py.File, options: SourceOptions) -> int:
    """The environment's, or D4RL's usual 1000 steps, with a warning."""
    env_id = options.env_id or trusted_id(_env_id(dataset, file))
    limit = registered_spec(env_id).max_episode_steps if env_id else None
    if limit is None:
        warnings.warn(
            f"{dataset!r} has no timeouts, and "
            + (f"{env_id!r} no time limit" if env_id else "its environment is not known")
            + f": its episodes are taken to end every {_USUAL_STEPS} steps; write the array timeouts, "
            "or give the env_id of an environment with a limit.",
            stacklevel=2,
        )
    return limit or _USUAL_STEPS


def _env_id(dataset: str, file: h5py.File) -> str | None:
    """The environment that the file names; a string, or an array of one."""
    stored = file.get("metadata/env_id")
    if stored is None:
        return None
    value = np.asarray(stored[()]) if isinstance(stored, h5py.Dataset) else np.zeros(0)
    name = value.reshape(-1)[0] if value.size == 1 else None
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    if not isinstance(name, str):
        raise InputError(
            f"{dataset!r}: metadata/env_id must be one string, not {value.dtype} of the shape "
            f"{value.shape}; write it as the Gymnasium id, or remove it."
        )
    return name


def _timeouts(terminations: np.ndarray, max_episode_steps: int) -> np.ndarray:
    """Without ``timeouts`` an episode ends after ``max_episode_steps``, as D4RL counts."""
    step = np.arange(len(terminations))
    starts = np.where(np.concatenate([[True], terminations[:-1]]), step, 0)
    since = step - np.maximum.accumulate(starts)
    return (since % max_episode_steps == max_episode_steps - 1) & ~terminations
