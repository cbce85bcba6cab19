"""Diffuser: planning by denoising whole trajectories (Janner et al. 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion import (
    BetaSchedule,
    GaussianDiffusion,
    Inpaint,
    PredictionType,
    ddim_sample,
    ddpm_sample,
    dpmpp_sample,
    inference_timesteps,
    inpaint,
    make_betas,
    randn,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, TemporalUnet, check_horizon
from diffrl_lightning.normalizers import NormalizerKind, make_normalizer
from diffrl_lightning.policies.planner import Execute, Plan, PlannerPolicy
from diffrl_lightning.types import Generators, InputError, SequenceBatch

Sampler = Literal["ddpm", "ddim", "dpmpp"]


class Diffuser(DiffusionModule):
    """A diffusion model over trajectories of actions and states, conditioned by in-painting.

    A trajectory is (H, A + O), actions first. Its first state is given; where the environment has a
    goal, the first G entries of its last state are too.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: G, taken from the data; 0 where there is no goal.
        horizon: H, taken from the data; it must divide by 2 for each level of the U-Net but one.
        stride: environment steps between two steps of a plan, taken from the data.
        dim: width of the U-Net's first level.
        dim_mults: width of each level in multiples of ``dim``.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        prediction_type: what the network predicts.
        clip_denoised: bound the estimate of the clean trajectory to the data's range, [-1, 1];
            without effect on the gaussian normaliser, which has no such range.
        normalizer: of states and actions.
        goal_velocity: at the goal only the position is given and all else is ``free``, or all else is
            ``zero``, as the paper has it.
        action_weight: weight of the first action's loss.
        loss_discount: weight of each further step's loss, relative to the step before.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.

    Raises:
        InputError: if the horizon does not divide, or an argument is unknown.
    """

    known: Tensor  # (H, A + O) bool, the entries that are given
    loss_weight: Tensor  # (H, A + O)

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        horizon: int = 32,
        stride: int = 1,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        num_train_timesteps: int = 64,
        beta_schedule: BetaSchedule = "cosine",
        prediction_type: PredictionType = "x0",
        clip_denoised: bool = True,
        normalizer: NormalizerKind = "limits",
        goal_velocity: Literal["free", "zero"] = "free",
        action_weight: float = 1.0,
        loss_discount: float = 1.0,
        lr: float = 2e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        ema_update_every: int = 1,
        ema_start: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_horizon(horizon, dim_mults)
        if goal_dim > observation_dim:
            raise InputError(f"{goal_dim=} must not exceed {observation_dim=}.")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.goal_dim, self.horizon, self.stride = goal_dim, horizon, stride
        self._goal_entries = goal_dim if goal_velocity == "free" else observation_dim
        self.clip = 1.0 if clip_denoised and normalizer != "gaussian" else None
        self.diffusion = GaussianDiffusion(
            make_betas(beta_schedule, num_train_timesteps), prediction_type
        )
        self.denoiser = TemporalUnet(observation_dim + action_dim, dim=dim, dim_mults=dim_mults)
        self.ema = EMA(
            self.denoiser, decay=ema_decay, update_every=ema_update_every, start=ema_start
        )
        self.observation_normalizer = make_normalizer(normalizer, observation_dim)
        self.action_normalizer = make_normalizer(normalizer, action_dim)
        known = torch.zeros(horizon, action_dim + observation_dim, dtype=torch.bool)
        known[0, action_dim:] = True
        if goal_dim:
            known[-1, action_dim : action_dim + self._goal_entries] = True
        self.register_buffer("known", known, persistent=False)
        weight = (loss_discount ** torch.arange(horizon))[:, None].repeat(1, known.shape[1])
        weight /= weight.mean()
        weight[0, :action_dim] = action_weight
        self.register_buffer("loss_weight", weight, persistent=False)

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states and actions."""
        if self.goal_dim:
            datamodule.check_goal_leads_state()
        self.observation_normalizer.fit(*datamodule.training_rows("observations"))
        self.action_normalizer.fit(*datamodule.training_rows("actions"))

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the denoised trajectory."""
        x0 = self._join(batch["actions"], batch["observations"])
        loss = self.diffusion.loss(
            self.denoiser, x0, weight=self.loss_weight, constraint=inpaint(x0, self.known)
        )
        return loss.mean(), {}

    def plan(
        self,
        observations: Tensor,
        goals: Tensor | None = None,
        *,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        warm_start_steps: int = 0,
        generator: Generators = None,
        elapsed: Tensor | None = None,
        previous: Plan | None = None,
    ) -> Plan:
        """Plans of H steps from states (N, O) to goals (N, G), in environment units.

        Args:
            observations: current states.
            goals: positions to end at, the state's first G entries.
            sampler: how to denoise.
            num_inference_steps: network evaluations, default T.
            temperature: standard deviation of the noise, 1 as in training.
            warm_start_steps: with ``previous``, denoise it for only this many of the evaluations,
                from the noise level at which they begin; 0 plans afresh.
            generator: source of noise, one for all or one a row.
            elapsed: steps of a plan (N,) since the first plan was made: the goal is kept from as
                much earlier on, so that a new plan does not put the arrival off.
            previous: earlier plans, moved on to now.
        """
        constraint = self._constraint(observations, goals, elapsed)
        noise = temperature * randn(constraint.values.shape, generator=generator, like=observations)
        steps = inference_timesteps(self.diffusion.num_train_timesteps, num_inference_steps)
        skip = 0
        if previous is not None and 0 < warm_start_steps < len(steps):
            skip = len(steps) - warm_start_steps
            t = torch.full(noise.shape[:1], steps[skip], device=noise.device)
            before = self._join(previous.actions, previous.observations)
            noise = self.diffusion.add_noise(before, noise, t)
        sample = {
            "ddim": ddim_sample,
            "ddpm": partial(ddpm_sample, temperature=temperature, generator=generator),
            "dpmpp": dpmpp_sample,
        }[sampler]
        x = sample(  # type: ignore[operator]
            self.diffusion,
            self.ema,
            noise,
            num_inference_steps=num_inference_steps,
            constraint=constraint,
            clip=self.clip,
            skip_steps=skip,
        )
        actions, states = self._split(x)
        return Plan(states, actions)

    def make_policy(
        self,
        *,
        execute: Execute | None = None,
        replan_every: int | None = None,
        warm_start_steps: int = 0,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        lookahead: int = 1,
        kp: float = 10.0,
        kd: float = 1.0,
    ) -> PlannerPolicy:
        """A policy that plans in N environments as one batch.

        Args:
            execute: play the planned ``actions``, or track the planned ``states`` with a PD law,
                for point masses; default: states where there is a goal, else actions.
            replan_every: environment steps between plans; None plans once, at the start.
            warm_start_steps: evaluations spent on a new plan that starts from the last; 0 is afresh.
            sampler: how to denoise.
            num_inference_steps: network evaluations for a plan.
            temperature: standard deviation of the noise.
            lookahead: environment steps that the PD law aims ahead on the plan.
            kp: gain of the PD law's position.
            kd: gain of the PD law's velocity.
        """
        execute = execute or ("states" if self.goal_dim else "actions")
        if execute == "states" and self.observation_dim != 2 * self.action_dim:
            raise InputError(
                "execute=states needs a state of positions and velocities, one pair for each action, "
                f"not {self.observation_dim} entries for {self.action_dim}: use execute=actions."
            )
        if sampler not in ("ddpm", "ddim", "dpmpp"):
            raise InputError(f"{sampler=} is unknown: choose ddpm, ddim or dpmpp.")
        inference_timesteps(self.diffusion.num_train_timesteps, num_inference_steps)
        plan = partial(
            self.plan,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            warm_start_steps=warm_start_steps,
        )
        return PlannerPolicy(
            plan,
            observation_dim=self.observation_dim,
            stride=self.stride,
            execute=execute,
            replan_every=replan_every,
            warm_start=warm_start_steps > 0,
            lookahead=lookahead,
            kp=kp,
            kd=kd,
            device=self.device,
        )

    def _constraint(
        self, observations: Tensor, goals: Tensor | None, elapsed: Tensor | None
    ) -> Inpaint:
        n = len(observations)
        if (goals is not None) != bool(self.goal_dim):
            raise InputError(
                f"This Diffuser has goals of {self.goal_dim} dimensions: "
                "give goals if and only if that is not 0."
            )
        values = observations.new_zeros(n, self.horizon, self.action_dim + self.observation_dim)
        values[:, 0, self.action_dim :] = self.observation_normalizer.normalize(observations)
        known = self.known
        if goals is not None:
            end = observations.new_zeros(n, self.observation_dim)
            end[:, : self.goal_dim] = goals
            values[:, 1:, self.action_dim :] = self.observation_normalizer.normalize(end)[:, None]
            if elapsed is not None:
                step = torch.arange(self.horizon, device=values.device)
                arrived = (step >= self.horizon - 1 - elapsed[:, None]) & (step > 0)
                known = torch.where(arrived[..., None], known[-1], known)
        return inpaint(values, known)

    def _join(self, actions: Tensor, observations: Tensor) -> Tensor:
        """Environment units -> a normalised trajectory (B, H, A + O)."""
        parts = (
            self.action_normalizer.normalize(actions),
            self.observation_normalizer.normalize(observations),
        )
        return torch.cat(parts, -1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A normalised trajectory -> actions (B, H, A) and states (B, H, O) in environment units."""
        actions, observations = x.split([self.action_dim, self.observation_dim], -1)
        return (
            self.action_normalizer.unnormalize(actions),
            self.observation_normalizer.unnormalize(observations),
        )
