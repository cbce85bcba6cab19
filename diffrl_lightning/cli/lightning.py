"""Lightning's commands, ``diffrl fit`` and others, with the links and defaults of this library."""

from __future__ import annotations

import inspect
import logging
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffrl_lightning.callbacks import Checkpoint, Rollout, SampleWriter
from diffrl_lightning.cli.options import check_options, class_named, one_sentence
from diffrl_lightning.cli.parsing import SentenceParser, with_paths
from diffrl_lightning.modules import Synthesizer
from diffrl_lightning.modules.base import Role
from diffrl_lightning.modules.checkpoint_files import ROLE_KEY, read_checkpoint
from diffrl_lightning.modules.checkpoints import check_buildable
from diffrl_lightning.modules.checks import check_data
from diffrl_lightning.types import InputError

_LINKS = ("observation_dim", "action_dim", "goal_dim", "horizon", "stride", "num_origins")
_CKPT_WORDS = ("best", "last", "hpc")
_VAL_CHECK_INTERVAL = 2000
_BEGUN = re.compile(r"events\.out\.tfevents\..*|(hparams|config)\.yaml|metrics\.csv")
_TRAINER_DEFAULTS = {
    "inference_mode": False,  # value guidance needs gradients in tests
    "num_sanity_val_steps": 0,
    "val_check_interval": _VAL_CHECK_INTERVAL,  # optimiser steps, whatever an epoch is
    "check_val_every_n_epoch": None,
    "limit_val_batches": 20,
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs"},
    },
}
_HARMLESS = (
    ".*does not have many workers.*",  # batches come whole from memory
    ".*in eval mode at the start of training.*",  # the weight average always is
    ".*treespec, LeafSpec.*",
    ".*Your `IterableDataset` has `__len__` defined.*",  # and has its own process's part alone
    ".*Metric `SpearmanCorrcoef` will save all.*",  # those of one validation
    ".*args parameter is intended to run from within Python.*",
)


class DiffRLCLI(LightningCLI):
    """Fills the model's dimensions from the data; adds ``rollout``, ``synthesis``, ``checkpoint``."""

    _own_folder: str | None = None  # of a run without a logger

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add groups, links and defaults."""
        for name in _LINKS:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.add_argument(
            "--name",
            type=str,
            default="diffrl",
            help="The run's name: it is written to runs/NAME/version_0, 1, ...",
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="After fit, test the checkpoint with the best rollout and write results.json.",
        )
        parser.add_lightning_class_args(Rollout, "rollout")
        parser.add_lightning_class_args(SampleWriter, "synthesis")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/return_mean",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse Lightning's own options where they are out of range."""
        super().parse_arguments(parser, args)
        check_options(self.config[self.config.subcommand], self.config.subcommand)

    def before_instantiate_classes(self) -> None:
        """Refuse data that the role does not learn from, before their dimensions confuse it.

        Without rollouts in validation, choose the checkpoint by what the role has instead.
        """
        config = self.config[self.config.subcommand]
        role = class_named(config.model.class_path)
        if config.get("data"):
            check_data(role, class_named(config.data.class_path))
        if self.config.subcommand == "predict" and not issubclass(role, Synthesizer):
            raise InputError(
                f"{role.__name__} makes no dataset: predict with a DataSynthesizer or a "
                "TrajectorySynthesizer."
            )
        if config.rollout.val_episodes == 0 and config.checkpoint.monitor == "val/return_mean":
            config.checkpoint.monitor, config.checkpoint.mode = role.monitor, "min"
        if config.trainer.barebones:
            raise InputError(
                "trainer.barebones times a loop without checkpoints and rollouts: use it in Python."
            )
        _count_epochs_or_steps(config.trainer)

    def instantiate_classes(self) -> None:
        """Name the logger after the run where its own name is not given; keep the file as it was."""
        given = self.config.clone()
        config = self.config[self.config.subcommand]
        for logger in _loggers(config.trainer):
            default = inspect.signature(class_named(logger.class_path)).parameters.get("name")
            if (
                default is not None
                and logger.init_args.get("name", default.default) == default.default
            ):
                logger.init_args.name = config.name
        self._given = given
        with one_sentence():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Save the configuration with ``name`` alone, so that it can be given anew with another.

        Without a logger the run has its folder all the same, so that none writes over another.
        """
        config = self._given[self.config.subcommand]
        if not config.trainer.logger and not config.trainer.default_root_dir:
            self._own_folder = str(_next_version(Path("runs") / config.name))
            kwargs["default_root_dir"] = self._own_folder
        if config.trainer.enable_checkpointing is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        self.config = self._given
        with one_sentence(ValueError, TypeError):
            return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; where bad input ends it before anything was done, take its folder away again."""
        places = [logger.log_dir for logger in self.trainer.loggers] or [self._own_folder]
        new = [_missing(Path(place)) for place in places if place and not Path(place).exists()]
        try:
            super()._run_subcommand(subcommand)
        except InputError:
            counted = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            if not getattr(self.trainer.checkpoint_callback, "began", counted):
                for folders in new:
                    _remove_unused(folders)
            raise

    def before_fit(self) -> None:
        """Refuse, before training, a test that could not be run."""
        if self._get(self.config, "test_after_fit"):
            self._get(self.config_init, "rollout").check(self.model, self.datamodule)

    def after_fit(self) -> None:
        """Test the best checkpoint, where that was asked for, and say where its results are."""
        if self._get(self.config, "test_after_fit"):
            # Without a validation there is no best one, and the model is tested as it is.
            checkpoints: Any = self.trainer.checkpoint_callback
            best = getattr(checkpoints, "best_model_path", None) or None
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best)
            if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                return
            tested = os.path.relpath(best) if best else "the model as it is at the end"
            where = self._get(self.config_init, "rollout").results_path
            rank_zero_info(f"Tested {tested}: {where or f'{self.trainer.log_dir}/results.json'}")

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint before anything is built, and take the model's arguments from it."""
        config = self.config.get(self.config.get("subcommand") or "")
        path = config.get("ckpt_path") if config else None
        if not path or path in _CKPT_WORDS:
            return
        checkpoint = read_checkpoint(str(path))
        role = checkpoint.get(ROLE_KEY)
        wanted = config.model.class_path.rsplit(".", 1)[-1]
        if role != wanted:
            raise InputError(
                f"{str(path)!r} holds {role or 'no role of this library'}, but the configuration "
                f"asks for {wanted}: give a checkpoint or a configuration of the same role."
            )
        check_buildable(checkpoint, str(path))
        hparams = checkpoint["hyper_parameters"]
        given = config.model.get("init_args") or {}
        # Where other checkpoints lie by now is not a matter of this one.
        moved = [name for name in hparams if name.endswith("_ckpt") and given.get(name)]
        for name in ("_instantiator", "_class_path", *_LINKS, *moved):
            hparams.pop(name, None)
        model = {"class_path": config.model.class_path, "init_args": hparams}
        self.config = self.parser.parse_object(
            {self.config.subcommand: {"model": model}}, self.config
        )


def run(args: Sequence[str]) -> None:
    """Run one of Lightning's commands.

    Args:
        args: of the command line; ``-c`` takes a file or the name of a shipped configuration.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    for harmless in _HARMLESS:
        warnings.filterwarnings("ignore", message=harmless)
    torch.set_float32_matmul_precision("high")
    try:
        DiffRLCLI(
            Role,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_class=SentenceParser,
            parser_kwargs={"prog": "diffrl"},
            args=list(with_paths(args)),
        )
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)


def _count_epochs_or_steps(trainer: Any) -> None:
    """Let validation follow epochs where either of the two arguments is given so."""
    if trainer.check_val_every_n_epoch is None:
        if isinstance(trainer.val_check_interval, float):  # a share of an epoch
            trainer.check_val_every_n_epoch = 1
    elif trainer.val_check_interval == _VAL_CHECK_INTERVAL:
        trainer.val_check_interval = None


def _missing(folder: Path) -> list[Path]:
    """A folder and those around it that are not there yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_unused(folders: Sequence[Path]) -> None:
    """Remove a folder that holds nothing but what loggers begin with, and empty ones around it."""
    run, *around = folders
    files = [path for path in run.rglob("*") if not path.is_dir()]
    if not run.is_dir() or any(not _BEGUN.fullmatch(path.name) for path in files):
        return
    shutil.rmtree(run)
    for folder in around:
        with suppress(OSError):  # another run has begun there
            folder.rmdir()


def _next_version(folder: Path) -> Path:
    """The folder of a run that comes after those that are there, as TensorBoard's logger counts."""
    taken = [re.fullmatch(r"version_(\d+)", path.name) for path in folder.glob("version_*")]
    return folder / f"version_{max([int(found[1]) + 1 for found in taken if found], default=0)}"


def _loggers(trainer: Any) -> list[Any]:
    given = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [logger for logger in given if hasattr(logger, "class_path")]


def _is_news(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage() and "💡" not in record.getMessage()
