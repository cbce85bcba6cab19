"""What synthesizers share: the process, its conditions, sampling at any scale."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from diffrl_lightning.diffusion import (
    EDM,
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    classifier_free,
    draw,
    heun_sample,
    heun_steps,
    make_betas,
    randn,
)
from diffrl_lightning.inputs import one_of, within
from diffrl_lightning.modules.acting import SynthesisSampling
from diffrl_lightning.modules.environment_model import EnvironmentModel
from diffrl_lightning.nets import ConditionalDenoiser
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import Acting, DenoiseFn, Generators, InputError, TrainingData

_EDM_EVALUATIONS = 31
_MAX_ROUNDS = 20  # of drawing anew what lies outside the data's states


class Synthesizer(EnvironmentModel):
    """What the synthesizers share: the process over whole samples, its conditions, their sampling.

    Networks see the noise level as EDM has it, c_noise = log(sigma) / 4, whatever the process.

    Args:
        num_origins: datasets of the data's list, taken from the data: tasks to choose from.
        conditions: what samples may be conditioned on: the ``return`` to go, the ``task``, which is the
            dataset of a list that a sample is from, both or nothing.
        cond_drop_prob: chance that a sample's condition is dropped in training.
        process: ``edm``, over continuous noise levels, or ``ddpm``, over discrete steps.
        num_train_timesteps: T, steps of ``ddpm``.
        beta_schedule: noise schedule of ``ddpm``.
        prediction_type: what the network predicts in ``ddpm``.
        normalizer: of states, actions and rewards.
        bound_gap: standard deviations by which values that pile up at an end of their dimension, such
            as clipped actions, are moved outwards while they are diffused, so that they come back
            exact; 0 leaves them, as published.
        training: keywords of :class:`DiffusionModule`.
    """

    action_low: Tensor  # (A,)
    action_high: Tensor  # (A,)
    state_low: Tensor  # (O,)
    state_high: Tensor  # (O,)
    diffusion: EDM | GaussianDiffusion  # type: ignore[assignment]

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_origins: int = 1,
        conditions: tuple[Literal["return", "task"], ...] = (),
        cond_drop_prob: float = 0.25,
        process: Literal["edm", "ddpm"] = "edm",
        num_train_timesteps: int = 128,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "eps",
        normalizer: NormalizerKind = "gaussian",
        bound_gap: float = 0.0,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        ema_update_every: int = 10,
        ema_start: int = 100,
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lr_schedule=lr_schedule,
            ema_update_every=ema_update_every,
            ema_start=ema_start,
            **training,
        )
        one_of(("edm", "ddpm"), process=process)
        for condition in conditions:
            one_of(("return", "task"), conditions=condition)
        self.num_origins, self.conditions = num_origins, tuple(conditions)
        self.trajectory = TrajectoryNormalizer(
            normalizer, observation_dim, action_dim, bound_gap=bound_gap
        )
        self.rewards = make_normalizer(normalizer, 1, bound_gap)
        self.returns = make_normalizer("limits", 1)
        for name, dim in (("action", action_dim), ("state", observation_dim)):
            self.register_buffer(f"{name}_low", torch.full((dim,), -torch.inf))
            self.register_buffer(f"{name}_high", torch.full((dim,), torch.inf))

    def build(self, net: nn.Module, shape: tuple[int, ...], embed_dim: int) -> None:
        """Add the process, and the denoiser with its conditions and its average.

        Args:
            net: the network, for a condition's embedding where there are conditions.
            shape: S of a sample, its last entry the width that the process is over.
            embed_dim: width of that embedding.
        """
        hparams, self.shape = self.hparams, shape
        if hparams["process"] == "edm":
            self.diffusion = EDM(sigma_data=[1.0] * shape[-1])
        else:
            betas = make_betas(hparams["beta_schedule"], hparams["num_train_timesteps"])
            self.diffusion = GaussianDiffusion(betas, hparams["prediction_type"])
        widths = {"return": 1, "task": self.num_origins}
        self.denoiser = net
        if self.conditions:
            self.denoiser = ConditionalDenoiser(
                net,
                condition_dims={name: widths[name] for name in self.conditions},
                embed_dim=embed_dim,
                drop_prob=hparams["cond_drop_prob"],
            )
        self.ema = self.average(self.denoiser)

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the training episodes' statistics and bounds, and the environment's of actions.

        Raises:
            InputError: if the data's rewards are not those of the environment, or sums of several.
        """
        if data.n_steps > 1:
            raise InputError("Synthetic transitions are single steps: use n_steps=1.")
        super().fit_normalizers(data)
        self.returns.fit(data.training_returns()[:, None])
        states, _, rows = data.training_pairs()  # without those that an episode ends in
        for dim in range(states.shape[1]):  # none is copied whole
            column = states[:, dim] if rows is None else states[rows, dim]
            self.state_low[dim], self.state_high[dim] = column.aminmax()
        space = data.action_space()
        if space is not None:
            self.action_low.copy_(torch.as_tensor(space.low).flatten())
            self.action_high.copy_(torch.as_tensor(space.high).flatten())

    @abstractmethod
    def encode(self, batch: Any) -> Tensor:
        """A batch in environment units -> clean samples (B, *S)."""

    @abstractmethod
    def decode(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """Samples (B, *S) -> arrays of a dataset, in environment units."""

    def loss_weight(self, batch: Any) -> Tensor | None:
        """Weight of each entry of :meth:`encode`'s samples in the loss; by default all alike."""
        return None

    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The process's loss (EDM: Karras et al. 2022, eq. 8; DDPM: Ho et al. 2020, eq. 14)."""
        labels: dict[str, Tensor] = {}
        if "return" in self.conditions:
            labels["return"] = (self.returns.normalize(batch["returns"][:, None]) + 1) / 2
        if "task" in self.conditions:
            labels["task"] = one_hot(batch["origins"], self.num_origins).to(self.float_dtype)
        denoise = self._bind(self.denoiser, labels)
        x0 = self.encode(batch)
        return self.diffusion.loss(denoise, x0, weight=self.loss_weight(batch)).mean(), {}

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        how: SynthesisSampling | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Synthetic data of the averaged network, in environment units.

        Args:
            num_samples: B, drawn as one batch.
            how: sampler, conditions and bounds.
            generator: source of noise.

        Raises:
            InputError: if the model has no such condition, or the sampler no such number of steps.
        """
        how = self.check_sampling(how)
        result = self._draw(num_samples, how, generator)
        for _ in range(_MAX_ROUNDS if how.bound_states else 0):
            outside = self.out_of_bounds(result).nonzero()[:, 0]
            if not len(outside):
                break
            for name, value in self._draw(len(outside), how, generator).items():
                result[name][outside] = value
        if how.bound_actions:
            result["actions"] = result["actions"].clamp(self.action_low, self.action_high)
        return result

    def check_sampling(self, how: Acting | None = None) -> SynthesisSampling:
        """Ways to sample with the defaults of this model's process, checked before anything is drawn.

        Raises:
            InputError: if the model can not sample so.
        """
        how = SynthesisSampling() if how is None else how
        if not isinstance(how, SynthesisSampling):
            raise InputError(
                f"{type(how).__name__} is no way to synthesize: use SynthesisSampling."
            )
        self._labels(1, how)
        if isinstance(self.diffusion, EDM):
            sampler, steps = how.sampler or "heun", how.num_inference_steps or _EDM_EVALUATIONS
            if sampler == "heun":
                heun_steps(steps)
        else:
            sampler, steps = how.sampler or "ddim", len(how.timesteps(self.diffusion))
            if sampler == "heun":
                raise InputError("sampler=heun needs a model of process=edm: choose ddim.")
        return replace(how, sampler=sampler, num_inference_steps=steps)

    def _draw(
        self, count: int, how: SynthesisSampling, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """So many samples of the averaged network, decoded."""
        diffusion, denoise = self.diffusion, self._bind(self.ema, {})
        labels = self._labels(count, how)
        if labels:
            denoise = classifier_free(self._bind(self.ema, labels), denoise, how.guidance_scale)
        shape, like = (count, *self.shape), self.action_low
        steps = cast(int, how.num_inference_steps)
        if how.sampler == "heun":
            x = how.temperature * randn(shape, generator=generator, like=like)
            options: Any = {"temperature": how.temperature, "generator": generator}
            x = heun_sample(diffusion, denoise, x, num_steps=heun_steps(steps), **options)  # type: ignore[arg-type]
            return self.decode(x, generator)
        if isinstance(diffusion, EDM):
            diffusion, denoise = diffusion.discrete(denoise, steps, device=self.device)
        x = draw(diffusion, denoise, shape, how, like=like, generator=generator)
        return self.decode(x, generator)

    def _labels(self, count: int, how: SynthesisSampling) -> dict[str, Tensor]:
        """Conditions (count, width) by name.

        Raises:
            InputError: if the model was not trained on one of them.
        """
        asked = {"return": how.target_return, "task": how.task}
        for name, value in asked.items():
            if value is not None and name not in self.conditions:
                raise InputError(
                    f"This model was not trained on the condition {name!r}: leave it out, or train "
                    f"with conditions [{name}]."
                )
        labels: dict[str, Tensor] = {}
        if how.target_return is not None:
            labels["return"] = self.action_low.new_full((count, 1), how.target_return)
        if how.task is not None:
            within(0, self.num_origins - 1, task=how.task)
            labels["task"] = self.action_low.new_zeros(count, self.num_origins)
            labels["task"][:, how.task] = 1
        return labels

    def _bind(self, net: nn.Module, labels: dict[str, Tensor]) -> DenoiseFn:
        """A network with its conditions bound, on the noise levels or steps of the process."""
        diffusion = self.diffusion

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            c_noise = level if isinstance(diffusion, EDM) else diffusion.c_noise(level)
            return net(x, c_noise, labels) if self.conditions else net(x, c_noise)

        return denoise

    def out_of_bounds(self, samples: dict[str, Tensor]) -> Tensor:
        """Which samples (B,) have a state outside the bounds of the data's."""
        return self._outside(samples["observations"])

    def _outside(self, states: Tensor) -> Tensor:
        """Whether any of the states (B, ..., O) of a sample is outside the data's bounds (B,)."""
        return ((states < self.state_low) | (states > self.state_high)).flatten(1).any(1)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor] | None:
        """Samples of one of SampleWriter's jobs, by noise of the seed and the shard's number alone."""
        if not batch["num_samples"]:
            return None
        entropy = np.random.SeedSequence([batch["seed"], batch["shard"]]).generate_state(1)
        generator = torch.Generator(self.device).manual_seed(int(entropy[0]))
        how = SynthesisSampling(**batch["sampling"])
        return self.sample(batch["num_samples"], how, generator=generator)
