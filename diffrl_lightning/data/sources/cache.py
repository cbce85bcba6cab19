"""Arrays of datasets that are slow to read, kept beside each other as plain files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.files import sweep
from diffrl_lightning.types import InputError

_FIELDS = tuple(entry.name for entry in fields(Episodes) if entry.name != "origins")
_LAYOUT = 2  # of what is kept; another one is read anew


def cache_folder(dataset: str, key: list[Any]) -> Path:
    """Where the arrays of a dataset are kept, by all that they depend on."""
    digest = hashlib.sha256(json.dumps([*key, _LAYOUT]).encode()).hexdigest()[:16]
    root = Path(os.environ.get("DIFFRL_CACHE") or Path.home() / ".cache" / "diffrl_lightning")
    return root / f"{dataset.replace('/', '--')}-{digest}"


def read_cache(folder: Path, with_goals: bool) -> Episodes | None:
    """What is kept, None where nothing is, or where it is damaged, which is then removed."""
    if not folder.is_dir():
        return None
    names = [name for name in _FIELDS if with_goals or name != "goals"]
    try:
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="c", allow_pickle=False) for n in names}
        episodes = Episodes(**arrays)
        if with_goals and len(arrays["goals"]) != len(episodes):
            raise InputError("it has not a goal for each episode")
    except (OSError, ValueError, TypeError, EOFError, IndexError) as error:  # also InputError
        cause = " ".join(str(error).split()).rstrip(".")
        warnings.warn(
            f"The cache {str(folder)!r} is damaged ({cause}) and is made anew.", stacklevel=2
        )
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return episodes


def write_cache(folder: Path, episodes: Episodes) -> None:
    """Write beside the target and rename, so that a killed process leaves no half cache.

    Where there is no room or no right to write, a warning says so: the dataset can do without.
    """
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for pattern in (".partial-*", "tmp????????"):  # the latter of earlier versions
            sweep(folder.parent, pattern)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        for name in _FIELDS:
            array = getattr(episodes, name)
            if array is not None:
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        temporary.rename(folder)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if not folder.is_dir():  # rather than another process having been first
            warnings.warn(
                f"The cache {str(folder)!r} can not be written ({error}): the dataset is read anew "
                "every time; name another folder by the variable DIFFRL_CACHE.",
                stacklevel=2,
            )
