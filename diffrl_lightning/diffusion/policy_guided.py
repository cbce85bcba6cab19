"""Trajectories that follow a policy: actions climb its density while states are denoised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from diffrl_lightning.diffusion.gaussian import GaussianDiffusion
from diffrl_lightning.diffusion.noise import randn
from diffrl_lightning.types import Generators

GaussianFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A Gaussian policy's mean and standard deviation (B, H, A) at ``x0 (B, H, D)``."""

_MOST_DEVIATIONS = 3.0  # guided actions stay so close to the policy, in its standard deviations


class PolicyGuided:
    """A denoising function whose actions move with it; a sampler takes it in the network's place.

    At each call it predicts the clean trajectory from the actions scaled by sqrt(abar_t), as the
    network was trained; then the actions follow the policy at the predicted states.

    Along its ``score`` (PolyGRAD, Rigter et al. 2024, algorithm 1) they take a step, within 3
    deviations, and noise of the posterior's variance; at the last call they are only kept within
    bounds. By ``draws`` they are the policy's anew, by noise that stays the same from call to call,
    so that actions settle as the trajectory does, whatever the policy's spread, with nothing to tune.
    That is the better of the two where steps are few; along a score, actions lag behind.

    Args:
        denoise: ``x (B, H, D), scaled actions (B, H, A), t (B,) -> x0 (B, H, D)``.
        diffusion: the process.
        policy: mean and standard deviation of actions at a predicted trajectory.
        actions: standard normal ones (B, H, A) to begin with; ``actions`` holds them from then on.
        follows: ``score`` or ``draws``.
        step_size: of a step along the score; 0 leaves the actions to their noise.
        timesteps: those of the sampler, descending.
        generator: source of noise, one for all or one a row.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
        diffusion: GaussianDiffusion,
        policy: GaussianFn,
        actions: Tensor,
        *,
        follows: Literal["score", "draws"],
        step_size: Tensor,
        timesteps: Sequence[int],
        generator: Generators = None,
    ) -> None:
        self.denoise, self.diffusion, self.policy = denoise, diffusion, policy
        self.actions = self.noise = actions
        self.follows, self.step_size, self.generator = follows, step_size, generator
        self._steps = iter(zip(timesteps, [*timesteps[1:], -1], strict=True))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The predicted clean trajectory (B, H, D) of the sampler's next step."""
        step, following = next(self._steps)
        signal, _ = self.diffusion.signal_noise(step, 3)
        x0 = self.denoise(x, signal * self.actions, t)
        mean, std = self.policy(x0)
        if self.follows == "draws":
            self.actions = mean + std * self.noise
            return x0
        most = _MOST_DEVIATIONS * std
        actions = self.actions.clamp(mean - most, mean + most)
        if following >= 0:
            _, variance = self.diffusion.posterior(actions, actions, step, following)
            noise = randn(actions.shape, generator=self.generator, like=actions)
            # No step goes beyond the mean: of a narrow policy it would land farther off than it began.
            score = (mean - actions) / std.square().clamp(min=self.step_size)
            actions = actions + self.step_size * score + variance.sqrt() * noise
        self.actions = actions
        return x0
