"""The few types that every part of the library agrees on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.inputs import InputError as InputError
from diffrl_lightning.inputs import check_ranges, one_of

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


class RunError(RuntimeError):
    """A run that can not go on: its message is one sentence that says why, and what is kept."""


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How a role acts or samples: what is chosen after training, not learned.

    A role that leaves nothing to choose acts by this class itself; the others by a subclass, whose
    fields are the choices. Literal fields are checked by their values, numbers by their ranges.

    Raises:
        InputError: if a value is unknown, out of range, or NaN.
    """

    def __post_init__(self) -> None:
        check_ranges(vars(self))
        hints = get_type_hints(type(self))
        for entry in fields(self):
            hint = hints[entry.name]
            for kind in (hint, *get_args(hint)):  # a Literal, or one among alternatives
                if get_origin(kind) is Literal:
                    one_of(get_args(kind), **{entry.name: getattr(self, entry.name)})


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


@dataclass
class PlanSnapshot:
    """A plan as it was made, for pictures."""

    step: int  # of the episode, at which it was made
    stride: int  # environment steps from one step of the plan to the next
    observations: np.ndarray  # (H, O)
    candidates: np.ndarray | None = None  # (K, H, O), the worst first: what it was chosen from
    values: np.ndarray | None = None  # (K,), rising: what it was chosen by


@dataclass
class Episode:
    """What happened in one episode."""

    index: int
    seed: int
    start: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (O,) the first observation
    episode_return: float = 0.0
    length: int = 0
    success: bool | None = None  # None where the environment does not say
    path: list[np.ndarray] = field(default_factory=list)  # observations, where they were kept
    plans: list[np.ndarray] = field(default_factory=list)  # (H, 2) planned positions
    snapshots: list[PlanSnapshot] = field(default_factory=list)  # where the path is kept


class EnvSource(Protocol):
    """A datamodule as the rollout callback sees it.

    ``observation_dim`` counts the state alone: where environments have a goal, they append it to
    the observation, whose last ``goal_dim`` entries it is.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int

    @property
    def ref_scores(self) -> tuple[float, float] | None:
        """Random and expert return, for the normalised score."""
        return None

    def make_env(self, render_mode: str | None = None) -> Any:
        """One evaluation environment with flat observations."""
        raise InputError("The data name no environment: roll out with data that do.")

    def make_vector_env(self, num_envs: int, asynchronous: bool = False) -> Any:
        """A ``gymnasium.vector.VectorEnv`` of evaluation environments, autoreset disabled."""
        raise InputError("The data name no environment: roll out with data that do.")


class TrainingData(EnvSource, Protocol):
    """A datamodule as the modules see it: all that they may ask of one.

    The defaults are those of data that have nothing of the kind.
    """

    batch_type: ClassVar[type]  # of its batches: TransitionBatch, SequenceBatch, ...
    grows: ClassVar[bool] = False  # whether it fills while an agent learns from it
    datasets: list[str]
    goal_dim: int = 0
    num_origins: int = 1  # datasets of its list
    horizon: int = 1  # steps of a window or chunk
    stride: int = 1  # environment steps from one of them to the next
    discount: float | None = None
    n_steps: int = 1  # environment steps in one transition
    rewards: str = "raw"  # how they were preprocessed
    has_rewards: bool = True  # or they are all read as zero
    pad_before: int = 0  # steps before an episode that windows may begin at
    padding: str = "none"  # what windows hold beyond an episode
    num_goals: int = 0  # goals in hindsight of a chunk
    context_size: int = 0  # steps of the same policy that come with a transition
    env_id: str | None = None
    train_data: Any = None  # datasets of whole batches
    val_data: Any = None

    def training_rows(self, name: RowName) -> tuple[Tensor, Tensor | None]:
        """An array (M, D), and which of its rows (M,) to train on; None for all."""

    def training_pairs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """States and those after them (M, O), and which pairs (M,) to train on; None for all."""

    def training_returns(self) -> Tensor:
        """The return to go from each step to train on (M,)."""

    def action_space(self) -> Any:
        """The environment's bounds of actions, None where no environment is known."""
        return None

    def check_goal_leads_state(self) -> None:
        """Refuse an environment whose goal is not about the first entries of the state."""
        return
