"""What a training cost and how it went is recorded alike whether or not it was stopped."""

import json
import time

import lightning.pytorch as pl
import pytest
from modules.role_tester import quiet_trainer

from diffrl_lightning import BehaviourCloning, TrainingRecord, TransitionData
from diffrl_lightning.callbacks import Checkpoint

SLEEP = 0.3  # seconds of a validation


class SlowValidation(BehaviourCloning):
    """Waits in validations, which are not to be counted."""

    def validation_step(self, batch, batch_idx):
        time.sleep(SLEEP)
        self.log("val/loss", float(self.global_step))


class Stop(pl.Callback):
    """Stops a training by an exception."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 7:
            raise RuntimeError("stopped")


def train(folder, pendulum_file, *callbacks, ckpt_path=None):
    record = TrainingRecord(str(folder / "record.json"))
    checkpoint = Checkpoint(folder / "checkpoints", monitor="val/loss", save_last=True)
    trainer = quiet_trainer(
        folder,
        max_steps=12,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        enable_checkpointing=True,
        callbacks=[*callbacks, record, checkpoint],
    )
    data = TransitionData(str(pendulum_file), batch_size=32)
    trainer.fit(SlowValidation(3, 1, hidden_dim=8), datamodule=data, ckpt_path=ckpt_path)
    return json.loads((folder / "record.json").read_text())


def test_seconds_without_validations_and_the_curve(tmp_path, pendulum_file):
    began = time.perf_counter()
    record = train(tmp_path, pendulum_file)
    took = time.perf_counter() - began
    assert record["updates"] == 12
    assert record["role"] == "SlowValidation"
    assert [(p["step"], p["val/loss"]) for p in record["curve"]] == [(k, k) for k in (3, 6, 9, 12)]
    assert took > 4 * SLEEP
    assert 0 < record["wall_seconds"] < took - 4 * SLEEP
    assert record["cpu_seconds"] > 0
    walls = [p["wall_seconds"] for p in record["curve"]]
    assert walls == sorted(walls)
    assert walls[-1] <= record["wall_seconds"]


def test_a_stopped_training_counts_on(tmp_path, pendulum_file):
    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path, pendulum_file, Stop())
    assert not (tmp_path / "record.json").exists(), "it has not ended"
    last = tmp_path / "checkpoints" / "last.ckpt"
    record = train(tmp_path, pendulum_file, ckpt_path=str(last))
    assert [p["step"] for p in record["curve"]] == [3, 6, 9, 12]
    walls = [p["wall_seconds"] for p in record["curve"]]
    assert walls == sorted(walls), "seconds go on where they stood"
    assert record["updates"] == 12
