"""Writes what a synthesizer predicts: shards first, by all processes, then one dataset."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from diffrl_lightning.callbacks.checkpoint import stop_if_asked
from diffrl_lightning.callbacks.versions import versions
from diffrl_lightning.data.writers import check_output, is_whole, parts_folder, write_dataset
from diffrl_lightning.files import whole_file, write_whole
from diffrl_lightning.inputs import RangeChecked
from diffrl_lightning.types import Acting, InputError


class SampleWriter(RangeChecked, pl.Callback):
    """Makes ``diffrl predict`` write a dataset of ``num_samples`` samples of a synthesizer.

    Each shard is a job, which the datamodule hands to the model's ``predict_step``, and whose samples
    are written here. Shard k is drawn from (seed, k) alone and written whole or not at all, into
    ``<output>.parts``: a run that was killed resumes when it is started again, with any number of
    processes, and draws what is missing or damaged. At the end the shards are joined to one dataset,
    and removed.

    Args:
        output: a file that ends in .hdf5, in D4RL's layout, or the id of a Minari dataset; default
            nothing is written.
        num_samples: transitions, or trajectories.
        shard_size: samples of a shard, which are drawn as one batch.
        seed: of the noise.
        sampling: how to sample, a ``SynthesisSampling``.
    """

    def __init__(
        self,
        output: str | None = None,
        num_samples: int = 100_000,
        shard_size: int = 10_000,
        seed: int = 0,
        sampling: Acting | None = None,
    ) -> None:
        self.output, self.num_samples, self.shard_size = output, num_samples, shard_size
        self.seed, self.sampling = seed, sampling
        self.plain_sampling = {} if sampling is None else asdict(sampling)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Hand the datamodule the missing shards of this process, as jobs for the model.

        Raises:
            InputError: if the dataset can not be written, or the model can not sample so.
        """
        if stage != "predict" or self.output is None:
            return
        check_output(self.output, self.num_samples)
        pl_module.check_sampling(self.sampling)
        mine = range(trainer.global_rank, self.num_shards, trainer.world_size)
        missing = [k for k in mine if not is_whole(self._path(k))]
        # A process with nothing to do is given one empty job, for Lightning skips a run without any.
        jobs = _Jobs(self._job(k) for k in missing or [self.num_shards])
        trainer.datamodule.prediction_jobs = DataLoader(jobs, batch_size=None)  # type: ignore[attr-defined]

    @property
    def num_shards(self) -> int:
        """Shards of the whole dataset."""
        return -(-self.num_samples // self.shard_size)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check that the shards that lie there are of this model and of these options."""
        if self.output is None:
            return
        trainer.predict_loop.return_predictions = False  # they would all stay in memory
        plan = {
            "num_samples": self.num_samples,
            "shard_size": self.shard_size,
            "seed": self.seed,
            "sampling": self.plain_sampling,
            "weights": _digest(pl_module),
        }
        path = parts_folder(self.output) / "plan.json"
        if trainer.is_global_zero and not path.is_file():
            write_whole(path, json.dumps(plan))
        trainer.strategy.barrier()
        found = _read_plan(path)
        differing = [name for name in plan if found.get(name) != plan[name]]
        if differing:
            raise InputError(
                f"{str(path.parent)!r} holds a part of a dataset with other {', '.join(differing)}: "
                "go on with the same, or remove the folder."
            )
        self._plan, self._begin, self._drawn = plan, time.monotonic(), 0

    def on_predict_batch_end(  # noqa: D102
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: dict[str, Tensor] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.output is None or outputs is None:
            return
        arrays = {name: value.float().cpu().numpy() for name, value in outputs.items()}
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise InputError(
                f"The model's {', '.join(bad)} are NaN or infinite: train it longer or use another "
                "checkpoint; nothing of this shard was written."
            )
        with whole_file(self._path(batch["shard"])) as file:
            np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        self._drawn += batch["num_samples"]
        bar = getattr(trainer.progress_bar_callback, "_predict_progress_bar", None)
        if bar is not None:
            rate = self._drawn * trainer.world_size / (time.monotonic() - self._begin)
            bar.set_postfix_str(f"{rate:.0f} samples/s")
        stop_if_asked(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the dataset of the shards, once all are there."""
        if self.output is None:
            return
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            datamodule = trainer.datamodule  # type: ignore[attr-defined]
            provenance = {
                **self._plan,
                "role": type(pl_module).__name__,
                "global_step": pl_module.loaded_step,
                "trained_on": datamodule.datasets,
                **versions("diffrl_lightning"),
            }
            shards = [self._path(k) for k in range(self.num_shards)]
            write_dataset(self.output, shards, provenance, datamodule)
            shutil.rmtree(parts_folder(self.output), ignore_errors=True)
            seconds = time.monotonic() - self._begin
            rank_zero_info(
                f"{self.num_samples} samples in {self.output}; {self._drawn * trainer.world_size} "
                f"of them drawn now, {self._drawn * trainer.world_size / seconds:.0f} a second."
            )

    def _job(self, shard: int) -> dict[str, Any]:
        left = self.num_samples - shard * self.shard_size
        return {
            "shard": shard,
            "num_samples": max(0, min(self.shard_size, left)),
            "seed": self.seed,
            "sampling": self.plain_sampling,
        }

    def _path(self, shard: int) -> Path:
        assert self.output is not None
        return parts_folder(self.output) / f"{shard:06d}.npz"


class _Jobs(IterableDataset):
    """Jobs of this process; being no sequence, they are not shared out a second time."""

    def __init__(self, jobs: Iterable[dict[str, Any]]) -> None:
        self.jobs = list(jobs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} is damaged: remove its folder, and all is drawn anew.")
    return found


def _digest(module: torch.nn.Module) -> str:
    """A fingerprint of all weights and statistics."""
    result = hashlib.sha256()
    state: Mapping[str, Tensor] = module.state_dict()
    for name, value in state.items():
        result.update(name.encode())
        result.update(value.detach().cpu().float().numpy().tobytes())
    return result.hexdigest()[:16]
