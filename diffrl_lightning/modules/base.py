"""The bases of every role."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import GaussianDiffusion, Sampling
from diffrl_lightning.inputs import RangeChecked
from diffrl_lightning.modules.acting import chosen_acting
from diffrl_lightning.modules.checkpoint_files import CheckpointFiles
from diffrl_lightning.modules.checks import check_data, check_discount, check_rewards
from diffrl_lightning.modules.training import TrainedModule
from diffrl_lightning.nets import EMA
from diffrl_lightning.normalizers import TrajectoryNormalizer
from diffrl_lightning.policies import ChunkedPolicy
from diffrl_lightning.types import Acting, InputError, Policy, SequenceBatch, TrainingData


class Role(RangeChecked, TrainedModule):
    """What every role is: networks, normalisers, a loss, and perhaps a way to act.

    A role defines ``compute_loss`` and, if it acts, ``acting`` and ``decide``, or, if it generates,
    ``sample``. Its constructor takes scalars, tuples and Literals only, hands on ``**training`` and
    builds all layers, so that a checkpoint alone rebuilds it.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: G, entries of a goal, taken from the data; 0 for none.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        lr_warmup_steps: optimiser steps in which the rate rises from 0.
        weight_decay: decoupled weight decay.
        adam_betas: decay rates of Adam's moments.
        compile: compile the networks for training.

    Raises:
        InputError: if an argument is out of range, or there are goals that the role does not pursue.
    """

    trajectory: TrajectoryNormalizer
    batch_type: ClassVar[type] = SequenceBatch  # what it learns from
    learns_online: ClassVar[bool] = False  # from data that grow meanwhile
    takes_goals: ClassVar[bool] = False
    val_metrics: ClassVar[tuple[str, ...]] = ("loss",)  # that validations log, without rollouts
    needs_rewards: bool = False  # whether it learns from rewards or returns
    monitor: ClassVar[str | None] = (
        "val/loss"  # of the best checkpoint without rollouts; None: last
    )

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        goal_dim: int = 0,
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        lr_warmup_steps: int = 0,
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # those of the derived class, and those that it hands on
        if goal_dim and not self.takes_goals:
            raise InputError(
                f"{type(self).__name__} does not pursue goals: leave them out with data.goal_key "
                "none, or use Diffuser."
            )
        self.observation_dim, self.action_dim, self.goal_dim = observation_dim, action_dim, goal_dim

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states and actions."""
        self.trajectory.fit(data)

    def make_policy(self, how: Acting | None = None, **choices: Any) -> Policy:
        """A fresh policy that acts in N environments as one batch.

        Args:
            how: an instance of the role's ``acting``; default as the checkpoint was tested.
            choices: fields of it to set.

        Raises:
            InputError: if the role does not act, or can not act so.
        """
        return self.build_policy(chosen_acting(self, how, choices))

    def build_policy(self, how: Any) -> Policy:
        """The policy of a way to act; by default it decides anew at every step.

        Raises:
            InputError: if this model can not act so.
        """
        module: Any = self
        if isinstance(how, Sampling):
            how.timesteps(module.diffusion)
        return ChunkedPolicy(partial(module.decide, how=how), **self.policy_options())

    def policy_options(self) -> dict[str, Any]:
        """What every policy needs of its module."""
        return {
            "observation_dim": self.observation_dim,
            "device": self.device,
            "dtype": self.float_dtype,
        }

    def setup(self, stage: str) -> None:
        """Check the data, and fit the normalisers unless a checkpoint brings them."""
        CheckpointFiles.install(self.trainer.strategy)
        data = getattr(self.trainer, "datamodule", None)
        if data is None or stage == "predict":
            return
        if stage == "fit":
            check_data(type(self), type(data))
            check_discount(self, data)
            check_rewards(self, data)
        # A companion, which statistics may depend on, may come with a checkpoint, after this; and what
        # an agent has done is there only while it learns.
        if not (self.companions or (data.grows and stage != "fit") or self.is_fitted()):
            self.fit_normalizers(data)

    def embed_companions(self) -> None:
        """Load the companions, and then take the statistics that depend on them."""
        super().embed_companions()
        if self.companions and not self.is_fitted():
            self.fit_normalizers(self.trainer.datamodule)  # type: ignore[attr-defined]


class DiffusionModule(Role):
    """A role with a weight average, which samples while the network trains.

    Args:
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins; until then the average is the network.
        training: keywords of :class:`Role`.
    """

    denoiser: nn.Module
    ema: EMA
    diffusion: GaussianDiffusion

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        ema_decay: float = 0.995,
        ema_update_every: int = 1,
        ema_start: int = 0,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **training)

    def average(self, net: nn.Module, **options: Any) -> EMA:
        """A weight average of a network, by the hyper-parameters.

        Args:
            net: the network.
            options: further keywords of :class:`~diffrl_lightning.nets.EMA`.
        """
        hparams = self.hparams
        return EMA(
            net,
            decay=hparams["ema_decay"],
            update_every=hparams["ema_update_every"],
            start=hparams["ema_start"],
            **options,
        )

    def inference_net(self, compiled: bool = False) -> Callable[..., Tensor]:
        """The averaged denoiser; compiled on request, on CUDA into graphs."""
        if not compiled:
            return self.ema
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        net = torch.compile(self.ema.net, mode=mode)
        # A graph writes its next result where the last one lies.
        return lambda *args: net(*args).clone()
