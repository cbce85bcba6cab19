"""What may be read of an HDF5 file: what lies in the file itself, and whole."""

from __future__ import annotations

import math
from typing import Any

import h5py

from diffrl_lightning.data.sources.checks import check_memory
from diffrl_lightning.types import InputError

_LINKS = 10  # of a chain, at most
_LARGE = 2**24  # bytes that are asked the system about


def check_entry(dataset: str, file: h5py.Group, path: str) -> bool:
    """Whether a file has an array of this path; as :func:`find_entry`."""
    return find_entry(dataset, file, path) is not None


def find_entry(dataset: str, file: h5py.Group, path: str) -> h5py.Dataset | None:
    """The array of this path in a file or a group of it, None where there is none.

    Links into the file itself are followed; nothing is opened that another file holds.

    Raises:
        InputError: if it is a link to another file, an array whose values are in other files or
            missing, or no array.
    """
    array = _inside(dataset, file, path, path.split("/"), _LINKS)
    if array is None:
        return None
    if not isinstance(array, h5py.Dataset):
        raise InputError(f"{dataset!r} has a group {path!r} where an array belongs.")
    if array.is_virtual:
        raise InputError(
            f"{dataset!r}: {path} is a virtual array, made of other files: copy its values into one "
            "file."
        )
    if array.external:
        raise InputError(
            f"{dataset!r}: {path} has its values in another file, {array.external[0][0]!r}: copy "
            "them into one file."
        )
    _check_stored(dataset, path, array)
    return array


def _inside(dataset: str, group: Any, path: str, names: list[str], links: int) -> Any:
    """What these names lead to in the same file, None where there is nothing."""
    for k, name in enumerate(names):
        if not isinstance(group, h5py.Group):
            return None
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise InputError(
                f"{dataset!r}: {path} is a link to another file, {link.filename!r}: copy its values "
                "into one file."
            )
        if isinstance(link, h5py.SoftLink):
            start = group.file if link.path.startswith("/") else group
            target = [part for part in link.path.split("/") if part not in ("", ".")]
            rest = [*target, *names[k + 1 :]]
            found = _inside(dataset, start, path, rest, links - 1) if links else None
            if found is None:
                raise InputError(
                    f"{dataset!r}: {path} is a link to {link.path!r}, which the file does not have."
                )
            return found
        group = group[name]
    return group


def _check_stored(dataset: str, path: str, array: h5py.Dataset) -> None:
    """Refuse an array that declares more than the file stores: what is missing reads as zeros."""
    if array.shape is None:
        raise InputError(f"{dataset!r}: {path} is an empty array.")
    stored, wanted = array.id.get_storage_size(), math.prod(array.shape) * array.dtype.itemsize
    if array.chunks is not None:
        # Compressed chunks may be small, but all of them must be there.
        sizes = zip(array.shape, array.chunks, strict=True)
        wanted = math.prod(-(-size // chunk) for size, chunk in sizes)
        stored = array.id.get_num_chunks()
        chunk = math.prod(array.chunks) * array.dtype.itemsize
        if chunk > _LARGE:
            check_memory(repr(dataset), chunk)
    if stored < wanted:
        raise InputError(
            f"{dataset!r}: {path} declares the shape {array.shape}, but only {stored} of {wanted} "
            f"{'chunks' if array.chunks else 'bytes'} are in the file: it is hollow or cut off."
        )
