"""How a role is trained: seeded noise, one loss, one optimizer, averages that follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffrl_lightning.modules.companions import CompanionModule
from diffrl_lightning.modules.optimization import clip_gradients, make_optimizer
from diffrl_lightning.nets import EMA
from diffrl_lightning.types import InputError


class TrainedModule(CompanionModule, ABC):
    """What Lightning calls in training and validation, on top of ``compute_loss``."""

    updating = False  # whether weights are between two steps

    @abstractmethod
    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch in environment units, and what else to log."""

    def averages(self) -> list[EMA]:
        """The weight averages and target networks that follow their networks after each step."""
        return [child for child in self.children() if isinstance(child, EMA)]

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters that belong together; ``gradient_clip_val`` bounds the norm of each group.

        A group may have an ``lr``, ``weight_decay``, ``lr_schedule`` and ``lr_steps`` of its own.
        """
        return [{"params": list(self.parameters())}]

    def compiled_nets(self) -> list[nn.Module]:
        """The networks that ``compile`` compiles: by default all children that are trained."""
        return [net for net in self.children() if any(p.requires_grad for p in net.parameters())]

    def on_fit_start(self) -> None:
        """Fix the seed of the noise; ranks are seeded alike, and enter in each batch's seed."""
        if self.float_dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"In {self.float_dtype} weight averages and small steps round away: train with "
                "precision bf16-mixed or 32, and use a lower one for tests."
            )
        if not (self.companions or self.is_fitted()):
            raise InputError(
                "The normalisers have no statistics: give the data as a datamodule, as in "
                "trainer.fit(module, datamodule=data)."
            )
        self.begin_noise()
        self.embed_companions()
        self.train()  # a module that was loaded comes in evaluation mode
        if self.hparams["compile"]:
            for net in self.compiled_nets():
                net.compile()

    def begin_noise(self) -> int:
        """The seed of all noise: of the checkpoint, or of the process as it was first asked for."""
        if self.noise_seed is None:
            self.noise_seed = torch.initial_seed() % 2**32
        return self.noise_seed

    def on_validation_start(self) -> None:
        """Load the companions, where only a validation is run."""
        self.embed_companions()

    def on_test_start(self) -> None:
        """Load the companions, where only a test is run."""
        self.embed_companions()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the noise of batch k from (seed, rank, k), so that a resumed run draws the same."""
        k = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        # Hashed to one word: of a seed, torch's generator on the CPU reads 32 bits.
        entropy = [self.begin_noise(), self.global_rank, k]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:  # would do on a CPU too, but takes a third of a millisecond there
            torch.manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch; logged every ``log_every_n_steps``, since logging costs time."""
        loss, info = self.compute_loss(batch)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.refuse_divergence(None if bool(loss.isfinite()) else "the loss")
            self.log("train/loss", loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in info.items()})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the averages: before any callback may save a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        for average in self.averages():
            average.update(self.trainer.global_step + 1)
        self.updating = False

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss on held-out episodes, with the same noise at every validation."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch_idx * self.trainer.world_size + self.global_rank)
            loss, _ = self.compute_loss(batch)
        self.log("val/loss", loss, sync_dist=True, prog_bar=True, batch_size=1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to do on batches: tests are rollouts."""

    def configure_optimizers(self) -> Any:
        """AdamW on these groups, with a warm-up and a cosine down to 0 if asked for."""
        return make_optimizer(self, self.param_groups())

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Bound the gradient of each group of parameters by itself."""
        self.updating = True  # this is the last hook before weights change
        clip_gradients(self.param_groups(), gradient_clip_val, gradient_clip_algorithm)
