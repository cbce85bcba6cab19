"""A value function that is a diffusion model of the future (DVF, Mazoure et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import SpearmanCorrCoef

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    draw,
    geometric,
    make_betas,
)
from diffrl_lightning.inputs import between
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.futures import FutureConditions, FutureSampling, encode_offset
from diffrl_lightning.nets import ConditionalDenoiser, ConditionalMLP, ResidualMLP
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import FutureBatch, Generators, InputError, TrainingData

_ROWS = 2**14  # futures drawn at a time: more do not fit the caches of a CPU


class DiffusedValue(DiffusionModule):
    """The state k steps ahead is diffused, k geometric; values are expected rewards there.

    With k >= 1 drawn with probability (1 - gamma) gamma^(k - 1)::

        Q(s, a) = r(s, a) + gamma / (1 - gamma) * m(s, a) * E[r(s_k)]

    and V(s) the same without the action. The future s_k is drawn by the denoiser; a second network is
    the reward of a step; a third is m, the probability that the episode has not terminated before
    step k, which is 1 where episodes are only truncated. All three are conditioned on the state, and
    on the action and the policy, which are dropped at random, so that one set of networks has V and Q.

    Args:
        num_origins: datasets of the data's list, taken from the data, each of one policy.
        discount: gamma, the data's own.
        offset_condition: condition on k, so that values can be had at other discounts too.
        policy_condition: how the networks are conditioned on the policy: not at all (``none``); on the
            ``place`` of its dataset in the list, from 0 to 1; or on a ``set`` of steps that it took
            (``data.context_size``).
        cond_drop_prob: chance that a sample's action is dropped in training, and its policy.
        hidden_dim: width of the denoiser's residual stream, and of the other networks.
        num_blocks: its residual blocks, four times as wide inside.
        embed_dim: width of the conditions' embedding.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        prediction_type: what the denoiser predicts.
        normalizer: of states, actions and rewards.
        val_samples: futures of a state for the rank correlation that a validation logs; 0 for none.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = FutureBatch
    val_metrics = ("loss", "rank_correlation")
    needs_rewards = True
    sampling: ClassVar = FutureSampling  # how futures are drawn

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_origins: int = 1,
        discount: float = 0.99,
        offset_condition: bool = False,
        policy_condition: Literal["none", "place", "set"] = "none",
        cond_drop_prob: float = 0.5,
        hidden_dim: int = 256,
        num_blocks: int = 3,
        embed_dim: int = 64,
        num_train_timesteps: int = 50,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "x0",
        normalizer: NormalizerKind = "gaussian",
        val_samples: int = 16,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, lr_schedule=lr_schedule, **training)
        between(0, 1, discount=discount, cond_drop_prob=cond_drop_prob)
        self.discount, self.offset_condition = discount, offset_condition
        betas = make_betas(beta_schedule, num_train_timesteps)
        self.diffusion = GaussianDiffusion(betas, prediction_type)
        trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)
        self.conditions = FutureConditions(trajectory, policy_condition, num_origins)
        dims = self.conditions.dims
        timed = dims | ({"offset": 1} if offset_condition else {})
        always, drop_prob = ("state", "offset"), cond_drop_prob
        shared: dict[str, Any] = {"embed_dim": embed_dim, "drop_prob": drop_prob, "always": always}
        net = ResidualMLP(
            observation_dim, cond_dim=embed_dim, hidden_dim=hidden_dim, num_blocks=num_blocks
        )
        self.denoiser = ConditionalDenoiser(net, condition_dims=timed, **shared)
        self.reward = ConditionalMLP(dims, hidden_dim=hidden_dim, **shared)
        self.survival = ConditionalMLP(timed, hidden_dim=hidden_dim, **shared)
        self.ema = self.average(self.denoiser)
        self.reward_ema = self.average(self.reward)
        self.survival_ema = self.average(self.survival)
        self.trajectory = trajectory
        self.rewards = make_normalizer("gaussian", 1)
        self.rank_correlation = SpearmanCorrCoef()

    def param_groups(self) -> list[dict[str, Any]]:
        """The three networks."""
        return [
            {"params": list(net.parameters())}
            for net in (self.denoiser, self.reward, self.survival)
        ]

    def setup(self, stage: str) -> None:
        """Check that the data hold the policy's steps where these are a condition."""
        super().setup(stage)
        data: TrainingData | None = getattr(self.trainer, "datamodule", None)
        if data is not None and self.conditions.kind == "set" and not data.context_size:
            raise InputError(
                "policy_condition=set needs steps of the policy: give data.context_size, say 32."
            )

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states, actions and rewards."""
        super().fit_normalizers(data)
        self.rewards.fit(*data.training_rows("rewards"))

    def compute_loss(self, batch: FutureBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of the denoiser, the reward and the survival; each reaches its own network alone.

        The denoiser's (Mazoure et al. 2023, eq. 8) is weighted by P(k <= K), since the data's futures
        are truncated at the K steps that are left of an episode; the reward's is a squared error, the
        survival's the cross entropy with that probability, or with 1(k <= K) where k is a condition.
        """
        conditions = self.conditions.of_batch(batch)
        timed, later, states = conditions, conditions, conditions["state"]
        steps_left = batch["following"]
        inside = -torch.expm1(steps_left * math.log(self.discount))
        survives = torch.where(batch["ended"] > 0, inside, 1.0)
        if self.offset_condition:
            offsets = geometric(inside.shape, self.discount, like=inside)
            later = conditions | {"offset": encode_offset(offsets)}
            timed = conditions | {"offset": encode_offset(batch["offsets"])}
            survives = 1 - batch["ended"] * (offsets > steps_left).to(inside)
        future = self.trajectory.observations.normalize(batch["future_observations"])
        loss = self.diffusion.loss(lambda x, t: self.denoiser(x, t, timed), future)
        future_loss = (loss * inside).mean()
        rewards = self.rewards.normalize(batch["rewards"][:, None])[:, 0]
        reward_loss = (self.reward(conditions, states) - rewards).square().mean()
        survival_loss = binary_cross_entropy_with_logits(self.survival(later, states), survives)
        parts = {"future": future_loss, "reward": reward_loss, "survival": survival_loss}
        info = {f"{name}_loss": part.detach() for name, part in parts.items()}
        return future_loss + reward_loss + survival_loss, info

    def validation_step(self, batch: FutureBatch, batch_idx: int) -> None:
        """The loss, and the rank correlation of V at held-out states with the returns that followed.

        Episodes that were truncated count as going on as they ended.
        """
        super().validation_step(batch, batch_idx)
        if not self.hparams["val_samples"]:
            return
        how = FutureSampling(num_samples=self.hparams["val_samples"])
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch_idx)
            _, values = self.place_values(batch, how)
        self.rank_correlation.update(values, batch["returns"])
        self.log("val/rank_correlation", self.rank_correlation, on_step=False, on_epoch=True)

    def values(
        self,
        states: Tensor,
        actions: Tensor | None = None,
        how: FutureSampling | None = None,
        *,
        policy: float | tuple[Tensor, Tensor] | None = None,
        generator: Generators = None,
    ) -> tuple[Tensor, Tensor]:
        """V of states (N, O), or Q of states and actions (N, A), in environment units.

        Args:
            states: in environment units.
            actions: in environment units; None for V.
            how: how many futures are averaged, how they are drawn, and at which discount.
            policy: whose value it is: its place in the list of datasets, from 0 to 1, or steps that it
                took, states (M, O) and actions (M, A); None for all of the data's.
            generator: source of noise, one for all or one for each of several equal groups of states.

        Returns:
            Values (N,) and their standard errors (N,), NaN where a single future is drawn.
        """
        conditions = self.conditions.of(states, actions, policy)
        return self._evaluate(conditions, how or FutureSampling(), generator)

    def advantages(
        self, states: Tensor, actions: Tensor, how: FutureSampling | None = None
    ) -> Tensor:
        """Q - V (N,) in environment units, of futures of the same noise, much of which cancels."""
        seed = int(torch.randint(2**31, ()))  # on the CPU, seeded as the batch is

        def value(actions: Tensor | None) -> Tensor:
            generator = torch.Generator(states.device).manual_seed(seed)
            return self.values(states, actions, how, generator=generator)[0]

        return value(actions) - value(None)

    @torch.no_grad()
    def sample_futures(
        self,
        states: Tensor,
        actions: Tensor | None = None,
        how: FutureSampling | None = None,
        *,
        policy: float | tuple[Tensor, Tensor] | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """States (N, num_samples, O) of the discounted future; arguments as of :meth:`values`."""
        conditions = self.conditions.of(states, actions, policy)
        futures, _ = self._futures(conditions, how or FutureSampling(), generator)
        return self.trajectory.observations.unnormalize(futures.unflatten(0, (len(states), -1)))

    def rewards_of(self, states: Tensor, actions: Tensor) -> Tensor:
        """Rewards (N,) of steps, in environment units; gradients reach the actions (N, A)."""
        return self._reward(self.conditions.of(states, actions))

    def place_values(
        self, batch: FutureBatch, how: FutureSampling | None = None
    ) -> tuple[Tensor, Tensor]:
        """A batch's states (B, O), in environment units, and V of each (B,)."""
        conditions = self.conditions.of_batch(batch)
        del conditions["action"]
        return batch["observations"], self._evaluate(conditions, how or FutureSampling())[0]

    @torch.no_grad()
    def _evaluate(
        self, conditions: dict[str, Tensor], how: FutureSampling, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """Values (N,) under conditions, and their standard errors (N,)."""
        n, size = how.num_samples, max(_ROWS // len(conditions["state"]), 1)
        parts = [replace(how, num_samples=min(size, n - i)) for i in range(0, n, size)]
        rewards = torch.cat([self._future_rewards(conditions, p, generator) for p in parts], 1)
        weight = self._discount(how) / (1 - self._discount(how))
        spread = rewards.std(1, correction=0)
        error = spread / math.sqrt(n - 1) if n > 1 else spread + math.nan
        return self._reward(conditions).float() + weight * rewards.mean(1), weight * error

    def _future_rewards(
        self, conditions: dict[str, Tensor], how: FutureSampling, generator: Generators
    ) -> Tensor:
        """Rewards (N, S) at drawn futures, times the probability that the episode survives."""
        futures, timed = self._futures(conditions, how, generator)
        there = {"state": futures} | {k: x for k, x in timed.items() if k == "policy"}
        rewards = self.survival_ema(timed, futures).sigmoid() * self._reward(there)
        return rewards.unflatten(0, (len(conditions["state"]), -1)).float()

    def _futures(
        self, conditions: dict[str, Tensor], how: FutureSampling, generator: Generators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised futures (N * S, O), and the conditions that they were drawn under."""
        gamma, shape = self._discount(how), (len(conditions["state"]), how.num_samples)
        timed = {name: x.repeat_interleave(shape[1], 0) for name, x in conditions.items()}
        states = timed["state"]
        if self.offset_condition:
            k = geometric(shape, gamma, stratified=True, generator=generator, like=states)
            timed["offset"] = encode_offset(k.flatten()).to(states)
        net: Any = self.ema.net
        denoise = net.bind(timed, states)
        x = draw(self.diffusion, denoise, states.shape, how, like=states, generator=generator)
        return x, timed

    def _discount(self, how: FutureSampling) -> float:
        """That of the futures to draw."""
        gamma = self.discount if how.discount is None else how.discount
        if gamma != self.discount and not self.offset_condition:
            raise InputError(
                f"discount={gamma} is not that of the training, {self.discount}: train with "
                "offset_condition=true to choose it afterwards."
            )
        return gamma

    def _reward(self, conditions: dict[str, Tensor]) -> Tensor:
        """The reward of a step (N,), in environment units."""
        normalized = self.reward_ema(conditions, conditions["state"])
        return self.rewards.unnormalize(normalized[:, None])[:, 0]
