"""D4RL's HDF5 layout: flat arrays, an episode ends at a terminal or a timeout."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions, check_arrays
from diffrl_lightning.data.sources.environments import trusted_id
from diffrl_lightning.data.sources.scores import d4rl_reference
from diffrl_lightning.envs.make import registered_spec
from diffrl_lightning.types import InputError

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_BLOCK = 8_192
_USUAL_STEPS = 1_000  # of an episode in D4RL


@contextmanager
def _open(dataset: str) -> Iterator[h5py.File]:
    try:
        file = h5py.File(Path(dataset).expanduser(), "r")
    except OSError as error:
        raise InputError(f"{dataset!r} is not a readable HDF5 file: {error}.") from error
    with file:
        # No array stays open: each would keep a cache of its chunks.
        found = {}
        for name in (*_REQUIRED, *_OPTIONAL):
            if name in file and not isinstance(file[name], h5py.Dataset):
                raise InputError(f"{dataset!r} has a group {name!r} where an array belongs.")
            if name in file:
                found[name] = (file[name].shape, file[name].dtype)
        check_arrays(dataset, found, _REQUIRED)
        try:
            yield file
        except OSError as error:
            raise InputError(f"{dataset!r} is damaged: {error}.") from error


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Dimensions, and what the file's metadata has of the environment's id and reference scores."""
    with _open(dataset) as file:
        env_id = _env_id(dataset, file)
        ends = [file.get(f"metadata/ref_{end}_score") for end in ("min", "max")]
        stored_scores = None if None in ends else (float(ends[0][()]), float(ends[1][()]))
        return DatasetInfo(
            observation_dim=file["observations"].shape[1],
            action_dim=file["actions"].shape[1],
            env_id=env_id,
            env_kwargs=options.kwargs,
            ref_scores=stored_scores or d4rl_reference(options.env_id or env_id or ""),
        )


def prepare(dataset: str, options: SourceOptions) -> None:
    """A file is there or it is not."""


def load(dataset: str, options: SourceOptions) -> Episodes:
    """Read a file block by block, so that no array is ever in memory twice."""
    with _open(dataset) as file:
        terminations = _flags(file, "terminals")
        n = len(terminations)
        if "timeouts" in file:
            truncations = _flags(file, "timeouts")
        else:
            truncations = _timeouts(terminations, _time_limit(dataset, file, options))
        ends = terminations | truncations
        truncations[-1] |= not ends[-1]  # a file may stop in mid-episode
        offsets = np.concatenate([[0], np.flatnonzero(ends) + 1, [] if ends[-1] else [n]])
        offsets = offsets.astype(np.int64)
        e = len(offsets) - 1
        observations = np.empty((n + e, file["observations"].shape[1]), np.float32)
        actions = np.empty(file["actions"].shape, np.float32)
        rewards = np.empty(n, np.float32)
        for start in range(0, n, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, n))
            block = slice(start, start + _BLOCK)
            episode = np.searchsorted(offsets, rows, side="right") - 1
            observations[rows + episode] = file["observations"][block]
            actions[block] = file["actions"][block]
            rewards[block] = file["rewards"][block].reshape(-1)
        last = offsets[1:] + np.arange(e)  # rows of the final observations
        with_next = "next_observations" in file
        observations[last] = observations[last - 1]
        if with_next:
            observations[last] = _rows(file["next_observations"], offsets[1:] - 1)
    return Episodes(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        offsets=offsets,
        final_observed=np.full(e, with_next),
    )


def _flags(file: h5py.File, name: str) -> np.ndarray:
    return file[name][:].reshape(-1).astype(bool)


def _rows(array: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, block by block."""
    parts = []
    for start in range(0, len(array), _BLOCK):
        inside = rows[(rows >= start) & (rows < start + _BLOCK)]
        parts.append(array[start : start + _BLOCK][inside - start])
    return np.concatenate(parts)


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
