"""Checkpoints: the best one, and the last, however a run ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffrl_lightning.types import InputError, RunError


class Checkpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, with ``best`` and ``last`` at every setting of validation.

    The best ones by ``monitor`` are written after a validation, by its own figures. ``last`` is
    written after each validation, when a trigger of the arguments asks for it, at the end of training,
    and where training stops before: at an exception, at SIGTERM, and at Ctrl+C, which waits for the
    end of the step (a second one does not). From it a run goes on as if nothing had happened.
    """

    began = False  # whether anything was learned in this process
    _training = False  # whether there is something to keep
    _interrupted = False  # by Ctrl+C
    _validated = False  # whether the last validation is over
    _handler: Any = None  # of SIGINT, before this one's

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over Ctrl+C: stopped within a step, a run could not go on from there."""
        super().on_train_start(trainer, pl_module)
        self.began, self._training, self._interrupted = True, True, False
        main = threading.current_thread() is threading.main_thread()
        if main and trainer.world_size == 1:
            self._handler = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, lambda *_: self._interrupt(trainer))

    def _interrupt(self, trainer: pl.Trainer) -> None:
        if self._interrupted or trainer.validating:
            raise KeyboardInterrupt
        self._interrupted = True
        print("\nStopping after this step; Ctrl+C again stops at once.", file=sys.stderr)

    def on_train_batch_start(  # noqa: D102
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before a validation rather than after it, where that was asked for."""
        self._validated = False
        self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what Lightning writes where nothing is validated."""
        super().on_train_epoch_end(trainer, pl_module)
        self._stop_if_asked(trainer)  # Lightning's own place, after this, can not be resumed from

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        stop_if_asked(trainer)

    def on_train_batch_end(  # noqa: D102
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if self._of_validation:
            if self._due(trainer):
                self._write_last(trainer)
        else:
            super().on_train_batch_end(trainer, pl_module, *args)

    @property
    def _of_validation(self) -> bool:
        """Whether the monitor is measured in validations, and stale at other times."""
        return (self.monitor or "").startswith("val/")

    def _due(self, trainer: pl.Trainer) -> bool:
        """Whether ``every_n_train_steps`` or ``train_time_interval`` asks for a checkpoint now."""
        if self._train_time_interval is not None:
            now, last = time.monotonic(), self._last_time_checked or 0.0
            due = now - last >= self._train_time_interval.total_seconds()
            due = trainer.strategy.broadcast(due)
            self._last_time_checked = now if due else last
            return due
        every = self._every_n_train_steps
        return every > 0 and trainer.global_step % every == 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best ones and the last."""
        self._validated = True
        epochs = self._every_n_epochs
        if not self._writes(trainer) or (epochs and (trainer.current_epoch + 1) % epochs):
            return
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was learned since."""
        self._write_last(trainer)
        self._give_back()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Keep the last whole step; of several processes only where all of them stop."""
        if not isinstance(exception, KeyboardInterrupt):  # then Lightning ignores another one
            self._give_back()
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        between_steps = not getattr(pl_module, "updating", False)  # else weights are of two
        training, self._training = self._training, False
        if not (
            training and together and between_steps and self.save_last and self._writes(trainer)
        ):
            return
        try:
            self._write_last(trainer)
        except (InputError, RunError) as error:  # the weights, or the disk: older files stay
            rank_zero_info(f"No checkpoint of this step: {error}")
            return
        rank_zero_info(
            f"Stopped at step {trainer.global_step}; go on from {os.path.relpath(self.last_model_path)}"
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the checkpoint one from which a run goes on exactly."""
        in_validation = trainer.validating and not self._validated
        _rewind(checkpoint["loops"]["fit_loop"], trainer, in_validation)

    def _write_last(self, trainer: pl.Trainer) -> None:
        if self.save_last and self._writes(trainer) and not self._written(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _writes(self, trainer: pl.Trainer) -> bool:
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        return training and not getattr(trainer, "fast_dev_run", False)

    def _written(self, trainer: pl.Trainer) -> bool:
        return self._last_global_step_saved == trainer.global_step

    def _give_back(self) -> None:
        """Let Ctrl+C do what it did before training."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


def stop_if_asked(trainer: pl.Trainer) -> None:
    """End a run that has received SIGTERM, where it can be resumed; several processes agree elsewhere.

    Raises:
        SIGTERMException: which Lightning hands to all callbacks.
    """
    if trainer.received_sigterm and trainer.world_size == 1:
        raise SIGTERMException


def _rewind(loops: dict[str, Any], trainer: pl.Trainer, in_validation: bool) -> None:
    """Set a checkpoint's counts of the loops back to where a resumed run is to begin.

    Lightning resumes after the last batch that was drawn, and loses its way at an epoch's end. Here
    batches that no step of the optimiser has learned from are drawn again, a validation that was not
    finished is run anew, and after an epoch the next one begins.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    current = batches["current"]
    if epochs["current"]["ready"] == epochs["current"]["processed"] > 0:
        for counts in (epochs["total"], epochs["current"]):
            counts["completed"] = counts["processed"]
            counts["ready"] = counts["started"] = counts["processed"] + 1
        optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        schedule = loops["epoch_loop.scheduler_progress"]
        for counts in (
            current,
            validation["total"],
            schedule["current"],
            optimizer["step"]["current"],
            optimizer["zero_grad"]["current"],
        ):
            counts.update(dict.fromkeys(counts, 0))
        batches["is_last_batch"] = False
        return
    last = current["processed"] == trainer.num_training_batches  # steps with fewer batches
    pending = 0 if last else current["processed"] % trainer.accumulate_grad_batches
    if current["processed"] < current["ready"] or pending:
        for counts in (batches["total"], current):
            counts.update(dict.fromkeys(counts, counts["processed"] - pending))
    if in_validation:
        validation["current"] = dict.fromkeys(validation["current"], 0)
        for counts in (validation["total"], validation["current"]):  # as if in its first batch
            counts["processed"] = counts["completed"]
            counts["ready"] = counts["started"] = counts["completed"] + 1
