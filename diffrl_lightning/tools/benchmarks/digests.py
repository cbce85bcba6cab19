"""Digests by which a reader can tell whether a dataset is the one of a result."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from diffrl_lightning.data import OfflineData
from diffrl_lightning.data.sources import load


def dataset_digest(data: OfflineData) -> dict[str, Any]:
    """The SHA-256 of a dataset that is one file, as ``sha256sum`` has it, or of its arrays.

    Of several files the digests are hashed in their order.
    """
    paths = [Path(name) for name in data.datasets]
    if all(path.is_file() for path in paths):
        digests = [_of_file(path) for path in paths]
        whole = hashlib.sha256("".join(digests).encode()).hexdigest()
        return {"sha256": digests[0] if len(digests) == 1 else whole}
    episodes, found = load(data.datasets, data.options), hashlib.sha256()
    for name in sorted(vars(episodes)):
        value = getattr(episodes, name)
        if isinstance(value, np.ndarray):
            found.update(f"{name} {value.shape} {value.dtype}".encode())
            found.update(np.ascontiguousarray(value).data)
    return {"sha256_of_arrays": found.hexdigest()}


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
