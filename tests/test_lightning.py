"""Lightning's own features work with the roles and their data."""

import logging
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import fit_args
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from modules.role_tester import quiet_trainer

from diffrl_lightning import TD3BC, SequenceData, TransitionData
from diffrl_lightning.callbacks import Checkpoint
from diffrl_lightning.cli import main


@pytest.fixture
def role():
    return TD3BC(3, 1, hidden_dim=8)


@pytest.fixture
def data(pendulum_file):
    return TransitionData(str(pendulum_file), batch_size=32)


def test_tuners(tmp_path, role, data):
    trainer = quiet_trainer(tmp_path, max_steps=4, limit_val_batches=1)
    found = Tuner(trainer).lr_find(role, datamodule=data, num_training=30, attr_name="lr")
    assert role.hparams["lr"] == found.suggestion()
    size = Tuner(trainer).scale_batch_size(role, datamodule=data, steps_per_trial=2, max_trials=2)
    assert data.batch_size == size


def test_tuners_as_callbacks(tmp_path, role, data):
    callbacks = [
        BatchSizeFinder(steps_per_trial=2, max_trials=2),
        LearningRateFinder(num_training_steps=30, attr_name="lr"),
    ]
    trainer = quiet_trainer(tmp_path, max_steps=4, limit_val_batches=1, callbacks=callbacks)
    trainer.fit(role, datamodule=data)
    assert trainer.global_step == 4


@pytest.mark.parametrize("options", [{"barebones": True}, {"log_every_n_steps": 0}])
def test_without_logging(tmp_path, role, data, options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", **({} if "barebones" in options else plain), **options
    )
    trainer.fit(role, datamodule=data)
    assert trainer.global_step == 3


def test_the_command_line_without_checkpoints_and_without_logger(
    tmp_path, monkeypatch, pendulum_file
):
    """No run writes over another's files."""
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--rollout.val_episodes=0")
    args = fit_args(pendulum_file, *short, role="td3_bc")
    main([*args, "--trainer.enable_checkpointing=false"])
    main([*args, "--trainer.logger=false"])
    main([*args, "--trainer.logger=false"])
    main(
        [*args, "--trainer.fast_dev_run=true", "--test_after_fit=true", "--rollout.num_episodes=1"]
    )
    found = {str(p.relative_to(tmp_path / "runs/diffrl")) for p in tmp_path.rglob("*.ckpt")}
    runs = ("version_1", "version_2")
    assert found == {f"{run}/checkpoints/{name}.ckpt" for run in runs for name in ("best", "last")}
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_data_without_an_environment(tmp_path, role, data, monkeypatch, tmp_path_factory):
    from conftest import write_d4rl

    monkeypatch.chdir(tmp_path)
    path = write_d4rl(tmp_path_factory.mktemp("data") / "other.hdf5", observation_dim=4)
    assert SequenceData(str(path), horizon=8).env_id is None
    quiet = ("--rollout.val_episodes=0", "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    main(fit_args(path, *quiet, role="td3_bc"))
    assert (tmp_path / "runs/diffrl/version_0/checkpoints/best.ckpt").is_file()


def test_bad_input_leaves_no_folder_of_a_run(tmp_path, monkeypatch, pendulum_file, capsys):
    """Data are read after loggers have begun; what other runs have written stays."""
    from conftest import write_d4rl

    short = ("--rollout.val_episodes=0", "--trainer.max_steps=1", "--trainer.val_check_interval=1")
    bad = write_d4rl(tmp_path / "bad.hdf5", rewards=np.full(1000, np.nan, np.float32))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for path, logger in ((bad, ()), (bad, ("--trainer.logger=false",))):
        with pytest.raises(SystemExit):
            main(fit_args(path, *short, *logger, role="td3_bc"))
        assert "NaN" in capsys.readouterr().err
        assert not list(Path().iterdir())
    main(fit_args(pendulum_file, *short, role="td3_bc"))
    with pytest.raises(SystemExit):
        main(fit_args(bad, *short, role="td3_bc"))
    assert [path.name for path in Path("runs/diffrl").iterdir()] == ["version_0"]


def test_a_checkpoint_before_training_begins_none_of_it(tmp_path, role, data):
    """As tuners write one, and go back to it."""
    saver = Checkpoint(tmp_path, monitor=None, save_last=True)
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[saver], enable_checkpointing=True)
    trainer.strategy.connect(role)
    trainer.save_checkpoint(tmp_path / "begin.ckpt")
    loops = torch.load(tmp_path / "begin.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert set(loops["epoch_progress"]["total"].values()) == {0}
