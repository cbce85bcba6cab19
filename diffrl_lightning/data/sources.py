"""Reads datasets of every kind into :class:`Episodes`, told apart by what is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.types import InputError


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself before its arrays are read.

    ``observation_dim`` counts the state, ``goal_dim`` the goal that its environment adds.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int = 0
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    ref_scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say of a dataset beside its name."""

    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] | None = None
    goal_key: str | None = None
    num_steps: int = 100_000


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Metadata of a dataset, without its arrays.

    Raises:
        InputError: if the dataset does not exist or is of no known kind.
    """
    return _source(dataset).describe(dataset, options)


def prepare(dataset: str, options: SourceOptions) -> None:
    """Generate or download a dataset that is not here yet; other kinds must be here."""
    _source(dataset).prepare(dataset, options)


def load(dataset: str, options: SourceOptions) -> Episodes:
    """All arrays of a dataset."""
    return _source(dataset).load(dataset, options)


def _source(dataset: str) -> Any:
    """The module that reads this dataset: each has ``describe``, ``prepare`` and ``load``."""
    from diffrl_lightning.data import d4rl, minari_source, ogbench, pointmaze

    suffix = Path(dataset).suffix
    if suffix in (".hdf5", ".h5", ".npz"):
        if not Path(dataset).expanduser().is_file():
            raise InputError(f"There is no file {dataset!r}: correct the path given as dataset.")
        return ogbench if suffix == ".npz" else d4rl
    if pointmaze.is_generated(dataset):
        return pointmaze
    return minari_source


def as_list(dataset: str | Sequence[str]) -> list[str]:
    """One dataset or several, as a list.

    Raises:
        InputError: if the list is empty.
    """
    names = [dataset] if isinstance(dataset, str) else list(dataset)
    if not names:
        raise InputError("dataset is an empty list: name at least one dataset.")
    return names
