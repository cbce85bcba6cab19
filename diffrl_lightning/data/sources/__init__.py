"""Reads datasets of every kind into :class:`Episodes`, told apart by what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.types import InputError

__all__ = ["DatasetInfo", "SourceOptions", "describe", "load", "prepare"]


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
    from diffrl_lightning.data.sources import d4rl, minari, ogbench, pointmaze

    suffix = Path(dataset).suffix
    if suffix in (".hdf5", ".h5", ".npz"):
        if not Path(dataset).expanduser().is_file():
            raise InputError(f"There is no file {dataset!r}: correct the path given as dataset.")
        return ogbench if suffix == ".npz" else d4rl
    if pointmaze.is_generated(dataset):
        return pointmaze
    return minari
