"""A world model whose trajectories follow a policy (PolyGRAD, Rigter et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion import (
    GaussianDiffusion,
    PolicyGuided,
    ddpm_sample,
    inference_timesteps,
    inpaint,
    power_cosine_betas,
    randn,
)
from diffrl_lightning.inputs import at_least, one_of
from diffrl_lightning.modules.environment_model import EnvironmentModel, absorb
from diffrl_lightning.nets import Normal, StepTransformer, TransitionMLP
from diffrl_lightning.normalizers import GaussianNormalizer, TrajectoryNormalizer, make_normalizer
from diffrl_lightning.types import ChunkBatch, DenoiseFn, Generators, Imagined

PolicyFn = Callable[[Tensor], Normal]
"""A Gaussian policy: states (..., O) -> over actions (..., A), both in environment units."""

_PREDICTION_STEPS = 4


class DiffusionDynamics(EnvironmentModel):
    """States, rewards and terminations of H steps, diffused given the first state and the actions.

    All steps are denoised together, so that errors do not compound as in an autoregressive model.
    Actions are an input, scaled by sqrt(abar_t), and not denoised. ``predict`` rolls out given actions.
    ``imagine`` rolls out a policy: actions begin as noise and, at each step of the sampler, climb the
    policy's density at the states predicted there, or are drawn from it.

    A trajectory that terminates keeps its last state for the rest of the window, at no reward; the rest
    of one that is truncated has no weight. Terminations are a channel of 0 and 1, which is not
    normalised, and is rounded.

    Args:
        horizon: H, steps of a trajectory, taken from the data.
        backbone: ``mlp``: residual layers over the whole trajectory at once; ``transformer``: a causal
            one over its steps.
        dim: width.
        depth: residual layers, or those of the transformer.
        num_heads: heads of the transformer.
        num_train_timesteps: T.
        schedule_power: abar = cos(pi u / 2) ** (2 power): the lower, the later comes the noise.
        follows: how imagined actions follow a policy: along its ``score``, by a tuned step size, as
            published, or by ``draws`` from it at the states predicted so far.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = ChunkBatch
    known: Tensor  # (H, O + 2) bool, the entries that are given
    step_size: Tensor  # of actions along the policy's score, in units of normalised actions

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 10,
        backbone: Literal["mlp", "transformer"] = "mlp",
        dim: int = 1024,
        depth: int = 6,
        num_heads: int = 4,
        num_train_timesteps: int = 128,
        schedule_power: float = 0.1,
        follows: Literal["score", "draws"] = "score",
        ema_decay: float = 0.99,
        ema_update_every: int = 10,
        ema_start: int = 2000,
        **training: Any,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            ema_decay=ema_decay,
            ema_update_every=ema_update_every,
            ema_start=ema_start,
            **training,
        )
        one_of(("mlp", "transformer"), backbone=backbone)
        one_of(("score", "draws"), follows=follows)
        at_least(2, horizon=horizon)
        self.horizon, self.follows, self.flat = horizon, follows, backbone == "mlp"
        betas = power_cosine_betas(num_train_timesteps, schedule_power)
        self.diffusion = GaussianDiffusion(betas, "x0")
        width = observation_dim + 2
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
        self.ema = self.average(self.denoiser)
        self.trajectory = TrajectoryNormalizer("gaussian", observation_dim, action_dim)
        self.rewards = make_normalizer("gaussian", 1)
        known = torch.zeros(horizon, width, dtype=torch.bool)
        known[0, :observation_dim] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("step_size", torch.tensor(0.005))

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the denoised trajectory, x0 in eq. 14 of Ho et al. 2020; the terminations' share."""
        x0, actions, weight = self._trajectories(batch)
        channels: list[Tensor] = []

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            signal, _ = self.diffusion.signal_noise(t, 3)
            prediction = self._denoise(self.denoiser, xt, signal * actions, t)
            error = (prediction.detach() - x0).square() * weight
            channels.append(error.masked_fill(self.known, 0.0).mean((0, 1)))
            return prediction

        loss = self.diffusion.loss(denoise, x0, weight=weight, constraint=inpaint(x0, self.known))
        return loss.mean(), {"ends_share": channels[0][-1] / channels[0].sum()}

    def _trajectories(self, batch: ChunkBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised trajectories (B, H, O + 2), actions (B, H, A), and weights of steps (B, H, 1)."""
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
        weight = (~beyond | ended).to(x0)[..., None]
        return x0, self.trajectory.actions.normalize(batch["actions"]), weight

    def _denoise(self, net: Any, x: Tensor, actions: Tensor, t: Tensor) -> Tensor:
        """The clean trajectories (B, H, O + 2) of noised ones at steps (B,), by scaled actions."""
        if not self.flat:
            return net(x, t, actions)
        return net(x, self.diffusion.c_noise(t), actions.flatten(1))

    @torch.no_grad()
    def predict(
        self,
        states: Tensor,
        actions: Tensor,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Imagined:
        """Roll out given actions (N, L, A) from states (N, O), in environment units.

        Trajectories longer than H are made of several, each from the last state of the one before.
        After a termination the state stays, and no reward follows.

        Args:
            states: (N, O).
            actions: (N, L, A).
            num_inference_steps: network evaluations of each, default 4: more are hardly better.
            generator: source of noise, one for all or one a row.
        """
        train_steps = self.diffusion.num_train_timesteps
        if num_inference_steps is None:
            num_inference_steps = min(_PREDICTION_STEPS, train_steps)
        timesteps = inference_timesteps(train_steps, num_inference_steps)
        at, parts, length = states, [], actions.shape[1]
        padding = actions[:, -1:].expand(-1, self.horizon, -1)
        padded = self.trajectory.actions.normalize(torch.cat([actions, padding], 1))
        for first in range(0, max(1, length - 1), self.horizon - 1):
            given = padded[:, first : first + self.horizon]
            x = self._sample(self._start(at), self._given(given), timesteps, generator)
            part = self._unnormalized(x, given)
            at = part.observations[:, -1]
            parts.append([x[:, :-1] for x in part])
        parts[-1] = list(part)  # of the last one its last step too
        whole = Imagined(*(torch.cat(x, 1)[:, :length] for x in zip(*parts, strict=True)))
        return absorb(whole)

    def _given(self, actions: Tensor) -> DenoiseFn:
        """The averaged network with normalised actions (N, H, A) bound, scaled as in training."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            signal, _ = self.diffusion.signal_noise(t, 3)
            return self._denoise(self.ema, x, signal * actions, t)

        return denoise

    @torch.no_grad()
    def imagine(
        self,
        states: Tensor,
        policy: PolicyFn,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> tuple[Imagined, Tensor]:
        """Roll out a policy (PolyGRAD, algorithm 1).

        Args:
            states: (N, O), in environment units.
            policy: Gaussian, in environment units.
            num_inference_steps: network evaluations, default T.
            generator: source of noise, one for all or one a row.

        Returns:
            The trajectories, and the spread of their actions: the standard deviation, over all of them,
            of (a - mean) / std under the policy. The policy's own is 1, to which ``tune`` brings it.
        """
        timesteps = inference_timesteps(self.diffusion.num_train_timesteps, num_inference_steps)
        known, normalizer = self._start(states), self.trajectory.actions
        assert isinstance(normalizer, GaussianNormalizer)

        def gaussian(x0: Tensor) -> Normal:
            mean, std = policy(self._states(x0))
            return Normal(normalizer.normalize(mean), std / normalizer.std)

        def denoise(x: Tensor, actions: Tensor, t: Tensor) -> Tensor:
            return torch.where(self.known, known, self._denoise(self.ema, x, actions, t))

        guided = PolicyGuided(
            denoise,
            self.diffusion,
            gaussian,
            randn((len(states), self.horizon, self.action_dim), generator=generator, like=known),
            follows=self.follows,
            step_size=self.step_size,
            timesteps=timesteps,
            generator=generator,
        )
        x = self._sample(known, guided, timesteps, generator)
        mean, std = gaussian(x)
        spread = ((guided.actions - mean) / std).std((0, 1)).mean()
        return absorb(self._unnormalized(x, guided.actions)), spread

    def tune(self, spread: Tensor, lr: float = 3e-3) -> None:
        """Move the step size, up to 1, so that imagined actions spread as the policy's do.

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
        self, known: Tensor, denoise: DenoiseFn, timesteps: Sequence[int], generator: Generators
    ) -> Tensor:
        """Normalised trajectories (N, H, O + 2) from the first states of ``known``."""
        return ddpm_sample(
            self.diffusion,
            denoise,
            randn(known.shape, generator=generator, like=known),
            timesteps=timesteps,
            constraint=inpaint(known, self.known),
            generator=generator,
        )

    def _states(self, x: Tensor) -> Tensor:
        return self.trajectory.observations.unnormalize(x[..., : self.observation_dim])

    def _unnormalized(self, x: Tensor, actions: Tensor) -> Imagined:
        return Imagined(
            self._states(x),
            self.trajectory.actions.unnormalize(actions),
            self.rewards.unnormalize(x[..., -2:-1])[..., 0],
            (x[..., -1] > 0.5).to(x),
        )
