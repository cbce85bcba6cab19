"""Samples of a synthesizer against held-out data."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure

from diffrl_lightning.callbacks.pictures import ValidationPicture
from diffrl_lightning.figures.charts import draw_marginals
from diffrl_lightning.inputs import at_least
from diffrl_lightning.metrics.synthesis import SampleQuality, column_names, joined_rows, steps_of
from diffrl_lightning.types import Acting


class SampleReport(ValidationPicture):
    """Logs ``val/marginal`` and ``val/correlation`` of samples, and draws their histograms.

    Every validation draws samples from the same noise and compares them with held-out rows.
    The histograms go to TensorBoard and to ``samples_val.png`` in the run's folder.

    Args:
        num_samples: samples of a validation.
        sampling: how samples are drawn, a ``SynthesisSampling``; default as the class has it.
    """

    picture = "samples"
    val_metrics = ("marginal", "correlation")

    def __init__(self, num_samples: int = 2_000, sampling: Acting | None = None) -> None:
        at_least(2, num_samples=num_samples)
        self.num_samples, self.sampling = num_samples, sampling

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse, before any training, what the model can not sample."""
        pl_module.check_sampling(self.sampling)

    def draw(self, trainer: pl.Trainer, pl_module: Any) -> Figure:
        """Histograms of every dimension; logs how well they agree."""
        data: Any = trainer.datamodule.val_data  # type: ignore[attr-defined]
        chosen = np.random.default_rng(0).permutation(len(data))[: self.num_samples]
        real = steps_of(data[torch.from_numpy(chosen)])
        generator = torch.Generator(pl_module.device).manual_seed(0)
        samples = pl_module.sample(self.num_samples, self.sampling, generator=generator)
        drawn = steps_of({name: value.float().cpu() for name, value in samples.items()})
        x, y = joined_rows(real), joined_rows(drawn)
        metric = SampleQuality(num_neighbours=0, sync_on_compute=False)  # this process alone
        metric.update(x, real=True)
        metric.update(y, real=False)
        result = {f"val/{name}": value for name, value in metric.compute().items()}
        pl_module.log_dict(result, prog_bar=True, rank_zero_only=True)
        return draw_marginals(column_names(real), x.numpy(), y.numpy())
