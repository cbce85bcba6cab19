"""The command line: Lightning's, with the links and defaults of this library."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from diffrl_lightning.callbacks import Checkpoint, Rollout, SampleWriter
from diffrl_lightning.modules import DiffusionModule, Synthesizer
from diffrl_lightning.modules.base import check_data
from diffrl_lightning.modules.checkpoints import ROLE_KEY, read_checkpoint
from diffrl_lightning.types import InputError

_LINKS = ("observation_dim", "action_dim", "goal_dim", "horizon", "stride", "num_origins")
_CKPT_WORDS = ("best", "last", "hpc")


class DiffRLCLI(LightningCLI):
    """Fills the model's dimensions from the data; adds ``rollout``, ``synthesis``, ``checkpoint``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add groups, links and defaults."""
        for name in _LINKS:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
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

    def before_instantiate_classes(self) -> None:
        """Refuse data that the role does not learn from, before their dimensions confuse it.

        Without rollouts in validation, choose the checkpoint by what the role has instead.
        """
        config = self.config[self.config.subcommand]
        role = _named(config.model.class_path)
        if config.get("data"):
            check_data(role, _named(config.data.class_path))
        if self.config.subcommand == "predict" and not issubclass(role, Synthesizer):
            raise InputError(
                f"{role.__name__} makes no dataset: predict with a DataSynthesizer or a "
                "TrajectorySynthesizer."
            )
        if config.rollout.val_episodes == 0 and config.checkpoint.monitor == "val/return_mean":
            config.checkpoint.monitor, config.checkpoint.mode = role.chosen_by, "min"

    def before_fit(self) -> None:
        """Refuse, before training, a test that has no environment or of a role that does not act."""
        if self._get(self.config, "test_after_fit"):
            self.datamodule.make_env().close()
            self.model.make_policy()

    def after_fit(self) -> None:
        """Test the best checkpoint, where that was asked for."""
        if self._get(self.config, "test_after_fit"):
            # Without a validation there is no best one, and the model is tested as it is.
            checkpoints: Any = self.trainer.checkpoint_callback
            best = getattr(checkpoints, "best_model_path", None) or None
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best)

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


@contextmanager
def exit_on_bad_input(name: str = "diffrl") -> Iterator[None]:
    """End the program with one sentence and exit code 2 where the input is bad."""
    try:
        yield
    except (ValueError, UnpicklingError) as error:
        cause: BaseException | None = error  # the parser wraps what constructors raise
        while cause is not None and not isinstance(cause, InputError | UnpicklingError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        if isinstance(cause, UnpicklingError):
            cause = InputError(
                "The checkpoint holds pickled objects, which could run code and are not loaded: use "
                "a checkpoint that this library wrote."
            )
        print(f"{name}: error: {cause}", file=sys.stderr)
        sys.exit(2)


def main(args: Any = None) -> None:
    """Run the command line; bad input ends it with one sentence and exit code 2."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    for harmless in (
        ".*does not have many workers.*",  # batches come whole from memory
        ".*in eval mode at the start of training.*",  # the weight average always is
        ".*treespec, LeafSpec.*",
        ".*Your `IterableDataset` has `__len__` defined.*",  # and has its own process's part alone
        ".*Metric `SpearmanCorrcoef` will save all.*",  # those of one validation
    ):
        warnings.filterwarnings("ignore", message=harmless)
    torch.set_float32_matmul_precision("high")
    with exit_on_bad_input():
        DiffRLCLI(
            DiffusionModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "inference_mode": False,  # value guidance needs gradients in tests
                "num_sanity_val_steps": 0,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": "runs", "name": "diffrl"},
                },
            },
            parser_kwargs={"description": "Diffusion models for reinforcement learning."},
            args=args,
        )


def _named(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _is_news(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage() and "💡" not in record.getMessage()
