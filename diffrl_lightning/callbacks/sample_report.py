"""Holds a synthesizer's samples against held-out data while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.metrics import SampleQuality
from diffrl_lightning.types import Acting, at_least

Rows = dict[str, Tensor]
PARTS = ("observations", "actions", "rewards", "next_observations")  # a trajectory has no next ones


class SampleReport(pl.Callback):
    """Logs ``val/marginal`` and ``val/correlation`` of samples, and draws their histograms.

    Every validation draws samples with the same noise and holds them against rows of held-out episodes.
    The histograms go to TensorBoard and to ``samples_val.png`` in the run's folder.

    Args:
        num_samples: samples of a validation.
        sampling: how to sample, a ``SynthesisSampling``.

    Raises:
        InputError: if there are to be fewer than 2 samples.
    """

    def __init__(self, num_samples: int = 2_000, sampling: Acting | None = None) -> None:
        at_least(2, num_samples=num_samples)
        self.num_samples, self.sampling = num_samples, sampling

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse, before any training, what the model can not sample."""
        pl_module.check_sampling(self.sampling)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw, measure and log, in the first process."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule.val_data  # type: ignore[attr-defined]
        chosen = np.random.default_rng(0).permutation(len(data))[: self.num_samples]
        real = steps_of(data[torch.from_numpy(chosen)])
        generator = torch.Generator(pl_module.device).manual_seed(0)
        samples = pl_module.sample(self.num_samples, self.sampling, generator=generator)
        drawn = steps_of({name: value.float().cpu() for name, value in samples.items()})
        metric = SampleQuality(num_neighbours=0, sync_on_compute=False)  # this process alone
        metric.update(joined_rows(real), real=True)
        metric.update(joined_rows(drawn), real=False)
        result = {f"val/{name}": value for name, value in metric.compute().items()}
        pl_module.log_dict(result, prog_bar=True, rank_zero_only=True)
        figure = draw_marginals(real, drawn)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "samples_val.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("val/samples", figure, trainer.global_step)


def steps_of(batch: Any) -> Rows:
    """Transitions as they are, and the steps of trajectories (B, H, ...) as rows."""
    rows = {name: batch[name] for name in PARTS if name in batch}
    if rows["rewards"].ndim > 1:
        rows = {name: value.flatten(0, 1) for name, value in rows.items()}
    return rows


def joined_rows(rows: Rows) -> Tensor:
    """Rows of several arrays as one matrix (N, D)."""
    return torch.cat([rows[name].reshape(len(rows[name]), -1) for name in PARTS if name in rows], 1)


def draw_marginals(real: Rows, synthetic: Rows) -> Figure:
    """Histograms of every dimension, real and synthetic."""
    names = [
        f"{part} {i}" if real[part].ndim > 1 else part
        for part in PARTS
        if part in real
        for i in range(real[part].shape[1] if real[part].ndim > 1 else 1)
    ]
    x, y = joined_rows(real).numpy(), joined_rows(synthetic).numpy()
    columns = 7
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * columns, 1.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, i + 1)
        low, high = np.quantile(x[:, i], [0.001, 0.999])
        bins = np.linspace(low, high if high > low else low + 1, 50).tolist()
        axis.hist(x[:, i], bins, density=True, color="0.75", label="real")
        axis.hist(y[:, i], bins, density=True, histtype="step", color="C3", label="synthetic")
        axis.set_title(name, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure
