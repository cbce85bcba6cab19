"""Readers of datasets of every kind, told apart by what is given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.data.sources.outline import Outline, gather
from diffrl_lightning.types import InputError

__all__ = ["DatasetInfo", "SourceOptions", "load", "reader"]


def reader(dataset: str) -> Any:
    """The module that reads a dataset, given its name and :class:`SourceOptions`.

    Each has ``describe``, which gives the :class:`DatasetInfo` from metadata alone, ``prepare``, which
    generates or downloads what is not here, and ``load``, which gives the :class:`Episodes`; those of
    files have ``outline`` too.

    Raises:
        InputError: if a file does not exist.
    """
    from diffrl_lightning.data.sources import d4rl, minari, ogbench, pointmaze

    suffix = Path(dataset).suffix.lower()
    if suffix in (".hdf5", ".h5", ".npz"):
        path = Path(dataset).expanduser()
        if path.is_dir():
            raise InputError(f"{dataset!r} is a folder: name a file in it as dataset.")
        if path.is_symlink() and not path.exists():
            raise InputError(f"{dataset!r} is a link to a file that is not there: mend the link.")
        if not path.is_file():
            raise InputError(f"There is no file {dataset!r}: correct the path given as dataset.")
        return ogbench if suffix == ".npz" else d4rl
    return pointmaze if dataset.startswith(pointmaze.NAMESPACE) else minari


def load(datasets: Sequence[str], options: SourceOptions) -> Episodes:
    """All episodes of several datasets, each read straight into its place in arrays made once."""
    if len(datasets) == 1:
        return reader(datasets[0]).load(datasets[0], options)
    return gather([_outline(dataset, options) for dataset in datasets])


def _outline(dataset: str, options: SourceOptions) -> Outline:
    found = reader(dataset)
    if hasattr(found, "outline"):
        return found.outline(dataset, options)
    return Outline.of(partial(found.load, dataset, options))
