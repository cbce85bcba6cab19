"""What synthesizers share: the process, conditions, sampling at any scale."""

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
    GaussianDiffusion,
    check_sampling,
    classifier_free,
    draw,
    heun_sample,
    heun_steps,
    make_betas,
    randn,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, ConditionalDenoiser
from diffrl_lightning.normalizers import TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import DenoiseFn, Generators, InputError

Condition = Literal["return", "task"]
Process = Literal["edm", "ddpm"]
SynthesisSampler = Literal["heun", "ddpm", "ddim", "dpmpp"]
_DEFAULT_STEPS = 31  # evaluations of EDM's sampler
_MAX_ROUNDS = 20  # of drawing anew what lies beyond the data's states


class Synthesizer(DiffusionModule):
    """What the synthesizers share: the process, its conditions, and sampling at any scale.

    The networks are asked for noise levels as EDM tells them, log(sigma) / 4, whatever the process.
    """

    action_low: Tensor  # (A,)
    action_high: Tensor  # (A,)
    state_low: Tensor  # (O,)
    state_high: Tensor  # (O,)
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
            EDM(sigma_data=[1.0] * shape[-1])
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
        gap = hparams["bound_gap"]
        self.trajectory = TrajectoryNormalizer(
            kind, hparams["observation_dim"], action_dim, bound_gap=gap
        )
        self.rewards = make_normalizer(kind, 1, gap)
        self.returns = make_normalizer("limits", 1)
        self.register_buffer("action_low", torch.full((action_dim,), -torch.inf))
        self.register_buffer("action_high", torch.full((action_dim,), torch.inf))
        self.register_buffer("state_low", torch.full((hparams["observation_dim"],), -torch.inf))
        self.register_buffer("state_high", torch.full((hparams["observation_dim"],), torch.inf))

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the training episodes' statistics and bounds, and the environment's of actions.

        Raises:
            InputError: if the data's rewards are not those of the environment.
        """
        self.refuse_mapped_rewards(datamodule)
        if getattr(datamodule, "n_steps", 1) > 1:
            raise InputError("Synthetic transitions are single steps: use n_steps=1.")
        super().fit_normalizers(datamodule)
        self.rewards.fit(*datamodule.training_rows("rewards"))
        self.returns.fit(datamodule.training_returns()[:, None])
        states, _, rows = datamodule.training_pairs()  # without those that an episode ends in
        for dim in range(states.shape[1]):  # none is copied whole
            column = states[:, dim] if rows is None else states[rows, dim]
            self.state_low[dim], self.state_high[dim] = column.aminmax()
        space = datamodule.action_space()
        if space is not None:
            self.action_low.copy_(torch.as_tensor(space.low).flatten())
            self.action_high.copy_(torch.as_tensor(space.high).flatten())

    @abstractmethod
    def encode(self, batch: Any) -> Tensor:
        """A batch in environment units -> clean samples (B, *S)."""

    @abstractmethod
    def decode(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
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
        x0 = self.encode(batch)
        return self.diffusion.loss(denoise, x0, weight=self.loss_weight(batch)).mean(), {}

    def loss_weight(self, batch: Any) -> Tensor | None:
        """What each entry of :meth:`encode`'s samples counts in the loss; by default all alike."""
        return None

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
        bound_states: bool = False,
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
            bound_states: draw anew samples with a state beyond the least or the greatest of the data in
                any dimension, up to 20 times; those that episodes end in do not count. Where
                episodes end at a boundary of the states, samples beyond it tell that they go on.
            generator: source of noise.

        Raises:
            InputError: if the model knows no such condition, or the sampler no such number of steps.
        """
        sampler, steps = self._sampler(sampler, num_inference_steps)

        def drawn(count: int) -> dict[str, Tensor]:
            denoise = self._guided(count, target_return, task, guidance_scale)
            return self.decode(self._draw(denoise, count, sampler, steps, generator), generator)

        result = drawn(num_samples)
        for _ in range(_MAX_ROUNDS if bound_states else 0):
            beyond = self.beyond(result).nonzero()[:, 0]
            if not len(beyond):
                break
            for name, value in drawn(len(beyond)).items():
                result[name][beyond] = value
        if bound_actions:
            result["actions"] = result["actions"].clamp(self.action_low, self.action_high)
        return result

    def _draw(
        self,
        denoise: DenoiseFn,
        count: int,
        sampler: SynthesisSampler,
        num_inference_steps: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """So many samples (count, *S) of the process."""
        shape, like, diffusion = (count, *self.shape), self.action_low, self.diffusion
        options: Any = {"num_inference_steps": num_inference_steps, "generator": generator}
        if sampler == "heun":
            start = randn(shape, generator=generator, like=like)
            return heun_sample(cast(EDM, diffusion), denoise, start, **options)
        if isinstance(diffusion, EDM):
            diffusion, denoise = diffusion.discrete(
                denoise, num_inference_steps, device=self.device
            )
        return draw(diffusion, denoise, shape, like=like, sampler=sampler, **options)

    def beyond(self, samples: dict[str, Tensor]) -> Tensor:
        """Which of the samples (B,) have a state beyond those of the data."""
        return self._out(samples["observations"])

    def _out(self, states: Tensor) -> Tensor:
        """Whether any of the states (B, ..., O) of a sample is beyond the data's (B,)."""
        return ((states < self.state_low) | (states > self.state_high)).flatten(1).any(1)

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


class _Jobs(IterableDataset):
    """Jobs of this process; being no sequence, they are not shared out a second time."""

    def __init__(self, jobs: Sequence[dict[str, Any]]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)
