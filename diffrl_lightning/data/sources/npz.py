"""Reads numpy's npz files array by array and block by block, after a look at their headers."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from diffrl_lightning.data.sources.checks import BLOCK, damaged, not_a_file
from diffrl_lightning.types import InputError

_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype


@contextmanager
def open_npz(dataset: str) -> Iterator[zipfile.ZipFile]:
    """The archive, closed at the end.

    Raises:
        InputError: if it is none, or damaged where it is read.
    """
    path = Path(dataset).expanduser()
    try:
        if not zipfile.is_zipfile(path):
            raise not_a_file(dataset, path, "npz")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except Exception as error:  # of zipfile, zlib and numpy, each its own kinds
        raise damaged(dataset, "npz", error) from error


def headers(dataset: str) -> dict[str, Header]:
    """The headers of a file's arrays, by their names; no values are read.

    Raises:
        InputError: if an array holds objects, or is not as long as its header says.
    """
    found = {}
    with open_npz(dataset) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                header = _header(file)
                begin = file.tell()
            name = info.filename.removesuffix(".npy")
            if header.dtype.hasobject:
                raise InputError(
                    f"{dataset!r} holds pickled objects in {name!r}, which could run code and are not "
                    "loaded: save plain numeric arrays."
                )
            wanted = math.prod(header.shape) * header.dtype.itemsize
            if info.file_size - begin != wanted:
                raise InputError(
                    f"{dataset!r}: {name} declares the shape {header.shape}, which takes {wanted} "
                    f"bytes, but {info.file_size - begin} are in the file: it is hollow or cut off."
                )
            found[name] = header
    return found


def blocks(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """An array (N, ...) block by block, each with its first row."""
    with archive.open(f"{name}.npy") as file:
        shape, by_columns, dtype = _header(file)
        if by_columns:  # no row of it is in one place
            whole = np.frombuffer(file.read(), dtype).reshape(shape, order="F")
            yield from ((k, whole[k : k + BLOCK]) for k in range(0, len(whole), BLOCK))
            return
        size = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, shape[0], BLOCK):
            count = min(BLOCK, shape[0] - start)
            yield start, np.frombuffer(file.read(count * size), dtype).reshape(count, *shape[1:])
        file.read()  # to the end, where the checksum is compared


def _header(file: IO[bytes]) -> Header:
    return Header(*_HEADERS[np.lib.format.read_magic(file)](file))
