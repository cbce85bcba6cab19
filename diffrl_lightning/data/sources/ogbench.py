"""OGBench's npz layout: T + 1 rows an episode, ``terminals`` on its last row."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions, check_arrays
from diffrl_lightning.types import InputError

_REQUIRED = ("observations", "actions", "terminals")
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Dimensions alone: the file does not name its environment."""
    shapes = _shapes(dataset)
    return DatasetInfo(shapes["observations"][1], shapes["actions"][1], env_kwargs=options.kwargs)


def prepare(dataset: str, options: SourceOptions) -> None:
    """A file is there or it is not."""


def load(dataset: str, options: SourceOptions) -> Episodes:
    """Read a file; its rewards are zero, an episode's end is a truncation."""
    _shapes(dataset)
    try:
        with np.load(Path(dataset).expanduser(), allow_pickle=False) as file:
            observations = file["observations"].astype(np.float32, copy=False)
            actions = file["actions"]
            ends = np.flatnonzero(file["terminals"].reshape(-1))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise InputError(f"{dataset!r} is damaged: {error}.") from error
    if len(ends) and np.diff(ends, prepend=-1).min() < 2:
        raise InputError(
            f"{dataset!r} has an episode without an action: write T + 1 rows for T steps."
        )
    if len(ends) == 0 or ends[-1] != len(observations) - 1:
        raise InputError(f"{dataset!r} must end with a terminal: it seems to be cut off.")
    e = len(ends)
    offsets = np.concatenate([[0], ends + 1 - np.arange(1, e + 1)])
    keep = np.ones(len(actions), bool)
    keep[ends] = False  # the last row of an episode is an observation without an action
    truncations = np.zeros(len(actions) - e, bool)
    truncations[offsets[1:] - 1] = True
    return Episodes(
        observations=observations,
        actions=actions[keep].astype(np.float32, copy=False),
        rewards=np.zeros(len(truncations), np.float32),
        terminations=np.zeros(len(truncations), bool),
        truncations=truncations,
        offsets=offsets,
        final_observed=np.ones(e, bool),
    )


def _shapes(dataset: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays from their headers, which are checked here for all that follows."""
    arrays = {}
    try:
        with zipfile.ZipFile(Path(dataset).expanduser()) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
                arrays[name.removesuffix(".npy")] = (shape, dtype)
    except (zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise InputError(f"{dataset!r} is not a readable npz file: {error}.") from error
    for name, (_, dtype) in arrays.items():
        if dtype.hasobject:
            raise InputError(
                f"{dataset!r} holds pickled objects in {name!r}, which could run code and are not "
                "loaded: save plain numeric arrays."
            )
    known = {name: array for name, array in arrays.items() if name in _REQUIRED}
    check_arrays(dataset, known, _REQUIRED)
    return {name: shape for name, (shape, _) in known.items()}
