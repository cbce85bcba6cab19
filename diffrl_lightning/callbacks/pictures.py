"""Pictures of a run: as PNG in its folder, and in TensorBoard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from diffrl_lightning.inputs import RangeChecked


class ValidationPicture(RangeChecked, pl.Callback, ABC):
    """Draws ``NAME_val.png``, ``val/NAME`` in TensorBoard, after each validation."""

    val_metrics: ClassVar[tuple[str, ...]] = ()  # that validations log
    picture: ClassVar[str]  # NAME

    @abstractmethod
    def draw(self, trainer: pl.Trainer, pl_module: Any) -> Figure:
        """The picture; called in the first process alone, without gradients, from a fixed seed."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw, and leave the state of the random numbers as it was."""
        folder = run_folder(trainer)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            figure = self.draw(trainer, pl_module)
        save_picture(trainer, figure, folder / f"{self.picture}_val.png", f"val/{self.picture}")


def run_folder(trainer: pl.Trainer) -> Path:
    """Where a run writes; every process must ask, as Lightning broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def save_picture(trainer: pl.Trainer, figure: Figure, path: Path, tag: str) -> None:
    """Write a PNG, and the same to every TensorBoard logger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, trainer.global_step)
