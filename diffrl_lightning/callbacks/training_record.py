"""Keeps what a training cost and how it went, for tables and learning curves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from diffrl_lightning.callbacks.versions import device_name, run_versions
from diffrl_lightning.files import write_whole
from diffrl_lightning.inputs import RangeChecked


class TrainingRecord(RangeChecked, pl.Callback):
    """Writes the seconds and the validations of a training that has ended.

    Its counts are part of every checkpoint, so that a run that was stopped and resumed records what one
    run in one piece would have: seconds that led to no checkpoint are not counted. Validations are
    kept out of the seconds, and what they logged is the learning curve.

    Args:
        path: the JSON file; default ``training.json`` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._curve: list[dict[str, float]] = []
        self._seconds = {"wall_seconds": 0.0, "cpu_seconds": 0.0}
        self._since: dict[str, float] | None = None  # the clocks, while they run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the clocks run."""
        self._since = _clocks()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop them."""
        self._count()
        self._since = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what was logged, and let the clocks run again."""
        if trainer.sanity_checking:
            return
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self._curve.append({"step": trainer.global_step} | self._seconds | logged)
        self._since = _clocks()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the record, now that the last checkpoint is whole."""
        self._count()
        self._since = None
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(self.path) if self.path else folder / "training.json"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        record = {
            "role": type(pl_module).__name__,
            "updates": trainer.global_step,
            **self._seconds,
            "curve": self._curve,
            "seed": pl_module.noise_seed,
            "dataset": data.datasets if hasattr(data, "datasets") else None,
            "device": device_name(pl_module.device),
            "versions": run_versions(),
        }
        write_whole(path, json.dumps(record, indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The counts up to now."""
        self._count()
        return {"curve": list(self._curve), "seconds": dict(self._seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._curve, self._seconds = list(state_dict["curve"]), dict(state_dict["seconds"])

    def _count(self) -> None:
        if self._since is not None:
            now = _clocks()
            for name, since in self._since.items():
                self._seconds[name] += now[name] - since
            self._since = now


def _clocks() -> dict[str, float]:
    return {"wall_seconds": time.perf_counter(), "cpu_seconds": time.process_time()}
