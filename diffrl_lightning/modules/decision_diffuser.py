"""Decision Diffuser: states are planned, actions follow by inverse dynamics (Ajay et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion import (
    Inpaint,
    Sampling,
    compose_conditions,
    draw,
    inpaint,
)
from diffrl_lightning.modules.trajectories import PlanningModule
from diffrl_lightning.nets import ConditionalDenoiser, InverseDynamics
from diffrl_lightning.normalizers import NormalizerKind, make_normalizer
from diffrl_lightning.policies.planner import Plan, PlannerPolicy
from diffrl_lightning.types import DenoiseFn, Generators, InputError, SequenceBatch, TrainingData

Condition = Literal["return", "skill"]


@dataclass(frozen=True, kw_only=True)
class ConditionalPlanActing(Sampling):
    """How a DecisionDiffuser plans: the conditions of its plans, and how often it replans.

    Args:
        target_return: the return to condition on, 1 the highest of the data; default 0.9 where the
            model knows returns, else none.
        guidance_scale: weight of the return's condition: 0 is unconditional, 1 conditional.
        skills: weights of skills by their number, as ``{0: 1.5, 2: -0.5}``; negative is NOT.
        replan_every: environment steps between plans.
        warm_start_steps: a new plan starts from the last one, noised to the level at which so many
            evaluations are left; 0 plans from pure noise.
        compile: compile the network, on CUDA into graphs.
    """

    temperature: float = 0.5
    target_return: float | None = None
    guidance_scale: float = 1.2
    skills: dict[int, float] | None = None
    replan_every: int = 1
    warm_start_steps: int = 0
    compile: bool = False


class DecisionDiffuser(PlanningModule):
    """A diffusion model over states, steered by classifier-free guidance.

    A plan is (H, O). It begins with the last observed states, which count in H; the states after them
    are drawn under conditions, and the action is the one that leads from the current state to the next.

    Args:
        num_origins: datasets of the data's list, taken from the data: skills to choose from.
        conditions: of plans: the ``return`` to go, the ``skill`` (which dataset of a list), or both.
        n_obs_steps: C, states up to now that a plan is made from; in training 1 to C are given.
        hidden_dim: width of the inverse dynamics.
        returns_scale: divisor of the return to go; default: scaled to [0, 1] over the data.
        cond_drop_prob: chance that a sample's condition is dropped in training.
        next_state_weight: weight of the loss of the first state that is not given.
        loss_discount: weight of each further step's loss, relative to the step before.
        training: keywords of :class:`PlanningModule`.
    """

    acting = ConditionalPlanActing
    loss_weight: Tensor  # (H, 1)

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        num_origins: int = 1,
        conditions: tuple[Condition, ...] = ("return",),
        n_obs_steps: int = 1,
        hidden_dim: int = 256,
        normalizer: NormalizerKind = "cdf",
        returns_scale: float | None = None,
        cond_drop_prob: float = 0.25,
        next_state_weight: float = 1.0,
        loss_discount: float = 1.0,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, normalizer=normalizer, **training)
        horizon, dim = self.horizon, self.hparams["dim"]
        if not conditions or not set(conditions) <= {"return", "skill"}:
            raise InputError(f"{conditions=} must be return, skill, or both.")
        if not 1 <= n_obs_steps < horizon:
            raise InputError(f"{n_obs_steps=} must be at least 1 and less than {horizon=}.")
        self.n_obs_steps = n_obs_steps
        self.conditions, self.num_origins = tuple(conditions), num_origins
        self.needs_rewards = "return" in conditions
        widths: dict[str, int] = {"return": 1, "skill": num_origins}
        self.denoiser = ConditionalDenoiser(
            self.make_net(observation_dim, dim),
            condition_dims={name: widths[name] for name in conditions},
            embed_dim=dim,
            drop_prob=cond_drop_prob,
        )
        self.inverse_dynamics = InverseDynamics(observation_dim, action_dim, hidden_dim=hidden_dim)
        self.ema = self.average(self.denoiser)
        self.inverse_ema = self.average(self.inverse_dynamics)
        self.observations = make_normalizer(normalizer, observation_dim)
        self.actions = make_normalizer(normalizer, action_dim)
        self.returns = make_normalizer("limits", 1) if returns_scale is None else None
        weight = loss_discount ** torch.arange(horizon)[:, None]
        self.register_buffer("loss_weight", weight / weight.mean(), persistent=False)

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states, actions and returns to go."""
        self.observations.fit(*data.training_rows("observations"))
        self.actions.fit(*data.training_rows("actions"))
        if self.returns is not None:
            self.returns.fit(data.training_returns()[:, None])

    def compute_loss(self, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of the denoising and the inverse dynamics' error (Ajay et al. 2023, section 4)."""
        x0 = self.observations.normalize(batch["observations"])
        seen = torch.randint(self.n_obs_steps, (len(x0),), device=x0.device) + 1
        step = torch.arange(self.horizon, device=x0.device)
        next_state = (step == seen[:, None])[..., None]
        weight = torch.where(next_state, self.hparams["next_state_weight"], self.loss_weight)
        conditions = {name: self._condition(name, batch) for name in self.conditions}
        diffusion_loss = self.diffusion.loss(
            lambda x, t: self.denoiser(x, t, conditions),
            x0,
            weight=weight,
            constraint=inpaint(x0, (step < seen[:, None])[..., None]),
        ).mean()
        actions = self.actions.normalize(batch["actions"][:, :-1])
        error = (self.inverse_dynamics(x0) - actions).square().mean(-1)
        real = batch["mask"][:, 1:]  # padding repeats an episode's last state
        inverse_loss = (error * real).sum() / real.sum().clamp_min(1)
        info = {"diffusion_loss": diffusion_loss.detach(), "inverse_loss": inverse_loss.detach()}
        return (diffusion_loss + inverse_loss) / 2, info

    def plan(
        self,
        observations: Tensor,
        goals: Tensor | None,
        how: ConditionalPlanActing,
        *,
        net: Callable[..., Tensor] | None = None,
        generator: Generators = None,
        elapsed: Tensor | None = None,
        previous: Plan | None = None,
    ) -> Plan:
        """Plans from states, in environment units; their first step is now.

        Args:
            observations: current states (N, O), or the last C of them (N, C, O), the oldest first.
            goals: None.
            how: ways to sample, and the conditions; a ``target_return`` of None is no condition.
            net: the network, default the averaged one.
            generator: source of noise, one for all or one a state.
            elapsed: steps of a plan (N,) since the episode's first; states from before it do not count.
            previous: the last plans, shifted to begin now.
        """
        states = observations if observations.ndim == 3 else observations[:, None]
        n, c = states.shape[:2]
        seen = torch.full((n,), c, device=states.device)
        if elapsed is not None:
            seen = seen.minimum(elapsed + 1)
        constraint = self._constraint(states, seen)
        rows = torch.arange(n, device=states.device)[:, None]
        window = torch.arange(self.horizon - c + 1, device=states.device) + seen[:, None] - 1
        before = None
        if previous is not None:
            before = constraint.values.clone()
            before[rows, window] = self.observations.normalize(previous.observations)
        x = draw(
            self.diffusion,
            self.guided(n, how, net),
            constraint.values.shape,
            how,
            like=states,
            constraint=constraint,
            clip=self.clip,
            generator=generator,
            previous=before,
            warm_start_steps=how.warm_start_steps,
        )[rows, window]
        actions = self.actions.unnormalize(self.inverse_ema(x))
        actions = torch.cat([actions, actions[:, -1:]], 1)  # the last state has no successor
        return Plan(self.observations.unnormalize(x), actions)

    def guided(
        self, n: int, how: ConditionalPlanActing, net: Callable[..., Tensor] | None = None
    ) -> DenoiseFn:
        """The denoiser of n rows under the target return and the skills, each with its weight."""
        full = partial(torch.full, device=self.device, dtype=self.float_dtype)
        weighted: list[tuple[dict[str, Tensor], float]] = []
        if how.target_return is not None:
            self._check_condition("return")
            weighted.append(({"return": full((n, 1), how.target_return)}, how.guidance_scale))
        for skill, weight in (how.skills or {}).items():
            self._check_condition("skill", int(skill))
            one_hot = full((n, self.num_origins), 0.0)
            one_hot[:, int(skill)] = 1
            weighted.append(({"skill": one_hot}, weight))
        return compose_conditions(net or self.ema, weighted)

    def build_policy(self, how: ConditionalPlanActing) -> PlannerPolicy:
        """A policy that plans in N environments as one batch."""
        if how.target_return is None and "return" in self.conditions:
            how = replace(how, target_return=0.9)
        self.guided(1, how)  # refuses unknown conditions
        how.timesteps(self.diffusion)
        return PlannerPolicy(
            partial(self.plan, how=how, net=self.inference_net(how.compile)),
            stride=self.stride,
            replan_every=how.replan_every,
            warm_start=how.warm_start_steps > 0,
            n_obs_steps=self.n_obs_steps,
            **self.policy_options(),
        )

    def _check_condition(self, name: Condition, skill: int = 0) -> None:
        if name not in self.conditions:
            trained = " and ".join(self.conditions)
            raise InputError(
                f"This model was not trained on the condition {name!r}, but on {trained}: leave it "
                "out, or train with it in conditions."
            )
        if not 0 <= skill < self.num_origins:
            raise InputError(f"{skill=} must be below the {self.num_origins} datasets trained on.")

    def _condition(self, name: Condition, batch: SequenceBatch) -> Tensor:
        """A batch's scaled returns (B, 1), or its skills, one-hot (B, num_origins)."""
        if name == "skill":
            return nn.functional.one_hot(batch["origins"], self.num_origins).to(batch["returns"])
        returns = batch["returns"][:, None]
        if self.returns is None:
            return returns / self.hparams["returns_scale"]
        return (self.returns.normalize(returns) + 1) / 2

    def _constraint(self, states: Tensor, seen: Tensor) -> Inpaint:
        """In-painting of the last ``seen`` (N,) of the states (N, C, O) at the plan's beginning."""
        c, step = states.shape[1], torch.arange(self.horizon, device=states.device)
        index = (step + (c - seen)[:, None]).clamp_max(c - 1)  # (N, H)
        values = self.observations.normalize(states.take_along_dim(index[..., None], 1))
        return inpaint(values, (step < seen[:, None])[..., None])
