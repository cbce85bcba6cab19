"""Data synthesizers: from a dataset to a larger one (SynthER, Lu et al. 2023)."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from diffrl_lightning.diffusion import (
    EDM,
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    check_sampling,
    classifier_free,
    draw,
    heun_sample,
    heun_steps,
    make_betas,
    randn,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, Backbone, ConditionalDenoiser, TransitionMLP, make_backbone
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import (
    DenoiseFn,
    InputError,
    SequenceBatch,
    TransitionBatch,
)

Condition = Literal["return", "task"]
Process = Literal["edm", "ddpm"]
SynthesisSampler = Literal["heun", "ddpm", "ddim", "dpmpp"]
_DEFAULT_STEPS = 31  # evaluations of EDM's sampler


class Synthesizer(DiffusionModule):
    """What the synthesizers share: the process, its conditions, and sampling at any scale.

    The networks are asked for noise levels as EDM tells them, log(sigma) / 4, whatever the process.
    """

    action_low: Tensor  # (A,)
    action_high: Tensor  # (A,)
    diffusion: EDM | GaussianDiffusion  # type: ignore[assignment]
    prediction_jobs: Sequence[dict[str, Any]] = ()  # what ``predict`` is to draw in this process

    def _assemble(
        self, make_net: Callable[[int], nn.Module], shape: tuple[int, ...], embed_dim: int
    ) -> None:
        """Build all parts, by the hyper-parameters.

        Args:
            make_net: the network, given the width of its condition's embedding, 0 for none.
            shape: of a sample.
            embed_dim: width of that embedding, where there are conditions.
        """
        hparams = self.hparams
        self.refuse_goals(hparams["goal_dim"])
        self.conditions = tuple(hparams["conditions"])
        if not set(self.conditions) <= {"return", "task"}:
            raise InputError(f"conditions={self.conditions} must be among return and task.")
        if hparams["process"] not in ("edm", "ddpm"):
            raise InputError(f"process={hparams['process']!r} is unknown: choose edm or ddpm.")
        self.shape = shape
        self.diffusion = (
            EDM()
            if hparams["process"] == "edm"
            else GaussianDiffusion(
                make_betas(hparams["beta_schedule"], hparams["num_train_timesteps"]),
                hparams["prediction_type"],
            )
        )
        self.denoiser = make_net(embed_dim if self.conditions else 0)
        if self.conditions:
            widths = {"return": 1, "task": hparams["num_origins"]}
            self.denoiser = ConditionalDenoiser(
                self.denoiser,
                condition_dims={name: widths[name] for name in self.conditions},
                embed_dim=embed_dim,
                drop_prob=hparams["cond_drop_prob"],
            )
        self.ema = EMA(
            self.denoiser,
            decay=hparams["ema_decay"],
            update_every=hparams["ema_update_every"],
            start=hparams["ema_start"],
        )
        kind, action_dim = hparams["normalizer"], hparams["action_dim"]
        self.trajectory = TrajectoryNormalizer(kind, hparams["observation_dim"], action_dim)
        self.rewards = make_normalizer(kind, 1)
        self.returns = make_normalizer("limits", 1)
        self.register_buffer("action_low", torch.full((action_dim,), -torch.inf))
        self.register_buffer("action_high", torch.full((action_dim,), torch.inf))

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes, and the environment's bounds of actions.

        Raises:
            InputError: if the data's rewards are not those of the environment.
        """
        if getattr(datamodule, "rewards", "raw") != "raw":
            raise InputError(
                f"rewards={datamodule.rewards!r} would be synthesized as the environment's: use "
                "rewards=raw, and change them where an agent learns from the result."
            )
        if getattr(datamodule, "n_steps", 1) > 1:
            raise InputError("Synthetic transitions are single steps: use n_steps=1.")
        super().fit_normalizers(datamodule)
        self.rewards.fit(*datamodule.training_rows("rewards"))
        self.returns.fit(datamodule.training_returns()[:, None])
        space = datamodule.action_space()
        if space is not None:
            self.action_low.copy_(torch.as_tensor(space.low).flatten())
            self.action_high.copy_(torch.as_tensor(space.high).flatten())

    @abstractmethod
    def encode(self, batch: Any) -> Tensor:
        """A batch in environment units -> clean samples (B, *S)."""

    @abstractmethod
    def decode(self, x: Tensor) -> dict[str, Tensor]:
        """Samples (B, *S) -> what a dataset holds, in environment units."""

    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the batch of the process's loss."""
        labels: dict[str, Tensor] = {}
        if "return" in self.conditions:
            labels["return"] = (self.returns.normalize(batch["returns"][:, None]) + 1) / 2
        if "task" in self.conditions:
            one_hot = nn.functional.one_hot(batch["origins"], self.hparams["num_origins"])
            labels["task"] = one_hot.to(self.float_dtype)
        denoise = self._bind(self.denoiser, labels)
        return self.diffusion.loss(denoise, self.encode(batch)).mean(), {}

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        sampler: SynthesisSampler | None = None,
        num_inference_steps: int | None = None,
        target_return: float | None = None,
        task: int | None = None,
        guidance_scale: float = 1.0,
        bound_actions: bool = True,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Synthetic data of the averaged network, in environment units.

        Args:
            num_samples: B, drawn as one batch.
            sampler: ``heun`` (EDM's stochastic sampler, the default there), ``ddim`` (the default of
                the discrete process), ``ddpm`` or ``dpmpp``.
            num_inference_steps: network evaluations; by default 31 for EDM, else T.
            target_return: label of the return to go, 0 the lowest and 1 the highest of the data.
            task: which dataset of the list that was trained on.
            guidance_scale: weight of the conditions: 0 is unconditional, 1 conditional.
            bound_actions: clip actions to the environment's bounds.
            generator: source of noise.

        Raises:
            InputError: if the model knows no such condition, or the sampler no such number of steps.
        """
        denoise = self._guided(num_samples, target_return, task, guidance_scale)
        sampler, steps = self._sampler(sampler, num_inference_steps)
        shape, like = (num_samples, *self.shape), self.action_low
        if sampler == "heun":
            start = randn(shape, generator=generator, like=like)
            edm = cast(EDM, self.diffusion)
            x = heun_sample(edm, denoise, start, num_inference_steps=steps, generator=generator)
        else:
            diffusion = self.diffusion
            if isinstance(diffusion, EDM):
                diffusion, denoise = diffusion.discrete(denoise, steps, device=self.device)
            x = draw(
                diffusion,
                denoise,
                shape,
                like=like,
                sampler=sampler,
                num_inference_steps=steps,
                generator=generator,
            )
        result = self.decode(x)
        if bound_actions:
            result["actions"] = result["actions"].clamp(self.action_low, self.action_high)
        return result

    def check_sampling(self, **sampling: Any) -> None:
        """Refuse keywords that :meth:`sample` would refuse, before anything is sampled.

        Raises:
            InputError: naming what would do.
            TypeError: if ``sample`` has no such keyword.
        """
        bound = inspect.signature(self.sample).bind(1, **sampling)
        bound.apply_defaults()
        wanted = bound.arguments
        self._guided(1, wanted["target_return"], wanted["task"], wanted["guidance_scale"])
        self._sampler(wanted["sampler"], wanted["num_inference_steps"])

    def _sampler(
        self, sampler: SynthesisSampler | None = None, num_inference_steps: int | None = None
    ) -> tuple[SynthesisSampler, int]:
        """The sampler and its evaluations, by default those of the process.

        Raises:
            InputError: if they do not go together.
        """
        if isinstance(self.diffusion, EDM):
            sampler = sampler or "heun"
            steps = _DEFAULT_STEPS if num_inference_steps is None else num_inference_steps
            if sampler == "heun":
                heun_steps(steps)
            elif sampler not in ("ddpm", "ddim", "dpmpp"):
                raise InputError(f"{sampler=} is unknown: choose heun, ddpm, ddim or dpmpp.")
            return sampler, steps
        sampler = sampler or "ddim"
        if sampler == "heun":
            raise InputError("sampler=heun needs a model trained with process=edm: choose ddim.")
        check_sampling(self.diffusion, sampler, num_inference_steps)
        return sampler, num_inference_steps or self.diffusion.num_train_timesteps

    def predict_dataloader(self) -> DataLoader:
        """What :class:`SampleWriter` asks this process for.

        Raises:
            InputError: if there is none.
        """
        if not self.prediction_jobs:
            raise InputError("predict writes a dataset: say where with synthesis.output.")
        return DataLoader(_Jobs(self.prediction_jobs), batch_size=None)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor] | None:
        """A shard of the dataset, whose noise depends on the seed and its number alone."""
        if not batch["num_samples"]:
            return None
        entropy = np.random.SeedSequence([batch["seed"], batch["shard"]]).generate_state(1)
        generator = torch.Generator(self.device).manual_seed(int(entropy[0]))
        return self.sample(batch["num_samples"], generator=generator, **batch["sampling"])

    def _bind(self, net: nn.Module, labels: dict[str, Tensor]) -> DenoiseFn:
        """A network with its conditions bound, asked for steps as its process tells them."""

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            return net(x, level, labels) if self.conditions else net(x, level)

        diffusion = self.diffusion
        if isinstance(diffusion, EDM):
            return denoise

        def at_step(x: Tensor, t: Tensor) -> Tensor:
            signal, noise = diffusion.signal_noise(t, 1)
            return denoise(x, 0.25 * (noise / signal).log())

        return at_step

    def _guided(
        self, n: int, target_return: float | None, task: int | None, guidance_scale: float
    ) -> DenoiseFn:
        """The averaged network for n rows under these conditions."""
        labels: dict[str, Tensor] = {}
        for name, value in (("return", target_return), ("task", task)):
            if value is None:
                continue
            if name not in self.conditions:
                raise InputError(
                    f"This model was not trained on the condition {name!r}: leave it out, or train "
                    f"with conditions [{name}]."
                )
            if name == "return":
                labels[name] = self.action_low.new_full((n, 1), value)
            else:
                if not 0 <= int(value) < self.hparams["num_origins"]:
                    raise InputError(
                        f"{task=} must be below the {self.hparams['num_origins']} datasets trained on."
                    )
                labels[name] = self.action_low.new_zeros(n, self.hparams["num_origins"])
                labels[name][:, int(value)] = 1
        if not labels:
            return self._bind(self.ema, {})
        return classifier_free(
            self._bind(self.ema, labels), self._bind(self.ema, {}), guidance_scale
        )


class DataSynthesizer(Synthesizer):
    """Transitions, diffused whole: state, action, reward, next state, and whether it was the last.

    The paper's process is EDM with a stochastic sampler of 255 evaluations; ``ddpm`` is the discrete
    diffusion of the other roles, on the same network. Whether a transition ends its episode is not
    normalised; a sample's is 1 above one half.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        num_origins: datasets of the data's list, taken from the data: tasks to choose from.
        conditions: what samples may be conditioned on: the ``return`` to go, the ``task``, which is the
            dataset of a list that a transition is from, both or nothing.
        cond_drop_prob: chance that a sample's condition is dropped in training.
        process: ``edm``, over continuous noise levels, or ``ddpm``, over discrete steps.
        num_train_timesteps: T, steps of ``ddpm``.
        beta_schedule: noise schedule of ``ddpm``.
        prediction_type: what the network predicts in ``ddpm``.
        hidden_dim: width of the network.
        num_blocks: its residual layers.
        embed_dim: width of its first layer, and of all embeddings.
        layer_norm: normalise before each residual layer.
        normalizer: of states, actions and rewards.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        adam_betas: of the optimizer.
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.
        compile: compile the network for training.

    Raises:
        InputError: if there are goals, or an argument is unknown or out of range.
    """

    learns_from = "transitions"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        num_origins: int = 1,
        conditions: tuple[Condition, ...] = (),
        cond_drop_prob: float = 0.25,
        process: Process = "edm",
        num_train_timesteps: int = 128,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "eps",
        hidden_dim: int = 1024,
        num_blocks: int = 6,
        embed_dim: int = 128,
        layer_norm: bool = False,
        normalizer: NormalizerKind = "gaussian",
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.99),
        ema_decay: float = 0.995,
        ema_update_every: int = 10,
        ema_start: int = 100,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.widths = [action_dim, observation_dim, 1, observation_dim, 1]

        def make_net(cond_dim: int) -> nn.Module:
            return TransitionMLP(
                sum(self.widths),
                cond_dim=cond_dim,
                hidden_dim=hidden_dim,
                num_blocks=num_blocks,
                embed_dim=embed_dim,
                layer_norm=layer_norm,
            )

        self._assemble(make_net, (sum(self.widths),), embed_dim)

    def encode(self, batch: TransitionBatch) -> Tensor:
        """Transitions -> (B, A + O + 1 + O + 1)."""
        parts = [
            self.trajectory.join(batch["actions"], batch["observations"]),
            self.rewards.normalize(batch["rewards"][:, None]),
            self.trajectory.observations.normalize(batch["next_observations"]),
            batch["terminations"][:, None],
        ]
        return torch.cat(parts, -1)

    def decode(self, x: Tensor) -> dict[str, Tensor]:
        """(B, A + O + 1 + O + 1) -> a :class:`TransitionBatch` (B, ...)."""
        actions, states, rewards, following, terminal = x.split(self.widths, -1)
        observations = self.trajectory.observations
        return {
            "observations": observations.unnormalize(states),
            "actions": self.trajectory.actions.unnormalize(actions),
            "rewards": self.rewards.unnormalize(rewards)[:, 0],
            "next_observations": observations.unnormalize(following),
            "terminations": (terminal[:, 0] > 0.5).to(x),
        }


class TrajectorySynthesizer(Synthesizer):
    """Windows of states, actions and rewards, diffused whole: episodes of H - 1 steps.

    Planners can be trained on them. An episode ends after its window, cut short: that episodes may
    really end is not modelled.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        num_origins: datasets of the data's list, taken from the data: tasks to choose from.
        horizon: H, taken from the data.
        stride: taken from the data; must be 1.
        conditions: as in :class:`DataSynthesizer`, from the window's first step.
        cond_drop_prob: chance that a sample's condition is dropped in training.
        process: ``edm``, over continuous noise levels, or ``ddpm``, over discrete steps.
        num_train_timesteps: T, steps of ``ddpm``.
        beta_schedule: noise schedule of ``ddpm``.
        prediction_type: what the network predicts in ``ddpm``.
        backbone: a temporal ``unet``, or ``dit``, a transformer.
        dim: width of the U-Net's first level, or of the transformer.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        attention: linear attention in the U-Net.
        depth: blocks of the transformer.
        num_heads: heads of the transformer.
        normalizer: of states, actions and rewards.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.
        compile: compile the network for training.

    Raises:
        InputError: if there are goals, the horizon does not divide, or an argument is unknown.
    """

    learns_from = "windows"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        num_origins: int = 1,
        horizon: int = 32,
        stride: int = 1,
        conditions: tuple[Condition, ...] = (),
        cond_drop_prob: float = 0.25,
        process: Process = "edm",
        num_train_timesteps: int = 128,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "eps",
        backbone: Backbone = "unet",
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        attention: bool = False,
        depth: int = 2,
        num_heads: int = 4,
        normalizer: NormalizerKind = "gaussian",
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        ema_update_every: int = 10,
        ema_start: int = 100,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if stride != 1 or horizon < 2:
            raise InputError(f"{stride=} must be 1 and {horizon=} at least 2 to make episodes.")
        self.widths = [action_dim, observation_dim, 1]

        def make_net(cond_dim: int) -> nn.Module:
            return make_backbone(
                backbone,
                sum(self.widths),
                horizon=horizon,
                dim=dim,
                dim_mults=dim_mults,
                attention=attention,
                depth=depth,
                num_heads=num_heads,
                cond_dim=cond_dim,
            )

        self._assemble(make_net, (horizon, sum(self.widths)), dim)

    def encode(self, batch: SequenceBatch) -> Tensor:
        """Windows -> (B, H, A + O + 1)."""
        rewards = self.rewards.normalize(batch["rewards"][..., None])
        return torch.cat(
            [self.trajectory.join(batch["actions"], batch["observations"]), rewards], -1
        )

    def decode(self, x: Tensor) -> dict[str, Tensor]:
        """(B, H, A + O + 1) -> observations (B, H, O), actions (B, H, A), rewards (B, H)."""
        actions, states, rewards = x.split(self.widths, -1)
        return {
            "observations": self.trajectory.observations.unnormalize(states),
            "actions": self.trajectory.actions.unnormalize(actions),
            "rewards": self.rewards.unnormalize(rewards)[..., 0],
        }


class _Jobs(IterableDataset):
    """Jobs of this process; being no sequence, they are not shared out a second time."""

    def __init__(self, jobs: Sequence[dict[str, Any]]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)
