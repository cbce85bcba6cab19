"""Readers of datasets of every kind, told apart by what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.types import InputError

__all__ = ["DatasetInfo", "SourceOptions", "reader"]


def reader(dataset: str) -> Any:
    """The module that reads a dataset, given its name and :class:`SourceOptions`.

    Each has ``describe``, which gives the :class:`DatasetInfo` from metadata alone, ``prepare``, which
    generates or downloads what is not here, and ``load``, which gives the :class:`Episodes`.

    Raises:
        InputError: if a file does not exist.
    """
    from diffrl_lightning.data.sources import d4rl, minari, ogbench, pointmaze

    suffix = Path(dataset).suffix
    if suffix in (".hdf5", ".h5", ".npz"):
        if not Path(dataset).expanduser().is_file():
            raise InputError(f"There is no file {dataset!r}: correct the path given as dataset.")
        return ogbench if suffix == ".npz" else d4rl
    return pointmaze if dataset.startswith(pointmaze.NAMESPACE) else minari
