"""A value function that is a diffusion model of the future (DVF, Mazoure et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import SpearmanCorrCoef

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    PredictionType,
    Sampler,
    draw,
    make_betas,
    rand,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, ConditionalDenoiser, ConditionalMLP, ResidualMLP
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import FutureBatch, Generators, InputError

_STEPS = 10  # network evaluations of a future
_SAMPLES = 16  # futures of a state
_ROWS = 2**14  # futures drawn at a time: more do not fit the caches of a CPU


class DiffusedValue(DiffusionModule):
    """The state k steps ahead is diffused, k geometric; values are rewards there, averaged.

    With k >= 1 drawn with probability (1 - gamma) gamma^(k - 1)::

        Q(s, a) = r(s, a) + gamma / (1 - gamma) * m(s, a) * E[r(s_k)]

    and V(s) the same without the action. The future s_k is drawn by the denoiser; a second network is
    the reward of a step; a third is m, the chance that the episode has not ended before step k, which
    is 1 where episodes are only cut off by time-outs. All three are told the state always, and the
    action and the policy sometimes, so that V and Q are of the same networks.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        num_origins: datasets of the data's list, taken from the data, each of one policy.
        discount: gamma, the data's own.
        offset_condition: tell the networks k, so that values can be had at other discounts too.
        policy_condition: how the policy is told: not at all; as the place of its dataset in the list,
            from 0 to 1; or as a ``set`` of steps that it took (``data.context_size``).
        cond_drop_prob: chance that a sample's action is dropped in training, and its policy.
        hidden_dim: width of the denoiser's residual stream, and of the other networks.
        num_blocks: its residual blocks, four times as wide inside.
        embed_dim: width of the conditions' embedding.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        prediction_type: what the denoiser predicts.
        normalizer: of states, actions and rewards.
        val_samples: futures of a state for the rank correlation that a validation logs; 0 for none.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight averages that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.
        compile: compile the networks for training.

    Raises:
        InputError: if there are goals, or an argument is unknown or out of range.
    """

    learns_from = "futures"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
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
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        ema_update_every: int = 1,
        ema_start: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        if not 0 < discount < 1:
            raise InputError(f"{discount=} must lie in (0, 1): the future is drawn by it.")
        if not 0 < cond_drop_prob < 1:
            raise InputError(
                f"{cond_drop_prob=} must lie in (0, 1): V is learned without actions, Q with them."
            )
        if policy_condition not in ("none", "place", "set"):
            raise InputError(f"{policy_condition=} is unknown: choose none, place or set.")
        if policy_condition == "place" and num_origins < 2:
            raise InputError(
                "policy_condition=place needs data.dataset to be a list, one dataset a policy."
            )
        self.discount, self.num_origins = discount, num_origins
        self.offset_condition, self.policy_condition = offset_condition, policy_condition
        self.diffusion = GaussianDiffusion(
            make_betas(beta_schedule, num_train_timesteps), prediction_type
        )
        widths = {"state": observation_dim, "action": action_dim}
        if policy_condition != "none":
            widths["policy"] = 1 if policy_condition == "place" else observation_dim + action_dim
        timed = widths | ({"offset": 1} if offset_condition else {})
        shared: dict[str, Any] = {
            "embed_dim": embed_dim,
            "drop_prob": cond_drop_prob,
            "always": ("state", "offset"),
        }
        net = ResidualMLP(
            observation_dim, cond_dim=embed_dim, hidden_dim=hidden_dim, num_blocks=num_blocks
        )
        self.denoiser = ConditionalDenoiser(net, condition_dims=timed, **shared)
        self.reward = ConditionalMLP(widths, hidden_dim=hidden_dim, **shared)
        self.survival = ConditionalMLP(timed, hidden_dim=hidden_dim, **shared)
        average: dict[str, Any] = {
            "decay": ema_decay,
            "update_every": ema_update_every,
            "start": ema_start,
        }
        self.ema = EMA(self.denoiser, **average)
        self.reward_ema = EMA(self.reward, **average)
        self.survival_ema = EMA(self.survival, **average)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)
        self.rewards = make_normalizer("gaussian", 1)
        self.rank_correlation = SpearmanCorrCoef()

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The averages of the three networks."""
        return [
            (self.ema, self.denoiser),
            (self.reward_ema, self.reward),
            (self.survival_ema, self.survival),
        ]

    def param_groups(self) -> list[dict[str, Any]]:
        """The three networks."""
        return [{"params": list(net.parameters())} for _, net in self.averaged()]

    def setup(self, stage: str) -> None:
        """Refuse data that do not say of policies what the model is to be told.

        Raises:
            InputError: naming what is missing.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.policy_condition == "set" and not getattr(datamodule, "context_size", 1):
            raise InputError(
                "policy_condition=set needs steps of the policy: give data.context_size, say 32."
            )
        super().setup(stage)

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states, actions and rewards."""
        super().fit_normalizers(datamodule)
        self.rewards.fit(*datamodule.training_rows("rewards"))

    def compute_loss(self, batch: FutureBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoiser's, the reward's and the survival's loss; each reaches its own network alone.

        A future is cut off where its episode ends; it counts as much as is the chance to lie inside.
        """
        states = self.trajectory.observations.normalize(batch["observations"])
        conditions = {
            "state": states,
            "action": self.trajectory.actions.normalize(batch["actions"]),
            **self._policy_of(batch),
        }
        inside = -torch.expm1(batch["following"] * math.log(self.discount))
        survives = torch.where(batch["ended"] > 0, inside, 1.0)
        timed, later = conditions, conditions
        if self.offset_condition:
            offsets = _geometric(rand(inside.shape, like=inside), self.discount)
            later = conditions | {"offset": _told(offsets)}
            timed = conditions | {"offset": _told(batch["offsets"])}
            survives = 1 - batch["ended"] * (offsets > batch["following"]).to(inside)
        future = self.trajectory.observations.normalize(batch["future_observations"])
        loss = self.diffusion.loss(lambda x, t: self.denoiser(x, t, timed), future)
        future_loss = (loss * inside).mean()
        wanted = self.rewards.normalize(batch["rewards"][:, None])[:, 0]
        reward_loss = (self.reward(conditions, states) - wanted).square().mean()
        survival_loss = binary_cross_entropy_with_logits(self.survival(later, states), survives)
        info = {
            "future_loss": future_loss.detach(),
            "reward_loss": reward_loss.detach(),
            "survival_loss": survival_loss.detach(),
        }
        return future_loss + reward_loss + survival_loss, info

    def validation_step(self, batch: FutureBatch, batch_idx: int) -> None:
        """The loss, and how well V orders held-out states by the returns that followed them.

        Episodes that were cut off count as going on as they ended.
        """
        super().validation_step(batch, batch_idx)
        count = self.hparams["val_samples"]
        if not count:
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch_idx)
            told = self._conditions(batch["observations"], None, self._policy_of(batch))
            values, _ = self._evaluate(told, None, num_samples=count)
        self.rank_correlation.update(values, batch["returns"])
        self.log("val/rank_correlation", self.rank_correlation, on_step=False, on_epoch=True)

    def place_values(self, batch: FutureBatch) -> tuple[Tensor, Tensor]:
        """States (B, O), in environment units, and V of each (B,)."""
        told = self._conditions(batch["observations"], None, self._policy_of(batch))
        return batch["observations"], self._evaluate(told, None, num_samples=16)[0]

    @torch.no_grad()
    def sample_futures(
        self,
        states: Tensor,
        actions: Tensor | None = None,
        *,
        discount: float | None = None,
        policy: float | tuple[Tensor, Tensor] | None = None,
        **sampling: Any,
    ) -> Tensor:
        """States from the discounted future of each state (N, O), or after an action (N, A).

        Keywords are those of :meth:`values`.

        Returns:
            (N, num_samples, O), in environment units.
        """
        conditions = self._conditions(states, actions, self._policy(policy, states))
        futures, _ = self._futures(conditions, discount, **sampling)
        futures = futures.unflatten(0, (len(states), -1))
        return self.trajectory.observations.unnormalize(futures)

    @torch.no_grad()
    def values(
        self,
        states: Tensor,
        actions: Tensor | None = None,
        *,
        discount: float | None = None,
        policy: float | tuple[Tensor, Tensor] | None = None,
        **sampling: Any,
    ) -> tuple[Tensor, Tensor]:
        """V of states (N, O), or Q of states and actions (N, A), in environment units.

        Args:
            states: in environment units.
            actions: in environment units; None for V.
            discount: default that of the training; another one needs ``offset_condition``, and a higher
                one futures further ahead than the model has seen.
            policy: whose value it is: its place in the list of datasets, from 0 to 1, or steps that it
                took, states (M, O) and actions (M, A); None for all of the data's.
            sampling: ``num_samples``, futures of each (16); ``sampler`` (ddim);
                ``num_inference_steps``, network evaluations of a future (10); ``generator`` of noise.

        Returns:
            Values (N,) and their standard errors (N,), those of an average of ``num_samples`` futures;
            of a single one NaN.
        """
        conditions = self._conditions(states, actions, self._policy(policy, states))
        return self._evaluate(conditions, discount, **sampling)

    def advantages(self, states: Tensor, actions: Tensor, **sampling: Any) -> Tensor:
        """Q - V (N,), in environment units, of futures out of the same noise: much of it cancels.

        Args:
            states: (N, O), in environment units.
            actions: (N, A), in environment units.
            sampling: keywords of :meth:`values`.
        """
        seed = int(torch.randint(2**31, ()))  # on the CPU, seeded as the batch is
        found = [
            self.values(
                states, a, generator=torch.Generator(states.device).manual_seed(seed), **sampling
            )
            for a in (actions, None)
        ]
        return found[0][0] - found[1][0]

    def rewards_of(self, states: Tensor, actions: Tensor) -> Tensor:
        """Rewards (N,) of steps, in environment units; gradients reach the actions (N, A)."""
        return self._reward(self._conditions(states, actions, {}))

    @torch.no_grad()
    def _evaluate(
        self,
        conditions: dict[str, Tensor],
        discount: float | None,
        *,
        num_samples: int = _SAMPLES,
        **sampling: Any,
    ) -> tuple[Tensor, Tensor]:
        """Values (N,) under conditions, and their standard errors."""
        most = max(_ROWS // len(conditions["state"]), 1)
        parts = [min(most, num_samples - k) for k in range(0, num_samples, most)] or [num_samples]
        rewards = [self._later(conditions, discount, num_samples=n, **sampling) for n in parts]
        later = torch.cat(rewards, 1)
        gamma = self.discount if discount is None else discount
        weight = gamma / (1 - gamma)
        spread = later.std(1, correction=0)
        error = spread / math.sqrt(num_samples - 1) if num_samples > 1 else spread + math.nan
        return self._reward(conditions).float() + weight * later.mean(1), weight * error

    def _later(
        self, conditions: dict[str, Tensor], discount: float | None, **sampling: Any
    ) -> Tensor:
        """Rewards (N, S) of drawn futures, 0 as far as the episode has ended by then."""
        futures, timed = self._futures(conditions, discount, **sampling)
        there = {"state": futures} | {k: x for k, x in timed.items() if k == "policy"}
        later = self.survival_ema(timed, futures).sigmoid() * self._reward(there)
        return later.unflatten(0, (len(conditions["state"]), -1)).float()

    def _futures(
        self,
        conditions: dict[str, Tensor],
        discount: float | None,
        *,
        num_samples: int = _SAMPLES,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised futures (N * S, O), and the conditions that they were drawn under."""
        if num_samples < 1:
            raise InputError(f"{num_samples=} must be at least 1.")
        if discount is not None and not 0 < discount < 1:
            raise InputError(f"{discount=} must lie in (0, 1).")
        if discount is not None and discount != self.discount and not self.offset_condition:
            raise InputError(
                f"{discount=} is not that of the training, {self.discount}: train with "
                "offset_condition=true to choose it afterwards."
            )
        states = conditions["state"]
        timed = {name: x.repeat_interleave(num_samples, 0) for name, x in conditions.items()}
        if self.offset_condition:
            # One in each of S equal parts of the distribution.
            part = torch.arange(num_samples, device=states.device).to(states)
            shape = (len(states), num_samples)
            part = (part + rand(shape, generator=generator, like=states)) / num_samples
            gamma = self.discount if discount is None else discount
            timed["offset"] = _told(_geometric(part.flatten(), gamma)).to(states)
        if num_inference_steps is None:
            num_inference_steps = min(_STEPS, self.diffusion.num_train_timesteps)
        net: Any = self.ema.net
        futures = draw(
            self.diffusion,
            net.bind(timed, timed["state"]),
            (len(states) * num_samples, states.shape[1]),
            like=states,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            generator=generator,
        )
        return futures, timed

    def _conditions(
        self, states: Tensor, actions: Tensor | None, policy: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        conditions = {"state": self.trajectory.observations.normalize(states), **policy}
        if actions is not None:
            conditions["action"] = self.trajectory.actions.normalize(actions)
        return conditions

    def _policy_of(self, batch: FutureBatch) -> dict[str, Tensor]:
        """What the networks are told of the policy that took each step of a batch."""
        if self.policy_condition == "place":
            place = batch["origins"].to(batch["rewards"]) / (self.num_origins - 1)
            return {"policy": place[:, None]}
        if self.policy_condition == "set":
            steps = (batch["context_actions"], batch["context_observations"])
            return {"policy": self.trajectory.join(*steps)}
        return {}

    def _policy(
        self, policy: float | tuple[Tensor, Tensor] | None, states: Tensor
    ) -> dict[str, Tensor]:
        if policy is None:
            return {}
        kind = "set" if isinstance(policy, tuple) else "place"
        if kind != self.policy_condition:
            raise InputError(
                f"This model was trained with policy_condition={self.policy_condition}: give as policy "
                f"{_POLICIES[self.policy_condition]}."
            )
        if isinstance(policy, tuple):
            steps = self.trajectory.join(policy[1], policy[0])
            return {"policy": steps.to(states).expand(len(states), -1, -1)}
        return {"policy": states.new_full((len(states), 1), policy)}

    def _reward(self, conditions: Mapping[str, Tensor]) -> Tensor:
        """Of a step (N,), in environment units."""
        normalized = self.reward_ema(conditions, conditions["state"])
        return self.rewards.unnormalize(normalized[:, None])[:, 0]


_POLICIES = {
    "none": "None",
    "place": "a number from 0 to 1",
    "set": "states and actions of steps that it took",
}


def _geometric(part: Tensor, discount: float) -> Tensor:
    """The k >= 1 up to which lies this part of (1 - discount) discount^(k - 1)."""
    return (torch.log1p(-part) / math.log(discount)).ceil().clamp(min=1)


def _told(offsets: Tensor) -> Tensor:
    """How networks are told k, (B,) -> (B, 1)."""
    return offsets.log()[:, None]
