"""Lets an agent act in its environment while it learns."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from diffrl_lightning.data.online import OnlineData
from diffrl_lightning.inputs import RangeChecked
from diffrl_lightning.types import Acting, InputError, Policy


class Collect(RangeChecked, pl.Callback):
    """Every so many updates the agent takes a step in each environment, to learn from.

    ``collect/return_mean`` is logged of the episodes that have ended since, and ``collect/steps``, the
    steps so far. Whenever there is a tenth more than when the agent's normalisers last took their
    statistics, they take them again: often, so that the model can follow.

    Args:
        steps_per_update: environment steps for each optimiser step.
        acting: how it explores; default with the noise that its policy has, ``temperature`` 1.
    """

    def __init__(self, steps_per_update: float = 1.0, acting: Acting | None = None) -> None:
        self.steps_per_update, self.acting = steps_per_update, acting
        self._returns: list[float] = []
        self._step = self._measured = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse data that do not grow, several processes, and a way to act that the role has not."""
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and (trainer.world_size > 1 or not isinstance(data, OnlineData)):
            raise InputError("Collect needs OnlineData and a single process: set devices to 1.")
        self._policy(pl_module)
        if stage == "fit" and not self._measured:
            self._measured = len(data.buffer)  # type: ignore[union-attr]

    def on_train_batch_end(  # noqa: D102
        self, trainer: pl.Trainer, pl_module: Any, *args: Any
    ) -> None:
        data: OnlineData = trainer.datamodule  # type: ignore[attr-defined]
        step = trainer.global_step
        if step == self._step:  # gradients that are accumulated
            return
        self._step = step
        per_round = data.num_envs / self.steps_per_update
        for k in range(int((step - 1) / per_round), int(step / per_round)):
            self._returns += data.collect(self._explore(pl_module, data, k))
            if len(data.buffer) >= 1.1 * self._measured:
                pl_module.refit_normalizers(data)
                self._measured = len(data.buffer)
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("collect/steps", float(data.buffer.added * data.num_envs))
            if self._returns:
                pl_module.log("collect/return_mean", float(np.mean(self._returns)), prog_bar=True)
                self._returns = []

    def _explore(self, module: Any, data: OnlineData, k: int) -> Any:
        """The policy with the noise of round k."""
        policy = self._policy(module)
        seeds = np.random.SeedSequence([data.seed, 3, k]).generate_state(data.num_envs)
        policy.reset(torch.ones(data.num_envs, dtype=torch.bool), seeds.tolist())
        return policy.act

    def _policy(self, module: Any) -> Policy:
        return module.make_policy(self.acting or module.acting(temperature=1.0))

    def state_dict(self) -> dict[str, Any]:
        """What is to be logged yet, and when statistics were taken."""
        return {"returns": self._returns, "step": self._step, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._returns = list(state_dict["returns"])
        self._step, self._measured = state_dict["step"], state_dict["measured"]
