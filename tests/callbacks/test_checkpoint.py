"""The last checkpoint is the last one, and the best the best, however a run ends."""

import os
import shutil
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from modules.role_tester import quiet_trainer

from diffrl_lightning import TD3BC, BehaviourCloning, InputError, Rollout, TransitionData
from diffrl_lightning.callbacks import Checkpoint
from diffrl_lightning.types import RunError


class Worsening(BehaviourCloning):
    """Its first validation is its best."""

    def validation_step(self, batch, batch_idx):
        self.log("val/score", -float(self.global_step))


class At(pl.Callback):
    """Does something once, in a hook of a step."""

    def __init__(self, step, hook, action):
        self.step, self.action = step, action
        setattr(self, hook, self.act)

    def act(self, trainer, *args):
        if trainer.global_step == self.step:
            self.step = None
            self.action()


def fail():
    raise RuntimeError("something")


def interrupt(number):
    return lambda: os.kill(os.getpid(), number)


def fit(folder, dataset, *callbacks, module=None, path=None, **options):
    """Train with checkpoints in a folder."""
    saver = Checkpoint(
        folder,
        "best",
        monitor="val/score",
        mode="max",
        save_last=True,
        enable_version_counter=False,
        every_n_train_steps=options.pop("every_n_train_steps", None),
    )
    options = {"max_steps": 12, "val_check_interval": 5, "check_val_every_n_epoch": None} | options
    trainer = quiet_trainer(
        folder,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, saver],
        enable_checkpointing=True,
        **options,
    )
    pl.seed_everything(0, verbose=False)
    module = module or Worsening(3, 1, hidden_dim=8)
    trainer.fit(module, datamodule=TransitionData(dataset, batch_size=64), ckpt_path=path)
    return trainer


def same_weights(*trainers):
    ours, theirs = (trainer.lightning_module.state_dict().values() for trainer in trainers)
    return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def step_of(folder, name):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)["global_step"]


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


# 891 transitions to train on are 13 batches of 64 an epoch.
@pytest.mark.parametrize(
    ("interval", "epochs", "every", "best", "last"),
    [(1.0, 1, None, 13, 28), (0.5, 1, None, 6, 28), (5, None, None, 5, 28), (1.0, 2, None, 26, 28),
     (10, None, 3, 10, 28), (None, 1, None, 13, 28)],
)  # fmt: skip
def test_best_and_last_at_every_setting_of_validation(
    tmp_path, pendulum_file, interval, epochs, every, best, last
):
    fit(
        tmp_path,
        str(pendulum_file),
        max_steps=28,
        val_check_interval=interval,
        check_val_every_n_epoch=epochs,
        every_n_train_steps=every,
    )
    assert (step_of(tmp_path, "best"), step_of(tmp_path, "last")) == (best, last)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_batch_start"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("action", "raised"),
    [(fail, RuntimeError), (interrupt(signal.SIGTERM), SIGTERMException),
     (interrupt(signal.SIGINT), SystemExit)],
)  # fmt: skip
def test_a_run_that_is_stopped_keeps_its_last_step(
    tmp_path, pendulum_file, hook, accumulate, action, raised
):
    """Best stays as it was, and from last the run goes on as if nothing had happened."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    data, options = str(pendulum_file), {"accumulate_grad_batches": accumulate}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = fit(whole, data, **options)
    with pytest.raises(raised):
        fit(cut, data, At(7, hook, action), **options)
    # Validations are counted in batches.
    assert (step_of(cut, "best"), step_of(cut, "last")) == (5 // accumulate, 7)
    signal.signal(signal.SIGINT, handlers[0])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed = fit(cut, data, path=cut / "last.ckpt", **options)
    assert resumed.global_step == 12
    assert same_weights(resumed, expected)


class Keep(pl.Callback):
    """Keeps the last checkpoint as it was before some of the batches."""

    def __init__(self, folder, batches):
        self.folder, self.batches = folder, batches

    def on_train_batch_start(self, trainer, *args):
        drawn = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if drawn in self.batches:
            shutil.copy(self.folder / "last.ckpt", self.folder / f"{drawn}.kept")


@pytest.mark.parametrize("interval", [1, 1.0])
def test_every_last_checkpoint_is_resumed_exactly(tmp_path, pendulum_file, interval):
    """In a window of accumulated gradients, at the end of an epoch and at the beginning of the next."""
    options = {
        "accumulate_grad_batches": 2,
        "val_check_interval": interval,
        "check_val_every_n_epoch": 1 if isinstance(interval, float) else None,
    }
    batches = (14,) if isinstance(interval, float) else (4, 5, 14, 15, 16)
    whole = tmp_path / "whole"
    expected = fit(whole, str(pendulum_file), Keep(whole, batches), **options)
    for batch in batches:
        path = whole / f"{batch}.kept"
        resumed = fit(tmp_path / "resumed", str(pendulum_file), path=path, **options)
        assert same_weights(resumed, expected), batch


def test_a_validation_that_was_cut_short_is_run_anew(tmp_path, pendulum_file):
    with pytest.raises(RuntimeError, match="something"):
        fit(tmp_path, str(pendulum_file), At(5, "on_validation_epoch_end", fail))
    assert step_of(tmp_path, "last") == 5
    assert not (tmp_path / "best.ckpt").exists()
    fit(tmp_path, str(pendulum_file), path=tmp_path / "last.ckpt")
    assert step_of(tmp_path, "best") == 5


def test_a_run_that_diverges_stops_and_keeps_what_was_finite(tmp_path, pendulum_file):
    def poison():
        with torch.no_grad():
            next(module.actor.parameters()).fill_(torch.nan)

    module = TD3BC(3, 1, hidden_dim=8)
    module.validation_step = lambda batch, batch_idx: module.log("val/score", 0.0)
    with pytest.raises(RunError, match=r"at step 8 the loss is NaN .* \(kept: .*last\.ckpt\)"):
        fit(
            tmp_path,
            str(pendulum_file),
            At(7, "on_train_batch_end", poison),
            module=module,
            log_every_n_steps=9,
        )
    assert step_of(tmp_path, "last") == step_of(tmp_path, "best") == 5
    module = TD3BC(3, 1, hidden_dim=8)
    module.validation_step = lambda batch, batch_idx: module.log("val/score", 1.0)
    with pytest.raises(RunError, match=r"at step 10 actor\.\S+ is NaN .*last\.ckpt"):
        fit(tmp_path, str(pendulum_file), At(7, "on_train_batch_end", poison), module=module)
    assert step_of(tmp_path, "last") == step_of(tmp_path, "best") == 5


def test_fast_dev_run_writes_nothing(tmp_path, pendulum_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "here", str(pendulum_file), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_bare_loaders_leave_the_normalisers_without_statistics(tmp_path, pendulum_file):
    data = TransitionData(str(pendulum_file))
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(InputError, match="datamodule=data"):
        quiet_trainer(tmp_path, max_steps=1).fit(
            Worsening(3, 1, hidden_dim=8), data.train_dataloader()
        )


def test_sigterm_in_a_rollout_ends_it_at_once(tmp_path, pendulum_file):
    class Sent(Rollout):
        def on_validation_epoch_end(self, trainer, module):
            os.kill(os.getpid(), signal.SIGTERM)
            super().on_validation_epoch_end(trainer, module)

    rollout = Sent(val_episodes=2)
    with pytest.raises(SIGTERMException):
        fit(tmp_path, str(pendulum_file), rollout)
    assert rollout.evaluation is None
    assert step_of(tmp_path, "last") == 5
