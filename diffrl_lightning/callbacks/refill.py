"""Online SynthER: refit a synthesizer on the replay buffer, and refill the synthetic one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from diffrl_lightning.data.online import ReplayData
from diffrl_lightning.inputs import RangeChecked
from diffrl_lightning.types import Acting, InputError, TransitionBatch


class Refill(RangeChecked, pl.Callback):
    """Every so many steps a synthesizer is trained afresh on all real transitions, then samples.

    For an agent that learns from :class:`~diffrl_lightning.data.ReplayData`, as SynthER does online (Lu
    et al. 2023, section 4.2): the n-th refit begins with new weights and statistics, from (seed, n).
    In one process.

    Args:
        synthesizer: of transitions, without conditions; its role and hyper-parameters are taken.
        every_n_steps: of the agent, from one refit to the next.
        num_updates: of a refit.
        batch_size: of a refit.
        num_samples: synthetic transitions, which replace those before.
        chunk_size: how many are drawn as one batch.
        gradient_clip_val: bound of the gradient's norm in a refit.
        sampling: how to sample, a ``SynthesisSampling``.
        seed: of weights, batches and noise.
    """

    def __init__(
        self,
        synthesizer: Any,
        every_n_steps: int = 10_000,
        num_updates: int = 100_000,
        batch_size: int = 256,
        num_samples: int = 1_000_000,
        chunk_size: int = 10_000,
        gradient_clip_val: float | None = 1.0,
        sampling: Acting | None = None,
        seed: int = 0,
    ) -> None:
        if synthesizer.batch_type is not TransitionBatch or synthesizer.conditions:
            raise InputError("Online, transitions are synthesized, and without conditions.")
        synthesizer.check_sampling(sampling)
        self.role, self.hparams = type(synthesizer), dict(synthesizer.hparams)
        self.every_n_steps, self.num_updates = every_n_steps, num_updates
        self.batch_size = batch_size
        self.num_samples, self.chunk_size = num_samples, chunk_size
        self.gradient_clip_val, self.sampling, self.seed = gradient_clip_val, sampling, seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can not be refilled."""
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and (trainer.world_size > 1 or not isinstance(data, ReplayData)):
            raise InputError("Refill needs ReplayData and a single process: set devices to 1.")

    def on_train_batch_end(  # noqa: D102
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        number, rest = divmod(trainer.global_step, self.every_n_steps)
        if number and not rest:
            self.refill(trainer.datamodule, number, pl_module.device)  # type: ignore[attr-defined]

    def refill(self, data: ReplayData, number: int, device: torch.device) -> None:
        """Refit for the ``number``-th time, and replace the synthetic transitions."""
        seeds = np.random.SeedSequence([self.seed, number]).generate_state(2)
        real = ReplayData(
            data.observation_dim,
            data.action_dim,
            capacity=1,
            synthetic_capacity=1,
            synthetic_share=0.0,
            batch_size=self.batch_size,
            seed=int(seeds[0]),
        )
        real.buffer = data.buffer
        trainer = pl.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.index is None else [device.index],
            max_steps=self.num_updates,
            gradient_clip_val=self.gradient_clip_val,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(seeds[0]))
            synthesizer = self.role(**self.hparams)
            trainer.fit(synthesizer, real)
        synthesizer.to(device).eval()
        generator = torch.Generator(device).manual_seed(int(seeds[1]))
        data.synthetic.clear()
        for first in range(0, self.num_samples, self.chunk_size):
            n = min(self.chunk_size, self.num_samples - first)
            data.synthetic.add(synthesizer.sample(n, self.sampling, generator=generator))
