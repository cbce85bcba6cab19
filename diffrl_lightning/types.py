"""The few types that every part of the library agrees on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

DenoiseFn = Callable[[Tensor, Tensor], Tensor]
"""A denoising network with its conditions bound: ``xt (B, *S), t (B,) -> prediction (B, *S)``."""

ValueFn = Callable[[Tensor, Tensor], Tensor]
"""Values of noised trajectories: ``xt (B, H, D), t (B,) -> (B,)``; t = -1 is the clean trajectory."""

Constraint = Callable[[Tensor], Tensor]
"""Overwrites the known entries of a sample: ``(B, *S) -> (B, *S)``."""

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Source of noise: one generator, one for each of equal groups of rows, or torch's global one."""


RowName = Literal["observations", "actions", "rewards", "terminations"]
"""What a datamodule gives all training values of."""


class InputError(ValueError):
    """Input that a user can mend: its message is one sentence that names the fix."""


class TransitionBatch(TypedDict):
    """Single steps, or several in one, in environment units."""

    observations: Tensor  # (B, O)
    actions: Tensor  # (B, A)
    rewards: Tensor  # (B,)
    next_observations: Tensor  # (B, O)
    terminations: Tensor  # (B,) float, 1 where the episode really ended
    steps: Tensor  # (B,) float, how many from the observation to the next one, usually 1
    returns: Tensor  # (B,) discounted return from this step to the episode's end
    origins: Tensor  # (B,) long, which dataset of a list the transition is from


class FutureBatch(TransitionBatch):
    """Single steps, each with a state from its future, in environment units."""

    future_observations: Tensor  # (B, O) that of ``offsets`` steps later
    offsets: Tensor  # (B,) float, k >= 1, geometric, and cut off where the episode ends
    following: Tensor  # (B,) float, K, how many states with a reward follow; 0 before the end
    ended: Tensor  # (B,) float, 1 where the episode really ends after them
    context_observations: Tensor  # (B, M, O) steps of the same origin, what its policy does
    context_actions: Tensor  # (B, M, A)


class SequenceBatch(TypedDict):
    """Windows of an episode, in environment units."""

    observations: Tensor  # (B, H, O)
    actions: Tensor  # (B, H, A)
    rewards: Tensor  # (B, H)
    returns: Tensor  # (B,) discounted return from the window's first step to the episode's end
    origins: Tensor  # (B,) long, which dataset of a list the window is from
    mask: Tensor  # (B, H) bool, False on padded steps


class ChunkBatch(SequenceBatch):
    """Chunks of an episode with what came after them, in environment units."""

    next_observations: Tensor  # (B, O) the state behind the chunk's last real step
    terminations: Tensor  # (B,) float, 1 where the episode really ended there
    steps: Tensor  # (B,) float, how many of the chunk's are real
    goal_observations: Tensor  # (B, O) a state of its future, or the one behind it
    chunks: Tensor  # (B,) long, which chunk of the dataset it is


class Imagined(NamedTuple):
    """Trajectories as a model of dynamics imagines them, in environment units."""

    observations: Tensor  # (N, L, O)
    actions: Tensor  # (N, L, A)
    rewards: Tensor  # (N, L) of the step from each state
    terminations: Tensor  # (N, L) float, 1 where that step ends the episode, and from then on


class Policy(Protocol):
    """Something that acts in N environments at once, in environment units.

    A policy holds the state of one evaluation (plans, chunks, noise); make a fresh one for each.
    """

    def reset(self, mask: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Begin a new episode where ``mask`` (N,) is True; ``seeds`` (N,) fix its noise."""

    def act(self, observations: Tensor) -> Tensor:
        """Map observations (N, O) to actions (N, A)."""


class EnvSource(Protocol):
    """A datamodule as the rollout callback and the modules see it.

    ``observation_dim`` counts the state alone: where environments have a goal, they append it to
    the observation, whose last ``goal_dim`` entries it is.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int

    @property
    def ref_scores(self) -> tuple[float, float] | None:
        """Random and expert return, for the normalised score."""

    def make_env(self, render_mode: str | None = None) -> Any:
        """One evaluation environment with flat observations."""

    def make_vector_env(self, num_envs: int, asynchronous: bool = False) -> Any:
        """A ``gymnasium.vector.VectorEnv`` of evaluation environments, autoreset disabled."""
