"""The episodes of a Minari dataset, checked one by one, as flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.storage.datasets_root_dir import get_dataset_path
from tqdm.auto import tqdm

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.checks import check_memory
from diffrl_lightning.data.sources.hdf5 import find_entry
from diffrl_lightning.data.sources.minari_metadata import Metadata
from diffrl_lightning.types import InputError

_FILE = "main_data.hdf5"

Get = Callable[..., Any]  # names of an array in an episode -> the array


def read_episodes(
    dataset: str, metadata: Metadata, keys: tuple[str, ...], goal_key: str | None
) -> Episodes:
    """Read all episodes, each array once and into its place.

    Args:
        dataset: Minari id, on disk.
        metadata: what :func:`~diffrl_lightning.data.sources.minari_metadata.read_metadata` found.
        keys: of a dictionary observation, the entries that make the state, in order; () of others.
        goal_key: the entry that is the goal.

    Raises:
        InputError: if the file is damaged, reads other files, or an episode's arrays disagree.
    """
    try:
        with _episodes(dataset, metadata) as episodes:
            lengths = [_length(open_episode()) for open_episode in episodes]
            columns: list[tuple[str, ...]] = [("observations", key) for key in keys] or [
                ("observations",)
            ]
            shape = metadata.action_space.shape or ()
            widths = [_width(metadata.observation_space, names) for names in columns]
            e, n = len(lengths), sum(lengths)
            check_memory(_FILE, 4 * (n + e) * (sum(widths) + int(np.prod(shape)) + 1))
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            observations = np.empty((n + e, sum(widths)), np.float32)
            actions, rewards = np.empty((n, *shape), np.float32), np.empty(n, np.float32)
            terminations, truncations = np.empty(n, bool), np.empty(n, bool)
            goal = ("observations", goal_key or "")
            goal_width = _width(metadata.observation_space, goal) if goal_key else 0
            goals = np.empty((e, goal_width), np.float32) if goal_key else None
            bar = tqdm(episodes, desc="Reading episodes", leave=False)
            for i, (open_episode, length) in enumerate(zip(bar, lengths, strict=True)):
                get = open_episode()
                rows = slice(offsets[i], offsets[i + 1])
                states = observations[offsets[i] + i : offsets[i + 1] + i + 1]
                for names, width, end in zip(columns, widths, np.cumsum(widths), strict=True):
                    states[:, end - width : end] = _rows(get, names, length + 1, width)
                actions[rows] = _rows(get, ("actions",), length, int(np.prod(shape)))
                rewards[rows] = _rows(get, ("rewards",), length, 1)[:, 0]
                terminations[rows] = _flags(get, "terminations", length)
                truncations[rows] = _flags(get, "truncations", length)
                truncations[offsets[i + 1] - 1] |= not terminations[offsets[i + 1] - 1]
                if goals is not None:  # the first may be of the episode before; the last is its own
                    goals[i] = _rows(get, goal, length + 1, goal_width)[-1]
    except (OSError, KeyError, RuntimeError, InputError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"The Minari dataset {dataset!r} can not be read ({text}): delete it and download or write "
            "it again."
        ) from error
    return Episodes(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        offsets=offsets,
        final_observed=np.ones(e, bool),
        goals=goals,
    )


@contextmanager
def _episodes(dataset: str, metadata: Metadata) -> Iterator[list[Callable[[], Get]]]:
    """For each episode, what opens it and gives a function from an array's names to the array."""
    path = get_dataset_path(dataset) / "data"
    if metadata.data_format == "hdf5":
        with h5py.File(path / _FILE, "r") as file:
            _check_count(metadata, len(file))
            yield [partial(_opened, file, f"episode_{i}") for i in range(metadata.total_episodes)]
        return
    _check_count(metadata, sum(entry.is_dir() for entry in path.iterdir()))
    if _has_images(metadata.observation_space):  # Minari would have them decoded, in any format
        raise InputError(f"it holds images, which are read from hdf5 alone: {metadata.data_format}")
    found = minari.load_dataset(dataset).iterate_episodes()
    yield [partial(partial, _member, vars(episode)) for episode in found]


def _check_count(metadata: Metadata, count: int) -> None:
    if metadata.total_episodes > count:
        raise InputError(f"it has {count} episodes, not total_episodes={metadata.total_episodes}")


def _has_images(space: Any) -> bool:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return any(map(_has_images, parts))
    return isinstance(space, spaces.Box) and len(space.shape) > 1


def _member(found: Any, *names: str) -> Any:
    for name in names:
        found = found[name]
    return np.asarray(found)


def _opened(file: h5py.File, episode: str) -> Get:
    """Gives arrays of an episode that lie in the file itself, and whole."""

    def get(*names: str) -> h5py.Dataset:
        path = "/".join(names)
        array = find_entry(f"{_FILE}: {episode}", group, path) if group else None
        if array is None:
            raise InputError(f"{_FILE} has no array {episode}/{path}")
        return array

    is_group = file.get(episode, getclass=True, getlink=True) is h5py.HardLink
    group = file[episode] if is_group else None
    return get


def _length(get: Get) -> int:
    """Steps of an episode, by its rewards."""
    rewards = get("rewards")
    if not rewards.shape or not len(rewards):
        raise InputError("an episode has no steps")
    return len(rewards)


def _width(space: Any, names: Sequence[str]) -> int:
    """Numbers in a row of an array of observations."""
    for name in names[1:]:
        space = space[name]
    return int(np.prod(space.shape or ()))


def _rows(get: Get, names: Sequence[str], length: int, width: int) -> np.ndarray:
    """An array as (length, width) of numbers."""
    array = get(*names)
    name = "/".join(names)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must be numbers, not {array.dtype}")
    if array.shape[:1] != (length,) or int(np.prod(array.shape[1:])) != width:
        raise InputError(
            f"an episode has {name} of the shape {array.shape}, where its steps need {length} rows of "
            f"{width}"
        )
    return array[()].reshape(length, width)


def _flags(get: Get, name: str, length: int) -> np.ndarray:
    """Flags (length,), which are true or false."""
    values = _rows(get, (name,), length, 1)[:, 0]
    if not ((values == 0) | (values == 1)).all():
        raise InputError(f"{name} must be 0 or 1 at every step")
    return values.astype(bool)
