"""Decision Diffuser: states are planned, actions follow by inverse dynamics (Ajay et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    Inpaint,
    PredictionType,
    Sampler,
    check_sampling,
    classifier_free,
    compose,
    draw,
    inpaint,
    make_betas,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, Backbone, ConditionalDenoiser, InverseDynamics, make_backbone
from diffrl_lightning.normalizers import BOUNDED, NormalizerKind, make_normalizer
from diffrl_lightning.policies.planner import Plan, PlannerPolicy
from diffrl_lightning.types import DenoiseFn, Generators, InputError, SequenceBatch

Condition = Literal["return", "skill"]


class DecisionDiffuser(DiffusionModule):
    """A diffusion model over states, steered by classifier-free guidance.

    A plan is (H, O). It begins with the last states that were seen; what comes after is drawn under the
    conditions that are asked for, and the action is the one that leads from now to the next state.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0, since conditions are all that steers.
        num_origins: datasets of the data's list, taken from the data: skills to choose from.
        horizon: H, taken from the data, what was seen included.
        stride: environment steps between two steps of a plan, taken from the data.
        conditions: what plans are conditioned on: the ``return`` to go, the ``skill``, which is the
            dataset of a list that a window is from, or both.
        n_obs_steps: C, states up to now that a plan is made from; in training 1 to C are given.
        backbone: a temporal ``unet``, or ``dit``, a transformer.
        dim: width of the U-Net's first level, or of the transformer.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        attention: linear attention in the U-Net.
        depth: blocks of the transformer.
        num_heads: heads of the transformer.
        hidden_dim: width of the inverse dynamics.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        prediction_type: what the network predicts.
        clip_denoised: bound the estimate of the clean plan to the data's range, [-1, 1]; without effect
            on normalisers that have no such range, gaussian and none.
        normalizer: of states and actions.
        returns_scale: the return's label is the return to go over this; default: scaled such that 0 is
            the lowest and 1 the highest in the data.
        cond_drop_prob: chance that a sample's condition is dropped in training.
        next_state_weight: weight of the loss of the first state that is not given.
        loss_discount: weight of each further step's loss, relative to the step before.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.
        compile: compile the networks for training.

    Raises:
        InputError: if the horizon does not divide or is too short for the history, there are goals, or
            an argument is unknown.
    """

    loss_weight: Tensor  # (H, 1)

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        num_origins: int = 1,
        horizon: int = 32,
        stride: int = 1,
        conditions: tuple[Condition, ...] = ("return",),
        n_obs_steps: int = 1,
        backbone: Backbone = "unet",
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        attention: bool = False,
        depth: int = 2,
        num_heads: int = 4,
        hidden_dim: int = 256,
        num_train_timesteps: int = 20,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "eps",
        clip_denoised: bool = True,
        normalizer: NormalizerKind = "cdf",
        returns_scale: float | None = None,
        cond_drop_prob: float = 0.25,
        next_state_weight: float = 1.0,
        loss_discount: float = 1.0,
        lr: float = 2e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        ema_update_every: int = 1,
        ema_start: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        if not conditions or not set(conditions) <= {"return", "skill"}:
            raise InputError(f"{conditions=} must be return, skill, or both.")
        if not 1 <= n_obs_steps < horizon:
            raise InputError(f"{n_obs_steps=} must be at least 1 and less than {horizon=}.")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.horizon, self.stride, self.n_obs_steps = horizon, stride, n_obs_steps
        self.conditions, self.num_origins = tuple(conditions), num_origins
        self.clip = 1.0 if clip_denoised and normalizer in BOUNDED else None
        self.diffusion = GaussianDiffusion(
            make_betas(beta_schedule, num_train_timesteps), prediction_type
        )
        widths = {"return": 1, "skill": num_origins}
        net = make_backbone(
            backbone,
            observation_dim,
            horizon=horizon,
            dim=dim,
            dim_mults=dim_mults,
            attention=attention,
            depth=depth,
            num_heads=num_heads,
            cond_dim=dim,
        )
        self.denoiser = ConditionalDenoiser(
            net,
            condition_dims={name: widths[name] for name in conditions},
            embed_dim=dim,
            drop_prob=cond_drop_prob,
        )
        self.inverse_dynamics = InverseDynamics(observation_dim, action_dim, hidden_dim=hidden_dim)
        average = partial(EMA, decay=ema_decay, update_every=ema_update_every, start=ema_start)
        self.ema, self.inverse_ema = average(self.denoiser), average(self.inverse_dynamics)
        self.observations = make_normalizer(normalizer, observation_dim)
        self.actions = make_normalizer(normalizer, action_dim)
        self.returns = make_normalizer("limits", 1) if returns_scale is None else None
        weight = loss_discount ** torch.arange(horizon)[:, None]
        self.register_buffer("loss_weight", weight / weight.mean(), persistent=False)

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The averages of the denoiser and of the inverse dynamics."""
        return [(self.ema, self.denoiser), (self.inverse_ema, self.inverse_dynamics)]

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states, actions and returns to go."""
        self.observations.fit(*datamodule.training_rows("observations"))
        self.actions.fit(*datamodule.training_rows("actions"))
        if self.returns is not None:
            self.returns.fit(datamodule.training_returns()[:, None])

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of the weighted squared error of plans and that of the actions between states."""
        x0 = self.observations.normalize(batch["observations"])
        seen = torch.randint(self.n_obs_steps, (len(x0),), device=x0.device) + 1
        step = torch.arange(self.horizon, device=x0.device)
        next_state = (step == seen[:, None])[..., None]
        weight = torch.where(next_state, self.hparams["next_state_weight"], self.loss_weight)
        labels = {name: self._label(name, batch) for name in self.conditions}
        diffusion_loss = self.diffusion.loss(
            lambda x, t: self.denoiser(x, t, labels),
            x0,
            weight=weight,
            constraint=inpaint(x0, (step < seen[:, None])[..., None]),
        ).mean()
        actions = self.actions.normalize(batch["actions"][:, :-1])
        error = (self.inverse_dynamics(x0) - actions).square().mean(-1)
        moved = batch["mask"][:, 1:]  # beyond its end an episode's states stand still
        inverse_loss = (error * moved).sum() / moved.sum().clamp_min(1)
        info = {"diffusion_loss": diffusion_loss.detach(), "inverse_loss": inverse_loss.detach()}
        return (diffusion_loss + inverse_loss) / 2, info

    def plan(  # noqa: D417
        self,
        observations: Tensor,
        goals: Tensor | None = None,
        *,
        target_return: float | None = None,
        guidance_scale: float = 1.2,
        skills: Mapping[int, float] | None = None,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 0.5,
        warm_start_steps: int = 0,
        net: Callable[..., Tensor] | None = None,
        generator: Generators = None,
        elapsed: Tensor | None = None,
        previous: Plan | None = None,
    ) -> Plan:
        """Plans from states, in environment units; their first step is now.

        Keywords that are not here are those of :meth:`make_policy`.

        Args:
            observations: current states (N, O), or the last C of them (N, C, O), the oldest first.
            goals: none.
            net: the network, default the averaged one.
            generator: source of noise, one for all or one a state.
            elapsed: steps of a plan (N,) since the episode's first; states from before it do not count.
            previous: earlier plans, moved on to now.
        """
        states = observations if observations.ndim == 3 else observations[:, None]
        n, c = states.shape[:2]
        seen = torch.full((n,), c, device=states.device)
        if elapsed is not None:
            seen = seen.minimum(elapsed + 1)
        constraint, now = self._constraint(states, seen), seen - 1
        rows, ahead = torch.arange(n, device=states.device)[:, None], self.horizon - c + 1
        window = now[:, None] + torch.arange(ahead, device=states.device)
        before = None
        if previous is not None:
            before = constraint.values.clone()
            before[rows, window] = self.observations.normalize(previous.observations)
        x = draw(
            self.diffusion,
            self.guided(n, target_return, guidance_scale, skills, net),
            constraint.values.shape,
            like=states,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            constraint=constraint,
            clip=self.clip,
            generator=generator,
            previous=before,
            warm_start_steps=warm_start_steps,
        )[rows, window]
        actions = self.actions.unnormalize(self.inverse_ema(x))
        # The last state has no successor to act towards.
        actions = torch.cat([actions, actions[:, -1:]], 1)
        return Plan(self.observations.unnormalize(x), actions)

    def guided(
        self,
        n: int,
        target_return: float | None = None,
        guidance_scale: float = 1.0,
        skills: Mapping[int, float] | None = None,
        net: Callable[..., Tensor] | None = None,
    ) -> DenoiseFn:
        """The network for n rows with its conditions bound; see :meth:`plan`."""
        net = net or self.ema

        def bind(**labels: Tensor) -> DenoiseFn:
            return lambda x, t: net(x, t, labels)

        label = partial(torch.full, (n, 1), device=self.device, dtype=self.float_dtype)
        wanted: list[DenoiseFn] = []
        weights: list[float] = []
        if target_return is not None:
            self._check_condition("return")
            wanted.append(bind(**{"return": label(target_return)}))
            weights.append(guidance_scale)
        for skill, weight in (skills or {}).items():
            self._check_condition("skill", int(skill))
            one_hot = label(0.0).repeat(1, self.num_origins)
            one_hot[:, int(skill)] = 1
            wanted.append(bind(skill=one_hot))
            weights.append(weight)
        if len(wanted) == 1:
            return classifier_free(wanted[0], bind(), weights[0])
        return compose(bind(), wanted, weights)

    def make_policy(
        self,
        *,
        target_return: float | None = None,
        guidance_scale: float = 1.2,
        skills: dict[int, float] | None = None,
        replan_every: int = 1,
        warm_start_steps: int = 0,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 0.5,
        compile: bool = False,
    ) -> PlannerPolicy:
        """A policy that plans in N environments as one batch.

        Args:
            target_return: label of the return, 1 the highest of the data; default 0.9 where the model
                knows returns, else none.
            guidance_scale: weight of the return's condition: 0 is unconditional, 1 conditional.
            skills: weights of skills by their number, as ``{0: 1.5, 2: -0.5}``; negative is NOT.
            replan_every: environment steps between plans.
            warm_start_steps: a new plan starts from the last one, noised to the level at which so many
                evaluations are left; 0 plans afresh.
            sampler: how to denoise.
            num_inference_steps: network evaluations for a plan, default T.
            temperature: standard deviation of the noise, 1 as in training.
            compile: compile the network, on CUDA into graphs.
        """
        if target_return is None and "return" in self.conditions:
            target_return = 0.9
        self.guided(1, target_return, guidance_scale, skills)  # refuses what does not fit
        check_sampling(self.diffusion, sampler, num_inference_steps)
        plan = partial(
            self.plan,
            target_return=target_return,
            guidance_scale=guidance_scale,
            skills=skills,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            warm_start_steps=warm_start_steps,
            net=self.inference_net(compile),
        )
        return PlannerPolicy(
            plan,
            observation_dim=self.observation_dim,
            stride=self.stride,
            replan_every=replan_every,
            warm_start=warm_start_steps > 0,
            n_obs_steps=self.n_obs_steps,
            device=self.device,
            dtype=self.float_dtype,
        )

    def _check_condition(self, name: Condition, skill: int = 0) -> None:
        if name not in self.conditions:
            raise InputError(
                f"This model was not trained on the condition {name!r}, but on "
                f"{' and '.join(self.conditions)}: leave it out, or train with it in conditions."
            )
        if not 0 <= skill < self.num_origins:
            raise InputError(f"{skill=} must be below the {self.num_origins} datasets trained on.")

    def _label(self, name: Condition, batch: SequenceBatch) -> Tensor:
        """A condition's label in a batch (B, width)."""
        if name == "skill":
            one_hot = nn.functional.one_hot(batch["origins"], self.num_origins)
            return one_hot.to(batch["returns"])
        returns = batch["returns"][:, None]
        if self.returns is None:
            return returns / self.hparams["returns_scale"]
        return (self.returns.normalize(returns) + 1) / 2

    def _constraint(self, states: Tensor, seen: Tensor) -> Inpaint:
        """The last ``seen`` (N,) of the states (N, C, O) are the plan's first."""
        n, c = states.shape[:2]
        step = torch.arange(self.horizon, device=states.device)
        first = (step + (c - seen)[:, None]).clamp_max(c - 1)  # (N, H)
        rows = torch.arange(n, device=states.device)[:, None]
        values = self.observations.normalize(states[rows, first])
        return inpaint(values, (step < seen[:, None])[..., None])
