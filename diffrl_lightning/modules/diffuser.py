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
    Sampler,
    check_sampling,
    choose,
    draw,
    inpaint,
    make_betas,
    value_guided,
)
from diffrl_lightning.modules.base import SAME_TRAJECTORIES, DiffusionModule
from diffrl_lightning.nets import EMA, Backbone, make_backbone
from diffrl_lightning.normalizers import BOUNDED, NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies.planner import Execute, Plan, PlannerPolicy
from diffrl_lightning.types import DenoiseFn, Generators, InputError, SequenceBatch, ValueFn


class Diffuser(DiffusionModule):
    """A diffusion model over trajectories of actions and states, conditioned by in-painting.

    A trajectory is (H, A + O), actions first. Its first state is given; where the environment has a
    goal, the first G entries of its last state are too. Where rewards matter, a ``TrajectoryValue``
    guides the plans and chooses among them.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: G, taken from the data; 0 where there is no goal.
        horizon: H, taken from the data; it must divide by 2 for each level of the U-Net but one.
        stride: environment steps between two steps of a plan, taken from the data.
        backbone: a temporal ``unet``, or ``dit``, a transformer.
        dim: width of the U-Net's first level, or of the transformer.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        attention: linear attention in the U-Net.
        depth: blocks of the transformer.
        num_heads: heads of the transformer.
        num_train_timesteps: T.
        beta_schedule: noise schedule.
        prediction_type: what the network predicts.
        clip_denoised: bound the estimate of the clean trajectory to the data's range, [-1, 1];
            without effect on normalisers that have no such range, gaussian and none.
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
        compile: compile the network for training.

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
        backbone: Backbone = "unet",
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        attention: bool = False,
        depth: int = 2,
        num_heads: int = 4,
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
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if goal_dim > observation_dim:
            raise InputError(f"{goal_dim=} must not exceed {observation_dim=}.")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.goal_dim, self.horizon, self.stride = goal_dim, horizon, stride
        self._goal_entries = goal_dim if goal_velocity == "free" else observation_dim
        self.clip = 1.0 if clip_denoised and normalizer in BOUNDED else None
        self.diffusion = GaussianDiffusion(
            make_betas(beta_schedule, num_train_timesteps), prediction_type
        )
        self.denoiser = make_backbone(
            backbone,
            observation_dim + action_dim,
            horizon=horizon,
            dim=dim,
            dim_mults=dim_mults,
            attention=attention,
            depth=depth,
            num_heads=num_heads,
        )
        self.ema = EMA(
            self.denoiser, decay=ema_decay, update_every=ema_update_every, start=ema_start
        )
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)
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
        self.trajectory.fit(datamodule)

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the denoised trajectory."""
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        loss = self.diffusion.loss(
            self.denoiser, x0, weight=self.loss_weight, constraint=inpaint(x0, self.known)
        )
        return loss.mean(), {}

    def predict_noise(self, xt: Tensor, t: Tensor) -> Tensor:
        """The noise (B, H, A + O) in normalised trajectories at steps (B,), as sampling has it."""
        x0 = self.diffusion.to_x0(self.ema(xt, t), xt, t)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        signal, noise = self.diffusion.signal_noise(t, xt.ndim)
        return (xt - signal * x0) / noise

    def plan(  # noqa: D417
        self,
        observations: Tensor,
        goals: Tensor | None = None,
        *,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        warm_start_steps: int = 0,
        num_candidates: int = 1,
        choice_temperature: float = 0.0,
        value: ValueFn | None = None,
        value_guidance_scale: float = 0.0,
        num_guide_steps: int = 2,
        scale_by_variance: bool = True,
        guidance_stop: int = 2,
        denoise: DenoiseFn | None = None,
        generator: Generators = None,
        elapsed: Tensor | None = None,
        previous: Plan | None = None,
    ) -> Plan:
        """Plans of H steps from states (N, O) to goals (N, G), in environment units.

        Keywords that are not here are those of :meth:`make_policy`.

        Args:
            observations: current states.
            goals: positions to end at, the state's first G entries.
            value: of normalised trajectories, ``TrajectoryValue.value``.
            denoise: the network, default the averaged one.
            generator: source of noise, one for all or one a state.
            elapsed: steps of a plan (N,) since the first plan was made: the goal is kept from as
                much earlier on, so that a new plan does not put the arrival off.
            previous: earlier plans, moved on to now.
        """
        each = partial(_repeat, times=num_candidates)
        states = observations.repeat_interleave(num_candidates, 0)
        constraint = self._constraint(states, each(goals), each(elapsed))
        pre_step, before = None, None
        if value is not None and value_guidance_scale:
            pre_step = value_guided(
                value,
                self.diffusion,
                value_guidance_scale=value_guidance_scale,
                num_guide_steps=num_guide_steps,
                scale_by_variance=scale_by_variance,
                stop=guidance_stop,
                constraint=constraint,
            )
        if previous is not None:
            before = each(self.trajectory.join(previous.actions, previous.observations))
        x = draw(
            self.diffusion,
            denoise or self.ema,
            constraint.values.shape,
            like=states,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            constraint=constraint,
            clip=self.clip,
            pre_step=pre_step,
            generator=generator,
            previous=before,
            warm_start_steps=warm_start_steps,
        )
        if value is None:
            actions, states = self.trajectory.split(x)
            return Plan(states, actions)
        clean = torch.full((len(x),), -1, device=x.device)
        values = value(x, clean).unflatten(0, (-1, num_candidates))
        actions, states = self.trajectory.split(x.unflatten(0, (-1, num_candidates)))
        rows = torch.arange(len(values), device=x.device)
        chosen = choose(values, choice_temperature, generator)
        return Plan(states[rows, chosen], actions[rows, chosen], states, values)

    def make_policy(
        self,
        *,
        execute: Execute | None = None,
        replan_every: int | None = None,
        warm_start_steps: int = 0,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        value_ckpt: str | None = None,
        num_candidates: int = 1,
        choice_temperature: float = 0.0,
        value_guidance_scale: float = 0.0,
        num_guide_steps: int = 2,
        scale_by_variance: bool = True,
        guidance_stop: int = 2,
        compile: bool = False,
        lookahead: int = 1,
        kp: float = 10.0,
        kd: float = 1.0,
    ) -> PlannerPolicy:
        """A policy that plans in N environments as one batch.

        Args:
            execute: play the planned ``actions``, or track the planned ``states`` with a PD law,
                for point masses; default: states where there is a goal, else actions.
            replan_every: environment steps between plans; None plans once, at the start.
            warm_start_steps: a new plan starts from the last one, noised to the level at which so many
                evaluations are left; 0 plans afresh.
            sampler: how to denoise.
            num_inference_steps: network evaluations for a plan, default T.
            temperature: standard deviation of the noise, 1 as in training.
            value_ckpt: checkpoint of the ``TrajectoryValue`` that guides and chooses.
            num_candidates: plans made for each state, of which the value chooses one.
            choice_temperature: 0 takes the candidate of the highest value; above 0 it is drawn with
                probability proportional to exp(value / choice_temperature), so that differences
                smaller than that, which may be errors of the value, decide nothing.
            value_guidance_scale: length of a step along the value's gradient; 0 only chooses.
            num_guide_steps: such steps before each evaluation.
            scale_by_variance: multiply the gradient by the posterior's variance.
            guidance_stop: no guidance at diffusion steps below this one.
            compile: compile the network, on CUDA into graphs.
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
        if num_candidates < 1 or choice_temperature < 0 or num_guide_steps < 0:
            raise InputError(
                f"{num_candidates=} must be at least 1, {choice_temperature=} and {num_guide_steps=} "
                "at least 0."
            )
        if value_ckpt is not None:
            value = self.load_companion(value_ckpt, "value", same=SAME_TRAJECTORIES).value
        elif num_candidates == 1 and not value_guidance_scale:
            value = None
        else:
            raise InputError(
                f"{num_candidates=} and {value_guidance_scale=} need a value to choose by and to "
                "climb: give value_ckpt, the checkpoint of a TrajectoryValue."
            )
        check_sampling(self.diffusion, sampler, num_inference_steps)
        plan = partial(
            self.plan,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
            warm_start_steps=warm_start_steps,
            num_candidates=num_candidates,
            choice_temperature=choice_temperature,
            value=value,
            value_guidance_scale=value_guidance_scale,
            num_guide_steps=num_guide_steps,
            scale_by_variance=scale_by_variance,
            guidance_stop=guidance_stop,
            denoise=self.inference_net(compile),
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
            dtype=self.float_dtype,
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
        values[:, 0, self.action_dim :] = self.trajectory.observations.normalize(observations)
        known = self.known
        if goals is not None:
            end = observations.new_zeros(n, self.observation_dim)
            end[:, : self.goal_dim] = goals
            values[:, 1:, self.action_dim :] = self.trajectory.observations.normalize(end)[:, None]
            if elapsed is not None:
                step = torch.arange(self.horizon, device=values.device)
                arrived = (step >= self.horizon - 1 - elapsed[:, None]) & (step > 0)
                known = torch.where(arrived[..., None], known[-1], known)
        return inpaint(values, known)


def _repeat(rows: Tensor | None, times: int) -> Tensor | None:
    """Each row several times in a row; None stays None."""
    return None if rows is None else rows.repeat_interleave(times, 0)
