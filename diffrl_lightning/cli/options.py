"""What Lightning's own options may be, decided before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from diffrl_lightning.callbacks import Rollout
from diffrl_lightning.inputs import RANGES, InputError, check_ranges

_KNOWN = ("diffrl_lightning.", "lightning.")  # packages whose metrics are known


def check_options(config: Any, command: str) -> None:
    """Refuse options that Lightning would take, or refuse with a traceback or after training.

    Args:
        config: of the command, as it was parsed.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        InputError: naming the first of them.
    """
    seed = config.get("seed_everything")
    if not isinstance(seed, bool):
        RANGES["seed"].check("seed_everything", seed)
    for group in ("trainer", "checkpoint"):
        check_ranges(
            {name: x for name, x in vars(config[group]).items() if not isinstance(x, bool)}
        )
    _check_word(config)
    if command == "fit":
        _check_monitors(config)


def _check_word(config: Any) -> None:
    """Refuse ``best``, which there is not before training, and ``last`` and ``hpc`` without a file."""
    word = config.get("ckpt_path")
    places = {
        "best": (None, ""),
        "last": (config.checkpoint.dirpath, "*last*.ckpt"),
        "hpc": (config.trainer.default_root_dir or ".", "hpc_ckpt_*.ckpt"),
    }
    folder, pattern = places.get(word, (None, ""))
    if word in places and not (folder and any(Path(folder).glob(pattern))):
        raise InputError(
            f"ckpt_path={word} names no checkpoint, for this run has written none yet: give the path "
            "of one, as runs/NAME/version_0/checkpoints/best.ckpt."
        )


def _check_monitors(config: Any) -> None:
    """Refuse to choose checkpoints, or to stop, by a metric that is never logged."""
    paths = [config.model.class_path]
    monitors = {"checkpoint.monitor": config.checkpoint.monitor}
    callbacks = config.trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        paths.append(callback.class_path)
        monitor = (callback.get("init_args") or {}).get("monitor")
        monitors[f"{callback.class_path.rpartition('.')[2]}'s monitor"] = monitor
    if not all(path.startswith(_KNOWN) for path in paths):
        return
    rolled = [f"val/{name}" for name in Rollout.val_metrics]
    known = rolled if config.rollout.val_episodes else []
    for path in paths:
        known += [f"val/{name}" for name in getattr(class_named(path), "val_metrics", ())]
    for option, monitor in monitors.items():
        default = monitor == "val/return_mean" and not config.rollout.val_episodes
        if not monitor or not monitor.startswith("val") or monitor in known or default:
            continue
        near = get_close_matches(monitor, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}."
        if monitor in rolled:
            hint = "give rollout.val_episodes above 0, or another one."
        raise InputError(f"{option}={monitor!r} is never logged: {hint}")


def class_named(class_path: str) -> Any:
    """The class of an import path."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


@contextmanager
def one_sentence(*errors: type[Exception]) -> Iterator[None]:
    """Say what Lightning refuses, its ``MisconfigurationException`` and these errors, as bad input."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, (MisconfigurationException, *errors)):
            raise
        said = " ".join(str(error).split()).rstrip(".").replace(". ", "; ")
        raise InputError(f"Lightning refuses these options: {said}.") from error
