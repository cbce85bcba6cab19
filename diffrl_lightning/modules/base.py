"""The base of every role."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import GaussianDiffusion
from diffrl_lightning.modules.checkpoints import ROLE_KEY, check_role, read_checkpoint, roles
from diffrl_lightning.modules.optimization import make_optimizer
from diffrl_lightning.nets import EMA
from diffrl_lightning.normalizers import Normalizer, TrajectoryNormalizer
from diffrl_lightning.policies import ChooseFn, ChunkedPolicy, ChunkFn, DecodeFn, SkillPolicy
from diffrl_lightning.types import InputError, Policy

# What two models of noised trajectories have in common where one is of use to the other.
SAME_TRAJECTORIES = (
    "observation_dim",
    "action_dim",
    "horizon",
    "stride",
    "num_train_timesteps",
    "beta_schedule",
    "normalizer",
)
# ... and two models of skills.
SAME_SKILLS = ("observation_dim", "action_dim", "goal_dim", "horizon", "latent_dim")


class DiffusionModule(pl.LightningModule, ABC):
    """A diffusion model in one role: a denoiser, its average, a diffusion, normalisers.

    A role defines ``compute_loss`` and, if it acts, ``make_policy``, or, if it generates, ``sample``.
    Its constructor takes scalars, tuples and Literals only, calls ``save_hyperparameters`` and builds
    all layers, so that a checkpoint alone rebuilds it. The base reads ``lr``, ``lr_schedule``,
    ``lr_warmup_steps``, ``weight_decay``, ``adam_betas`` and ``compile`` from its hyper-parameters. A
    role with other networks than ``denoiser`` names them in ``averaged``, and in ``param_groups`` if
    each is to have a rate, or a bound on its gradient's norm, of its own. A role that acts by another
    role's model keeps it, frozen, in an attribute that ``companions`` names: so it travels in the
    checkpoint. One that is needed for training alone is loaded by ``load_companion`` and stays out.
    """

    denoiser: nn.Module
    ema: EMA
    diffusion: GaussianDiffusion
    trajectory: TrajectoryNormalizer
    learns_from: ClassVar[Literal["windows", "transitions", "futures", "chunks"]] = "windows"
    learns_online: ClassVar[bool] = False  # from data that grow while it does
    # By attribute: a method that it has, and the hyper-parameters that it shares.
    companions: ClassVar[dict[str, tuple[str, Sequence[str]]]] = {}
    # The best checkpoint is chosen so where validation does not roll out; None takes the last one.
    chosen_by: ClassVar[str | None] = "val/loss"
    _noise_seed: int | None = None  # where all noise of a run comes from
    loaded_step: int | None = None  # optimiser steps of the checkpoint that the weights are from

    @abstractmethod
    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch in environment units, and what else to log."""

    def make_policy(self, **sampling: Any) -> Policy:
        """A fresh policy; its keywords are choices of sampling."""
        raise InputError(f"{type(self).__name__} does not act: roll out a role that does.")

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states and actions."""
        self.trajectory.fit(datamodule)

    def chunked_policy(self, decide: ChunkFn, **options: Any) -> ChunkedPolicy:
        """A policy of this module's dimensions, device and precision."""
        return ChunkedPolicy(decide, **self._policy_options(), **options)

    def skill_policy(
        self, choose: ChooseFn, decode: DecodeFn, *, n_action_steps: int | None = None
    ) -> SkillPolicy:
        """A policy by skills that act for so many steps, default the whole horizon.

        Raises:
            InputError: if that is longer than they were learned.
        """
        horizon = self.hparams["horizon"]
        n_action_steps = horizon if n_action_steps is None else n_action_steps
        if not 1 <= n_action_steps <= horizon:
            raise InputError(f"{n_action_steps=} must lie between 1 and {horizon=}.")
        options = self._policy_options()
        return SkillPolicy(choose, decode, n_action_steps=n_action_steps, **options)

    def _policy_options(self) -> dict[str, Any]:
        return {
            "observation_dim": self.hparams["observation_dim"],
            "device": self.device,
            "dtype": self.float_dtype,
        }

    @staticmethod
    def check_shares(**shares: float) -> None:
        """For hyper-parameters that are shares.

        Raises:
            InputError: if one is not in (0, 1].
        """
        for name, value in shares.items():
            if not 0 < value <= 1:
                raise InputError(f"{name}={value} must lie in (0, 1].")

    def refuse_goals(self, goal_dim: int) -> None:
        """For roles that do not pursue goals.

        Raises:
            InputError: if there are any.
        """
        if goal_dim:
            raise InputError(
                f"{type(self).__name__} does not pursue goals: leave them out with data.goal_key "
                "none, or use Diffuser."
            )

    def refuse_mapped_rewards(self, datamodule: Any) -> None:
        """For models whose rewards are to be the environment's.

        Raises:
            InputError: if the data's are others.
        """
        if getattr(datamodule, "rewards", "raw") != "raw":
            raise InputError(
                f"rewards={datamodule.rewards!r} would be modelled as the environment's: use "
                "rewards=raw, and change them where an agent learns from the result."
            )

    @property
    def float_dtype(self) -> torch.dtype:
        """That of its weights."""
        return next(self.parameters()).dtype

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """Each weight average with the network that it follows."""
        return [(self.ema, self.denoiser)]

    def inference_net(self, compiled: bool = False) -> Callable[..., Tensor]:
        """The averaged denoiser; compiled on request, on CUDA into graphs."""
        if not compiled:
            return self.ema
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        net = torch.compile(self.ema.net, mode=mode)
        # A graph writes its next result where the last one lies.
        return lambda *args: net(*args).clone()

    def load_companion(self, path: str, ability: str, *, same: Sequence[str]) -> Any:
        """Another role's model for this one to use: frozen, on its device, and checked to fit.

        Args:
            path: its checkpoint.
            ability: a method that it must have.
            same: hyper-parameters that must be equal; equal normalisers of trajectories are asked for
                anyway, as far as both have them.

        Raises:
            InputError: if it does not fit.
        """
        with torch.inference_mode(False):  # its input is to have gradients
            other: Any = DiffusionModule.load_from_checkpoint(path, map_location=self.device)
        if not hasattr(other, ability):
            raise InputError(
                f"{path!r} holds a {type(other).__name__}, which has no {ability}: give the checkpoint "
                "of a role that has."
            )
        for name in same:
            if other.hparams[name] != self.hparams[name]:
                raise InputError(
                    f"{path!r} has {name}={other.hparams[name]}, this {type(self).__name__} "
                    f"{self.hparams[name]}: train both with the same."
                )
        theirs = other.state_dict()
        for key, ours in self.state_dict().items():
            if not (key.startswith("trajectory.") and key in theirs and self._fitted()):
                continue
            # Either may have been trained in a lower precision.
            low = [x.to("cpu", torch.bfloat16) for x in (ours, theirs[key])]
            if not torch.equal(*low):
                raise InputError(
                    f"{path!r} was trained on other data than this {type(self).__name__}: train both "
                    "on the same dataset, with the same val_fraction and seed of the data."
                )
        with torch.inference_mode(False):
            return other.to(self.device, self.float_dtype).requires_grad_(False)

    def embed_companions(self) -> None:
        """Load each companion from the argument ``NAME_ckpt``, unless a checkpoint has brought it.

        Raises:
            InputError: if the argument is missing, or the companion does not fit.
        """
        for name, (ability, same) in self.companions.items():
            if getattr(self, name) is not None:
                continue
            path = self.hparams[f"{name}_ckpt"]
            if path is None:
                raise InputError(
                    f"{type(self).__name__} needs model.{name}_ckpt, the checkpoint it builds on."
                )
            setattr(self, name, self.load_companion(path, ability, same=same))
        if self.companions and not self._fitted():
            self.fit_normalizers(self.trainer.datamodule)  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> Self:
        """Companions stay in evaluation mode."""
        super().train(mode)
        for companion in self._companions().values():
            companion.eval()
        return self

    def _companions(self) -> dict[str, DiffusionModule]:
        return {name: found for name in self.companions if (found := getattr(self, name))}

    def setup(self, stage: str) -> None:
        """Fit the normalisers to the training data, unless a checkpoint brings them."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or stage == "predict":
            return
        if stage == "fit":
            check_data(type(self), type(datamodule))
            self._check_discount(datamodule)
        # A companion, which statistics may depend on, may come with a checkpoint, after this; and what
        # an agent has done is there only while it learns.
        empty = getattr(datamodule, "grows", False) and stage != "fit"
        if self.companions or empty or self._fitted():
            return
        self.fit_normalizers(datamodule)

    def _check_discount(self, datamodule: Any) -> None:
        """Data that were discounted, as sums of rewards or as futures, are to be so as the model is."""
        theirs, ours = getattr(datamodule, "discount", None), self.hparams.get("discount")
        discounted = getattr(datamodule, "n_steps", 1) > 1 or self.learns_from == "futures"
        if discounted and theirs != ours:
            raise InputError(
                f"The data are discounted at {theirs}, the model at {ours}: give data.discount and "
                "model.discount the same value."
            )

    def _fitted(self) -> bool:
        return all(bool(m.fitted) for m in self.modules() if isinstance(m, Normalizer))

    def on_fit_start(self) -> None:
        """Fix the seed of the noise; ranks are seeded alike, and enter in each batch's seed."""
        if self.float_dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"In {self.float_dtype} weight averages and small steps round away: train with "
                "precision bf16-mixed or 32, and use a lower one for tests."
            )
        if self._noise_seed is None:
            self._noise_seed = torch.initial_seed() % 2**32
        self.embed_companions()
        self.train()  # a module that was loaded comes in evaluation mode
        if self.hparams.get("compile", False):
            for net in self.children():
                if any(p.requires_grad for p in net.parameters()):
                    net.compile()

    def on_validation_start(self) -> None:
        """Have the companions here."""
        self.embed_companions()

    def on_test_start(self) -> None:
        """Have the companions here."""
        self.embed_companions()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the noise of batch k from (seed, rank, k).

        So ranks draw different noise, and a resumed run draws what it would have drawn: the state of
        the random numbers is the seed and k, which both are in the checkpoint.
        """
        k = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        # Hashed to one word: of a seed, torch's generator on the CPU reads 32 bits.
        assert self._noise_seed is not None
        entropy = [self._noise_seed, self.global_rank, k]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:  # would do on a CPU too, but takes a third of a millisecond there
            torch.manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch; logged every ``log_every_n_steps``, since logging costs time."""
        loss, info = self.compute_loss(batch)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in info.items()})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow: before any callback may save a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        for ema, net in self.averaged():
            ema.update(net, self.trainer.global_step + 1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss on held-out episodes, with the same noise at every validation."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch_idx * self.trainer.world_size + self.global_rank)
            loss, _ = self.compute_loss(batch)
        self.log("val/loss", loss, sync_dist=True, prog_bar=True, batch_size=1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to do on batches: tests are rollouts."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters that belong together; ``gradient_clip_val`` bounds the norm of each group.

        A group may have an ``lr``, ``weight_decay``, ``lr_schedule`` and ``lr_steps`` of its own.
        """
        return [{"params": list(self.parameters())}]

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
        if not gradient_clip_val:
            return
        by_value = gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for group in self.param_groups():
            clip(group["params"], gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the role, its companions and the seed of the noise; keep only arguments it takes."""
        hparams = checkpoint.get("hyper_parameters", {})
        for name in set(hparams) - set(self._arguments()):
            if not name.startswith("_"):
                del hparams[name]
        checkpoint |= self._identity()
        checkpoint["noise_seed"] = self._noise_seed

    def _arguments(self) -> dict[str, Any]:
        """Those of the constructor; the command line links dimensions to every role."""
        taken = inspect.signature(type(self).__init__).parameters
        return {name: value for name, value in self.hparams.items() if name in taken}

    def _identity(self) -> dict[str, Any]:
        """Of a checkpoint: what this is a model of, and what its companions are."""
        companions = {
            name: {"hyper_parameters": found._arguments(), **found._identity()}
            for name, found in self._companions().items()
        }
        return {ROLE_KEY: type(self).__name__, "companions": companions}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another role's or another environment's checkpoint, and go on with its noise."""
        check_role(checkpoint, type(self), "the checkpoint")
        hparams = checkpoint["hyper_parameters"]
        for name in ("observation_dim", "action_dim", "goal_dim", "num_origins"):
            if name not in hparams:  # this role does not take it
                continue
            theirs, ours = hparams[name], self.hparams.get(name)
            if theirs != ours:
                raise InputError(
                    f"The checkpoint was trained with {name}={theirs}, the data have {ours}: give "
                    "the dataset that it was trained on."
                )
        self._noise_seed = checkpoint["noise_seed"]
        self.loaded_step = checkpoint.get("global_step")
        for name, found in checkpoint.get("companions", {}).items():
            companion = _as_begun(found).to(self.device, self.float_dtype)
            setattr(self, name, companion.requires_grad_(False).eval())

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path | IO[bytes], map_location: Any = None, **kwargs: Any
    ) -> Self:
        """Rebuild a module from its checkpoint alone; called on the base class, of any role.

        Args:
            checkpoint_path: a ``.ckpt`` file.
            map_location: as in ``torch.load``; default the CPU.
            kwargs: hyper-parameters to override.

        Raises:
            InputError: if the file can not be read, holds code, or is of another role.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location or "cpu")
        if checkpoint.get(ROLE_KEY) not in roles(cls):
            check_role(checkpoint, cls, str(checkpoint_path))
        hparams = {**checkpoint.get("hyper_parameters", {}), **kwargs}
        for private in ("_instantiator", "_class_path"):
            hparams.pop(private, None)
        module = roles(cls)[checkpoint[ROLE_KEY]](**hparams)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()  # type: ignore[return-value]


def check_data(role: type[DiffusionModule], data: type) -> None:
    """Refuse a kind of datamodule that a role does not learn from.

    Raises:
        InputError: naming the kind that it does.
    """
    if getattr(data, "grows", False) and not role.learns_online:
        raise InputError(
            f"{role.__name__} does not learn online, from {data.__name__}: use ChunkData."
        )
    if getattr(data, "makes", role.learns_from) != role.learns_from:
        wanted = {
            "windows": "SequenceData",
            "transitions": "TransitionData",
            "futures": "FutureData",
            "chunks": "ChunkData",
        }[role.learns_from]
        raise InputError(
            f"{role.__name__} learns from {role.learns_from}, which {data.__name__} does not make: "
            f"use {wanted}."
        )


def _as_begun(found: dict[str, Any]) -> DiffusionModule:
    """A companion, with companions of its own, before its weights are there."""
    module = roles(DiffusionModule)[found[ROLE_KEY]](**found["hyper_parameters"])
    for name, deeper in found["companions"].items():
        setattr(module, name, _as_begun(deeper))
    return module
