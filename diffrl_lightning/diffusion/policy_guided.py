"""Trajectories that follow a policy: actions climb its density while states are denoised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion
from diffrl_lightning.diffusion.noise import randn
from diffrl_lightning.types import Generators

ScoreFn = Callable[[Tensor, Tensor], Tensor]
"""Gradient of a policy's log density: ``x0 (B, H, D), actions (B, H, A) -> (B, H, A)``."""

GaussianFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A Gaussian policy's mean and standard deviation (B, H, A) at ``x0 (B, H, D)``."""

_MOST_DEVIATIONS = 3.0  # guided actions stay so close to the policy, in its standard deviations


class PolicyGuided:
    """A denoising function whose actions move with it (PolyGRAD, Rigter et al. 2024, algorithm 1).

    It goes to a sampler in the place of the network. At each of its calls it predicts the clean
    trajectory from the actions scaled by sqrt(abar_t), as the network was trained; then the actions
    take a step along the policy's score at the predicted states, and noise of the posterior's variance.
    At the last call they are only kept within bounds.

    Args:
        denoise: ``x (B, H, D), scaled actions (B, H, A), t (B,) -> x0 (B, H, D)``.
        diffusion: the process.
        actions: to begin with (B, H, A), standard normal; ``actions`` holds them from then on.
        score: gradient of the policy's log density.
        step_size: of a step along it; 0 leaves the actions to their noise.
        within: keeps actions near the policy, ``x0, actions -> actions``; default anywhere.
        timesteps: those of the sampler, descending.
        generator: source of noise, one for all or one a row.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
        diffusion: GaussianDiffusion,
        actions: Tensor,
        *,
        score: ScoreFn,
        step_size: float | Tensor,
        timesteps: Sequence[int],
        within: ScoreFn | None = None,
        generator: Generators = None,
    ) -> None:
        self.denoise, self.diffusion, self.actions = denoise, diffusion, actions
        self.score, self.step_size, self.within = score, step_size, within
        self.generator = generator
        self._steps = iter(zip(timesteps, [*timesteps[1:], -1], strict=True))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The predicted clean trajectory (B, H, D) of the sampler's next step."""
        step, following = next(self._steps)
        signal, _ = self.diffusion.signal_noise(step, 3)
        x0 = self.denoise(x, signal * self.actions, t)
        actions = self.actions if self.within is None else self.within(x0, self.actions)
        if following >= 0:
            _, variance = self.diffusion.posterior(actions, actions, step, following)
            noise = randn(actions.shape, generator=self.generator, like=actions)
            actions = actions + self.step_size * self.score(x0, actions) + variance.sqrt() * noise
        self.actions = actions
        return x0


class PolicyDrawn:
    """A denoising function whose actions are drawn anew at each call, from the policy at what it finds.

    The noise that they are drawn with stays the same from call to call, so that actions settle as the
    trajectory does: then they are the policy's, whatever its spread, with nothing to tune. It is the
    better of the two where steps are few; along a score, actions lag behind.

    Args:
        denoise: ``x (B, H, D), scaled actions (B, H, A), t (B,) -> x0 (B, H, D)``.
        diffusion: the process.
        actions: to begin with (B, H, A), standard normal.
        draw: the policy's actions at a predicted trajectory, ``x0 (B, H, D) -> (B, H, A)``, with noise
            that stays; ``actions`` holds them from then on.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
        diffusion: GaussianDiffusion,
        actions: Tensor,
        *,
        draw: Callable[[Tensor], Tensor],
    ) -> None:
        self.denoise, self.diffusion, self.actions, self.draw = denoise, diffusion, actions, draw

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The predicted clean trajectory (B, H, D)."""
        signal, _ = self.diffusion.signal_noise(t, 3)
        x0 = self.denoise(x, signal * self.actions, t)
        self.actions = self.draw(x0)
        return x0


def follow_gaussian(
    follows: Literal["score", "draws"],
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    diffusion: GaussianDiffusion,
    policy: GaussianFn,
    noise: Tensor,
    *,
    step_size: Tensor,
    timesteps: Sequence[int],
    generator: Generators = None,
) -> PolicyGuided | PolicyDrawn:
    """Guidance by a Gaussian policy: along its score, within 3 deviations, or by draws from it.

    Args:
        follows: which of the two.
        denoise: ``x (B, H, D), scaled actions (B, H, A), t (B,) -> x0 (B, H, D)``.
        diffusion: the process.
        policy: mean and standard deviation of actions at a predicted trajectory.
        noise: actions to begin with (B, H, A), standard normal.
        step_size: of a step along the score.
        timesteps: those of the sampler, descending.
        generator: source of noise, one for all or one a row.
    """

    def drawn(x0: Tensor) -> Tensor:
        mean, std = policy(x0)
        return mean + std * noise

    def score(x0: Tensor, actions: Tensor) -> Tensor:
        mean, std = policy(x0)
        # No step goes beyond the mean: of a narrow policy it would land farther off than it began.
        return (mean - actions) / std.square().clamp(min=step_size)

    def within(x0: Tensor, actions: Tensor) -> Tensor:
        mean, std = policy(x0)
        return actions.clamp(mean - _MOST_DEVIATIONS * std, mean + _MOST_DEVIATIONS * std)

    if follows == "draws":
        return PolicyDrawn(denoise, diffusion, noise, draw=drawn)
    return PolicyGuided(
        denoise,
        diffusion,
        noise,
        score=score,
        within=within,
        step_size=step_size,
        timesteps=timesteps,
        generator=generator,
    )


def score_of(log_prob: Callable[[Tensor, Tensor], Tensor]) -> ScoreFn:
    """The score of any policy, by automatic differentiation.

    Args:
        log_prob: ``x0 (B, H, D), actions (B, H, A) -> (B, H)``.
    """

    def score(x0: Tensor, actions: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            inner = actions.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(x0.clone(), inner).sum(), inner)
        return gradient

    return score
