"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from diffrl_lightning.types import InputError

_DAY = 86_400.0


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its name once all of it is on the disk.

    It lies beside its target until then, so that a process that is killed, or a disk that is full,
    leaves what was there. Leftovers of killed processes go when they are a day old.

    Args:
        path: of the target, in a folder that exists.

    Raises:
        InputError: if it can not be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:
        # Of a write that fails inside torch.save, torch raises an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise cannot_write(path, cause) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    sweep(path.parent, f".{path.name}.*.partial")


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a small file by :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cannot_write(path: str | Path, error: OSError) -> InputError:
    """What to say where a file or folder can not be written."""
    return InputError(
        f"{str(path)!r} can not be written ({error.strerror or error}): make room or write elsewhere."
    )


def sweep(folder: Path, pattern: str) -> None:
    """Remove files of this pattern that are older than a day, which killed processes have left."""
    for leftover in folder.glob(pattern):
        with suppress(OSError):  # another process may sweep too
            if time.time() - leftover.stat().st_mtime > _DAY:
                leftover.unlink()


def _sync(folder: Path) -> None:
    """Let the folder's entry reach the disk too, where the system can."""
    with suppress(OSError):
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)
