"""Diffuser: planning by denoising whole trajectories (Janner et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion import (
    GuidedSampling,
    Inpaint,
    PredictionType,
    choose,
    draw,
    inpaint,
    known_states,
    value_guided,
)
from diffrl_lightning.modules.companions import SAME_TRAJECTORIES
from diffrl_lightning.modules.trajectories import PlanningModule
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.policies.planner import Execute, Plan, PlannerPolicy
from diffrl_lightning.types import (
    DenoiseFn,
    Generators,
    InputError,
    SequenceBatch,
    TrainingData,
    ValueFn,
)


@dataclass(frozen=True, kw_only=True)
class PlanActing(GuidedSampling):
    """How a Diffuser plans, and how its plans are executed.

    Args:
        execute: play the planned ``actions``, or track the planned ``states`` with a PD law, for point
            masses; default: states where there is a goal, else actions.
        replan_every: environment steps between plans; None plans once, at the start (open loop).
        warm_start_steps: a new plan starts from the last one, noised to the level at which so many
            evaluations are left; 0 plans from pure noise.
        value_ckpt: checkpoint of the ``TrajectoryValue`` or ``RelativeReward`` that guides and ranks.
        num_candidates: plans drawn for each state, of which the value chooses one.
        choice_temperature: 0 takes the candidate of the highest value; above 0 one is drawn with
            probability proportional to exp(value / choice_temperature), so that differences smaller
            than that, which may be errors of the value, decide nothing.
        compile: compile the network, on CUDA into graphs.
        lookahead: environment steps that the PD law aims ahead on the plan.
        kp: gain of the PD law's position.
        kd: gain of the PD law's velocity.
    """

    execute: Execute | None = None
    replan_every: int | None = None
    warm_start_steps: int = 0
    value_ckpt: str | None = None
    num_candidates: int = 1
    choice_temperature: float = 0.0
    compile: bool = False
    lookahead: int = 1
    kp: float = 10.0
    kd: float = 1.0


class Diffuser(PlanningModule):
    """A diffusion model over trajectories of actions and states, conditioned by in-painting.

    A trajectory is (H, A + O), actions first; its first state is given and, where there is a goal, the
    first G entries of its last one. A ``TrajectoryValue`` may guide plans and choose among them.

    Args:
        goal_velocity: at the goal only the position is given and all else is ``free``, or all else is
            ``zero``, as in the paper.
        action_weight: weight of the first action's loss.
        loss_discount: weight of each further step's loss, relative to the step before.
        training: keywords of :class:`PlanningModule`.
    """

    takes_goals = True
    acting = PlanActing
    known: Tensor  # (H, A + O) bool, the entries that are given
    loss_weight: Tensor  # (H, A + O)

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_train_timesteps: int = 64,
        prediction_type: PredictionType = "x0",
        normalizer: NormalizerKind = "limits",
        goal_velocity: Literal["free", "zero"] = "free",
        action_weight: float = 1.0,
        loss_discount: float = 1.0,
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            num_train_timesteps=num_train_timesteps,
            prediction_type=prediction_type,
            normalizer=normalizer,
            **training,
        )
        if self.goal_dim > observation_dim:
            raise InputError(f"goal_dim={self.goal_dim} must not exceed {observation_dim=}.")
        horizon, self.denoiser = self.horizon, self.make_net(observation_dim + action_dim)
        self.ema = self.average(self.denoiser)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim)
        entries = observation_dim if self.goal_dim and goal_velocity == "zero" else self.goal_dim
        known = known_states(horizon, action_dim, observation_dim, entries)
        self.register_buffer("known", known, persistent=False)
        weight = (loss_discount ** torch.arange(horizon))[:, None].repeat(1, known.shape[1])
        weight /= weight.mean()
        weight[0, :action_dim] = action_weight
        self.register_buffer("loss_weight", weight, persistent=False)

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states and actions."""
        if self.goal_dim:
            data.check_goal_leads_state()
        super().fit_normalizers(data)

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the denoised trajectory (Janner et al. 2022, section 3.1)."""
        x0 = self.trajectory.join(batch["actions"], batch["observations"])
        loss = self.diffusion.loss(
            self.denoiser, x0, weight=self.loss_weight, constraint=inpaint(x0, self.known)
        )
        return loss.mean(), {}

    def predict_noise(self, xt: Tensor, t: Tensor) -> Tensor:
        """The noise (B, H, A + O) in normalised trajectories at steps (B,), of the clipped x0."""
        x0 = self.diffusion.to_x0(self.ema(xt, t), xt, t)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        signal, noise = self.diffusion.signal_noise(t, xt.ndim)
        return (xt - signal * x0) / noise

    def plan(
        self,
        observations: Tensor,
        goals: Tensor | None,
        how: PlanActing,
        *,
        value: ValueFn | None = None,
        denoise: DenoiseFn | None = None,
        generator: Generators = None,
        elapsed: Tensor | None = None,
        previous: Plan | None = None,
    ) -> Plan:
        """Plans of H steps from states (N, O) to goals (N, G), in environment units.

        With a value, the steps of the sampler are guided by its gradient (Janner et al. 2022,
        algorithm 1), and of several candidates one is chosen by it.

        Args:
            observations: current states.
            goals: positions to end at, the state's first G entries; None where G is 0.
            how: ways to sample, guide and choose.
            value: of normalised trajectories, such as ``TrajectoryValue.value``.
            denoise: the network, default the averaged one.
            generator: source of noise, one for all or one a state.
            elapsed: steps of a plan (N,) since the first plan: goals are reached as much earlier.
            previous: the last plans, shifted to begin now.
        """
        k = how.num_candidates
        constraint = self._constraint(observations, goals, elapsed).repeat(k)
        guide, before = None, None
        if value is not None:
            guide = value_guided(value, self.diffusion, how, constraint=constraint)
        if previous is not None:
            before = self.trajectory.join(previous.actions, previous.observations)
            before = before.repeat_interleave(k, 0)
        x = draw(
            self.diffusion,
            denoise or self.ema,
            constraint.values.shape,
            how,
            like=observations,
            constraint=constraint,
            clip=self.clip,
            pre_step=guide,
            generator=generator,
            previous=before,
            warm_start_steps=how.warm_start_steps,
        )
        actions, states = self.trajectory.split(x.unflatten(0, (-1, k)))
        if value is None:
            return Plan(states[:, 0], actions[:, 0])
        values = value(x, torch.full((len(x),), -1, device=x.device)).unflatten(0, (-1, k))
        rows = torch.arange(len(values), device=x.device)
        chosen = choose(values, how.choice_temperature, generator)
        return Plan(states[rows, chosen], actions[rows, chosen], states, values)

    def build_policy(self, how: PlanActing) -> PlannerPolicy:
        """A policy that plans in N environments as one batch.

        Raises:
            InputError: if states can not be tracked, or there is no value to guide or choose by.
        """
        execute = how.execute or ("states" if self.goal_dim else "actions")
        if execute == "states" and self.observation_dim != 2 * self.action_dim:
            raise InputError(
                "execute=states needs a state of positions and velocities, one pair for each action, "
                f"not {self.observation_dim} entries for {self.action_dim}: use execute=actions."
            )
        how.timesteps(self.diffusion)
        value, net = self._load_value(how), self.inference_net(how.compile)
        plan = partial(self.plan, how=how, value=value, denoise=net)
        return PlannerPolicy(
            plan,
            stride=self.stride,
            execute=execute,
            replan_every=how.replan_every,
            warm_start=how.warm_start_steps > 0,
            lookahead=how.lookahead,
            kp=how.kp,
            kd=how.kd,
            **self.policy_options(),
        )

    def _load_value(self, how: PlanActing) -> ValueFn | None:
        """The value that guides and chooses, None where nothing asks for one."""
        if how.value_ckpt is not None:
            return self.load_companion(how.value_ckpt, "value", same=SAME_TRAJECTORIES).value
        if how.num_candidates > 1 or how.value_guidance_scale:
            raise InputError(
                f"num_candidates={how.num_candidates} and "
                f"value_guidance_scale={how.value_guidance_scale} need a value to choose by and to "
                "climb: give value_ckpt, the checkpoint of a TrajectoryValue."
            )
        return None

    def _constraint(
        self, observations: Tensor, goals: Tensor | None, elapsed: Tensor | None
    ) -> Inpaint:
        """In-painting of the current states and, at the end, of the goals."""
        if (goals is not None) != bool(self.goal_dim):
            raise InputError(
                f"This Diffuser has goals of {self.goal_dim} dimensions: "
                "give goals if and only if that is not 0."
            )
        values = observations.new_zeros(len(observations), *self.known.shape)
        values[:, 0, self.action_dim :] = self.trajectory.observations.normalize(observations)
        known = self.known
        if goals is not None:
            end = torch.zeros_like(observations)
            end[:, : self.goal_dim] = goals
            values[:, 1:, self.action_dim :] = self.trajectory.observations.normalize(end)[:, None]
            if elapsed is not None:
                step = torch.arange(self.horizon, device=values.device)
                arrived = (step >= self.horizon - 1 - elapsed[:, None]) & (step > 0)
                known = torch.where(arrived[..., None], known[-1], known)
        return inpaint(values, known)
