"""Files that are written whole or not at all, beside their target."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from diffrl_lightning.types import InputError

_DAY = 86_400.0  # seconds

_Item = TypeVar("_Item")


@contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside a file, which takes the file's place at the end of the block.

    On any exception, KeyboardInterrupt included, it is removed and the older file stays as it is. Its
    name is ``.<name>.<pid>.partial``; those that killed processes left in the folder are removed once
    they are a day old. Missing folders are made.

    Raises:
        InputError: if the file can not be written, naming it and the reason.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))  # of a link, what it points to
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            if target.is_dir():
                raise IsADirectoryError("it is a folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent, ".*.[0-9]*.partial")
            yield temporary
            _sync(temporary)
            temporary.replace(target)
        with suppress(OSError):  # where a folder can be opened
            _sync(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file, open for writing and reading, as :func:`whole_path`."""
    with whole_path(path) as temporary, temporary.open("w+b") as file:
        yield file


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file at once, as :func:`whole_path`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A block that writes a file or folder.

    Raises:
        InputError: if a system call fails in it, naming the file and the reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter of torch and h5py
        reason = _os_error(error)
        if reason is None:
            raise
        raise cannot_write(path, reason) from error


def while_room(items: Iterable[_Item], folder: str | Path, least: int = 2**24) -> Iterator[_Item]:
    """Hand on items that are written to a folder one by one, while so many bytes are free there.

    For HDF5 files that others write: after a write that failed, HDF5 crashes when the process ends.

    Raises:
        OSError: if less is free.
    """
    for item in items:
        if shutil.disk_usage(folder).free < least:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if _largest() < least:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        yield item


def _largest() -> float:
    """The most bytes that this process may write to a file."""
    try:
        import resource
    except ImportError:  # of Unix alone
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def cannot_write(path: str | Path, error: OSError) -> InputError:
    """What to say where a file or folder can not be written."""
    why = os.strerror(error.errno) if error.errno else error  # h5py's own text is a paragraph
    return InputError(f"{str(path)!r} can not be written ({why}): make room or write elsewhere.")


def sweep(folder: Path, pattern: str) -> None:
    """Remove files and folders of this pattern that killed processes left more than a day ago."""
    for leftover in folder.glob(pattern):
        with suppress(OSError):  # another process may be at it, or may be their owner
            if time.time() - _changed(leftover) > _DAY:
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()


def _changed(path: Path) -> float:
    """When a file, or anything in a folder, was changed for the last time."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    return max(p.lstat().st_mtime for p in (path, *inside))


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The failed system call behind an exception, such as torch's when a disk is full."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
