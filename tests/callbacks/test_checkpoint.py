"""The last checkpoint is the last one, and the best the best."""

import pytest
import torch
from modules.role_tester import quiet_trainer

from diffrl_lightning import BehaviourCloning, TransitionData
from diffrl_lightning.callbacks import Checkpoint


class Worsening(BehaviourCloning):
    """Its first validation is its best."""

    def validation_step(self, batch, batch_idx):
        self.log("val/score", -float(self.global_step))


@pytest.mark.parametrize("max_steps", [6, 7])
@pytest.mark.parametrize("monitor", ["val/score", None])
def test_the_last_one_is_written_whatever_the_best_is(tmp_path, pendulum_file, monitor, max_steps):
    checkpoint = Checkpoint(
        tmp_path, "best", monitor=monitor, mode="max", save_last=True, enable_version_counter=False
    )
    trainer = quiet_trainer(
        tmp_path,
        max_steps=max_steps,
        val_check_interval=2,
        limit_val_batches=1,
        callbacks=[checkpoint],
        enable_checkpointing=True,
    )
    data = TransitionData(str(pendulum_file), batch_size=32)
    trainer.fit(Worsening(3, 1, hidden_dim=8), data)

    def step(name):
        return torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["global_step"]

    assert step("last") == max_steps
    assert step("best") == (2 if monitor else 6)
