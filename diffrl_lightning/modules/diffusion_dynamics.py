"""A world model whose trajectories follow a policy (PolyGRAD, Rigter et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    PolicyDrawn,
    PolicyGuided,
    ddpm_sample,
    inpaint,
    power_cosine_betas,
    randn,
)
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.nets import EMA, Normal, StepTransformer, TransitionMLP
from diffrl_lightning.normalizers import GaussianNormalizer, TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import ChunkBatch, Generators, Imagined, InputError

PolicyFn = Callable[[Tensor], Normal]
"""A Gaussian policy: states (..., O) -> over actions (..., A), both in environment units."""

_PREDICTION_STEPS = 4
_MOST_DEVIATIONS = 3.0  # guided actions stay so close to the policy, in its standard deviations


class DiffusionDynamics(DiffusionModule):
    """States, rewards and ends of H steps at once, diffused given the first state and the actions.

    All steps of a trajectory are denoised together, so that errors do not add up from step to step as
    in a model that is fed its own predictions. Actions are given: as noisy as the trajectory is they
    are scaled by sqrt(abar_t), and are not denoised themselves. Imagining what a policy would do, they
    begin as noise, and at each step of the sampler they climb the policy's density at the states that
    are predicted by then, or are drawn from it there (``imagine``); what given actions lead to is
    ``predict``.

    Where an episode really ends, its last state stays for the rest of the window, at no reward; where
    it was cut off, the rest of the window does not count. Ends are a channel of 0 and 1, which is not
    normalised, and is rounded.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: taken from the data; must be 0.
        horizon: H, steps of a trajectory, taken from the data.
        backbone: ``mlp``: residual layers over the whole trajectory at once; ``transformer``: a causal
            one over its steps.
        dim: width.
        depth: residual layers, or those of the transformer.
        num_heads: heads of the transformer.
        num_train_timesteps: T.
        schedule_power: abar = cos(pi u / 2) ** (2 power): the lower, the later comes the noise.
        follows: how imagined actions follow a policy: along its ``score``, by a step that is tuned, as
            published, or by ``draws`` from it at the states that are predicted by then.
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        ema_decay: share of the weight average that each update keeps.
        ema_update_every: optimiser steps from one update to the next.
        ema_start: optimiser steps before averaging begins.
        compile: compile the network for training.

    Raises:
        InputError: if there are goals, or an argument is unknown or out of range.
    """

    learns_from = "chunks"
    known: Tensor  # (H, O + 2) bool, the entries that are given
    step_size: Tensor  # of the actions along the policy's score, in units of normalised actions

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
        horizon: int = 10,
        backbone: Literal["mlp", "transformer"] = "mlp",
        dim: int = 1024,
        depth: int = 6,
        num_heads: int = 4,
        num_train_timesteps: int = 128,
        schedule_power: float = 0.1,
        follows: Literal["score", "draws"] = "score",
        lr: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        ema_decay: float = 0.99,
        ema_update_every: int = 10,
        ema_start: int = 2000,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.refuse_goals(goal_dim)
        if backbone not in ("mlp", "transformer"):
            raise InputError(f"{backbone=} is unknown: choose mlp or transformer.")
        if follows not in ("score", "draws"):
            raise InputError(f"{follows=} is unknown: choose score or draws.")
        if horizon < 2 or schedule_power <= 0:
            raise InputError(f"{horizon=} must be at least 2, {schedule_power=} above 0.")
        self.horizon, self.observation_dim, self.action_dim = horizon, observation_dim, action_dim
        self.follows = follows
        betas = power_cosine_betas(num_train_timesteps, schedule_power)
        self.diffusion = GaussianDiffusion(betas, "x0")
        width = observation_dim + 2
        self.flat = backbone == "mlp"
        self.denoiser: TransitionMLP | StepTransformer
        if self.flat:
            self.denoiser = TransitionMLP(
                horizon * width,
                cond_dim=horizon * action_dim,
                hidden_dim=dim,
                num_blocks=depth,
                embed_dim=max(128, horizon * (width + action_dim)),
                layer_norm=True,
            )
        else:
            self.denoiser = StepTransformer(
                width, cond_dim=action_dim, dim=dim, depth=depth, num_heads=num_heads
            )
        self.ema = EMA(
            self.denoiser, decay=ema_decay, update_every=ema_update_every, start=ema_start
        )
        self.trajectory = TrajectoryNormalizer("gaussian", observation_dim, action_dim)
        self.rewards = make_normalizer("gaussian", 1)
        known = torch.zeros(horizon, width, dtype=torch.bool)
        known[0, :observation_dim] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("step_size", torch.tensor(0.005))

    def fit_normalizers(self, datamodule: Any) -> None:
        """Take the statistics of the training episodes' states, actions and rewards.

        Raises:
            InputError: if the data's rewards are not those of the environment.
        """
        self.refuse_mapped_rewards(datamodule)
        super().fit_normalizers(datamodule)
        self.rewards.fit(*datamodule.training_rows("rewards"))

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the denoised trajectory, and how much of it is the ends'."""
        x0, actions, counts = self._trajectories(batch)
        channels: list[Tensor] = []

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            signal, _ = self.diffusion.signal_noise(t, 3)
            found = self._denoise(self.denoiser, xt, signal * actions, t)
            error = (found.detach() - x0).square() * counts
            channels.append(error.masked_fill(self.known, 0.0).mean((0, 1)))
            return found

        loss = self.diffusion.loss(
            denoise, x0, weight=counts, constraint=inpaint(x0, self.known)
        ).mean()
        share = channels[0][-1] / channels[0].sum()
        return loss, {"ends_share": share}

    def _trajectories(self, batch: ChunkBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised trajectories (B, H, O + 2) and actions (B, H, A), and which steps count."""
        steps = torch.arange(self.horizon, device=batch["steps"].device)
        beyond = steps >= batch["steps"][:, None]
        ended = batch["terminations"][:, None] > 0
        states = torch.where(
            beyond[..., None], batch["next_observations"][:, None], batch["observations"]
        )
        ends = (ended & (steps >= batch["steps"][:, None] - 1)).to(states)
        rewards = self.rewards.normalize((batch["rewards"] * ~beyond)[..., None])
        x0 = torch.cat(
            [self.trajectory.observations.normalize(states), rewards, ends[..., None]], -1
        )
        counts = (~beyond | ended).to(x0)[..., None]
        return x0, self.trajectory.actions.normalize(batch["actions"]), counts

    def _denoise(self, net: Any, x: Tensor, actions: Tensor, t: Tensor) -> Tensor:
        """The clean trajectories (B, H, O + 2) of noised ones at steps (B,), by scaled actions."""
        if not self.flat:
            return net(x, t, actions)
        signal, noise = self.diffusion.signal_noise(t, 1)
        # What the network is told of a step is its noise level, as an EDM is.
        return net(x, (noise / signal).log() / 4, actions.flatten(1))

    @torch.no_grad()
    def predict(
        self,
        states: Tensor,
        actions: Tensor,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Imagined:
        """What given actions (N, L, A) lead to from states (N, O), in environment units.

        Longer trajectories than the model's are made of several, each from the last state of the one
        before; after an end the state stays, and no reward follows.

        Args:
            states: (N, O).
            actions: (N, L, A).
            num_inference_steps: network evaluations of each, default 4: more are hardly better, as
                nothing has to agree with the actions.
            generator: source of noise, one for all or one a row.
        """
        if num_inference_steps is None:
            num_inference_steps = min(_PREDICTION_STEPS, self.diffusion.num_train_timesteps)
        at, parts, length = states, [], actions.shape[1]
        padding = actions[:, -1:].expand(-1, self.horizon, -1)
        padded = torch.cat([actions, padding], 1)
        for first in range(0, max(1, length - 1), self.horizon - 1):
            given = self.trajectory.actions.normalize(padded[:, first : first + self.horizon])

            def denoise(x: Tensor, t: Tensor, given: Tensor = given) -> Tensor:
                signal, _ = self.diffusion.signal_noise(t, 3)
                return self._denoise(self.ema, x, signal * given, t)

            found = self._imagined(self._sample(at, denoise, num_inference_steps, generator), given)
            at = found.observations[:, -1]
            parts.append([part[:, :-1] for part in found])
        parts[-1] = list(found)  # of the last one its last step too
        whole = Imagined(*(torch.cat(part, 1)[:, :length] for part in zip(*parts, strict=True)))
        return _with_ends(whole)

    @torch.no_grad()
    def imagine(
        self,
        states: Tensor,
        policy: PolicyFn,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> tuple[Imagined, Tensor]:
        """What a policy would do and what would come of it.

        Args:
            states: (N, O), in environment units.
            policy: Gaussian, in environment units.
            num_inference_steps: network evaluations, default T.
            generator: source of noise, one for all or one a row.

        Returns:
            The trajectories, and the spread of their actions: the standard deviation, over all of them,
            of how many of the policy's standard deviations each is off its mean. The policy's own is 1,
            to which ``tune`` brings it.
        """
        normalizer = self.trajectory.actions
        assert isinstance(normalizer, GaussianNormalizer)

        @lru_cache(maxsize=1)  # score and bounds are asked for at one prediction after the other
        def at(x0: Tensor) -> Normal:
            found = policy(self._states_of(x0))
            return Normal(normalizer.normalize(found.mean), found.std / normalizer.std)

        def score(x0: Tensor, actions: Tensor) -> Tensor:
            mean, std = at(x0)
            # No step goes beyond the mean: of a narrow policy it would land farther off than it began.
            return (mean - actions) / std.square().clamp(min=self.step_size)

        def within(x0: Tensor, actions: Tensor) -> Tensor:
            mean, std = at(x0)
            return actions.clamp(mean - _MOST_DEVIATIONS * std, mean + _MOST_DEVIATIONS * std)

        def drawn(x0: Tensor) -> Tensor:
            mean, std = at(x0)
            return mean + std * noise

        def denoise(x: Tensor, actions: Tensor, t: Tensor) -> Tensor:
            return torch.where(self.known, known, self._denoise(self.ema, x, actions, t))

        known = self._start(states)
        shape = (len(states), self.horizon, self.action_dim)
        noise = randn(shape, generator=generator, like=known)
        guided = (
            PolicyDrawn(denoise, self.diffusion, noise, draw=drawn)
            if self.follows == "draws"
            else PolicyGuided(
                denoise,
                self.diffusion,
                noise,
                score=score,
                within=within,
                step_size=self.step_size,
                num_inference_steps=num_inference_steps,
                generator=generator,
            )
        )
        x = self._sample(states, guided, num_inference_steps, generator)
        mean, std = at(x)
        spread = ((guided.actions - mean) / std).std((0, 1)).mean()
        return _with_ends(self._imagined(x, guided.actions)), spread

    def tune(self, spread: Tensor, lr: float = 3e-3) -> None:
        """Move the step along the policy's score, up to 1, so that actions spread as the policy's.

        Args:
            spread: of actions that were imagined, as ``imagine`` returns it.
            lr: step of the size's logarithm.
        """
        self.step_size *= torch.exp(lr * (spread - 1)).to(self.step_size)
        self.step_size.clamp_(max=1.0)

    def _start(self, states: Tensor) -> Tensor:
        """Trajectories (N, H, O + 2) of which only the first state (N, O) is set."""
        first = self.trajectory.observations.normalize(states)
        x = first.new_zeros(len(first), self.horizon, self.observation_dim + 2)
        x[:, 0, : self.observation_dim] = first
        return x

    def _sample(
        self,
        states: Tensor,
        denoise: Callable[[Tensor, Tensor], Tensor],
        num_inference_steps: int | None,
        generator: Generators,
    ) -> Tensor:
        known = self._start(states)
        return ddpm_sample(
            self.diffusion,
            denoise,
            randn(known.shape, generator=generator, like=known),
            num_inference_steps=num_inference_steps,
            constraint=inpaint(known, self.known),
            generator=generator,
        )

    def _states_of(self, x: Tensor) -> Tensor:
        return self.trajectory.observations.unnormalize(x[..., : self.observation_dim])

    def _imagined(self, x: Tensor, actions: Tensor) -> Imagined:
        return Imagined(
            self._states_of(x),
            self.trajectory.actions.unnormalize(actions),
            self.rewards.unnormalize(x[..., -2:-1])[..., 0],
            (x[..., -1] > 0.5).to(x),
        )


def _with_ends(found: Imagined) -> Imagined:
    """Nothing comes after an end, whatever was predicted."""
    ended = found.terminations.cummax(1).values
    before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
    # The state behind the step that ended it is the last one.
    last = (1 - before).sum(1).long().clamp(max=ended.shape[1] - 1)
    final = found.observations.take_along_dim(last[:, None, None], 1)
    observations = torch.where(before[..., None] > 0, final, found.observations)
    return Imagined(observations, found.actions, found.rewards * (1 - before), ended)
