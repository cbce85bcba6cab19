"""Checkpoint files: written whole or not at all, and read without running code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor

from diffrl_lightning.files import whole_file
from diffrl_lightning.types import InputError

ROLE_KEY = "diffrl_role"


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints, which survives kills and full disks.

    A file is written beside its target and then takes its place; Lightning's own is written to the
    folder of temporary files, and copied from there where that is another file system. Files elsewhere
    (``s3://...``) are left to Lightning.
    """

    @classmethod
    def install(cls, strategy: Any) -> None:
        """Let a strategy use it, unless the user has chosen something else than Lightning's own."""
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = cls()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the file that was there stays until the new one is whole.

        Raises:
            InputError: if it can not be written, as on a full disk.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As :func:`read_checkpoint`."""
        checkpoint = read_checkpoint(path, map_location or "cpu")
        # Lightning asks for its version, which a checkpoint that was saved by hand does not have.
        checkpoint.setdefault("pytorch-lightning_version", lightning.__version__)
        return checkpoint


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's dictionary, of tensors and plain values only.

    Args:
        path: of a file, or a file that is open.
        map_location: as in ``torch.load``.

    Raises:
        InputError: if there is no such file, or it is damaged, or it holds pickled objects.
    """
    _check_archive(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InputError(
                f"{str(path)!r} holds pickled objects, which could run code and are not loaded: use a "
                "checkpoint that this library wrote."
            ) from error
        raise _damaged(path, type(error).__name__) from error
    needed = ("state_dict", "hyper_parameters")
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(name), dict) for name in needed
    ):
        raise InputError(f"{str(path)!r} is no checkpoint of this library: give one that it wrote.")
    return checkpoint


def _check_archive(path: Any) -> None:
    """Refuse a file that is not whole: torch itself does not compare its checksums."""
    if isinstance(path, str | Path) and not Path(path).is_file():
        folder = ", which is a folder" if Path(path).is_dir() else ""
        raise InputError(f"There is no checkpoint {str(path)!r}{folder}: correct its path.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise _damaged(path, "its parts are compressed, which torch never does")
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, type(error).__name__) from error
    if broken is not None:
        raise _damaged(path, f"wrong checksum of {broken}")
    if hasattr(path, "seek"):
        path.seek(0)


def _damaged(path: Any, reason: str) -> InputError:
    return InputError(f"{str(path)!r} is damaged or no checkpoint ({reason}): use an earlier one.")


def first_unsound(module: torch.nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The first entry of a module's state that is NaN, or a weight that is infinite; None without one.

    Statistics may be infinite, as those of a dimension without a bound.

    Args:
        module: whose parameters are known by their names.
        state: of it.
    """
    weights = {name for name, _ in module.named_parameters()}
    named = {name: value for name, value in state.items() if value.is_floating_point()}
    sound = [
        (value.isfinite() if name in weights else ~value.isnan()).all()
        for name, value in named.items()
    ]
    if not sound or bool(torch.stack([one.to(sound[0].device) for one in sound]).all()):
        return None
    return next(name for name, one in zip(named, sound, strict=True) if not one)
