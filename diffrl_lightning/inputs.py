"""What users may give: the ranges of all numbers, once, and the error that says what to mend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from numbers import Integral, Real
from typing import Any, Self

DEVELOPMENT_SEED = 1_000_000  # of the first episode that checkpoints and ways to act are chosen by


class InputError(ValueError):
    """Input that a user can mend: its message is one sentence that names the fix."""


@dataclass(frozen=True)
class Range:
    """The numbers that an argument may be; never NaN or infinite.

    Args:
        low: the least.
        high: the greatest.
        whole: integers only.
        above: ``low`` itself is not allowed.
        below: ``high`` itself is not allowed.
        many: the argument is a list, a tuple or the values of a dictionary, each entry in the range.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    many: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not in the range; None is one that was not given.

        Raises:
            InputError: naming the argument and its range.
        """
        if value is None:
            return
        if not self.many:
            problem = self._problem(value)
        elif isinstance(value, Mapping):
            problem = next(filter(None, map(self._problem, value.values())), None)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            problem = next(filter(None, map(self._problem, value)), None)
        else:
            raise InputError(f"{name}={value!r} must be a list of numbers.")
        if problem:
            shown = value if isinstance(value, Real) else repr(value)
            of = " in every entry" if self.many else ""
            raise InputError(f"{name}={shown} must {problem}{of}.")

    def _problem(self, value: Any) -> str | None:
        """What a number must be that this one is not."""
        kind: Any = Integral if self.whole else Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return "be a whole number" if self.whole else "be a number"
        if not math.isfinite(value):
            return "be a finite number"
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if low and high:
            return None
        if not self.whole and math.isfinite(self.low) and math.isfinite(self.high):
            return f"lie in {'[('[self.above]}{self.low}, {self.high}{'])'[self.below]}"
        return f"be at most {self.high}" if low else f"be {self._from}"

    @property
    def _from(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.low}"


def _whole(low: int, high: int = 10**9, *, many: bool = False) -> Range:
    return Range(low, high, whole=True, many=many)


def _each(names: str, allowed: Range) -> dict[str, Range]:
    return dict.fromkeys(names.split(), allowed)


_WIDTH = _whole(1, 16_384)
_LENGTH = _whole(1, 100_000)  # steps of a trajectory or of a diffusion
_SOME, _ANY = _whole(1), _whole(0)
_FINITE = Range()
_POSITIVE = Range(0, above=True)
_WEIGHT = Range(0)
_SHARE = Range(0, 1)
_DISCOUNT = Range(0, 1, above=True)
_CHANCE = Range(0, 1, below=True)
_SEED = 2**32 - 1  # the greatest that numpy and Lightning take

# Every number that a role, a datamodule, a way to act, a callback or a tool takes, by its name, which
# means the same everywhere. The constructor adds what a class needs beyond that. Upper bounds lie far
# above what is of use, and refuse most of what no memory holds.
RANGES: dict[str, Range] = {
    # networks
    **_each("dim hidden_dim critic_hidden_dim policy_dim embed_dim latent_dim", _WIDTH),
    **_each("num_layers critic_layers depth num_blocks", _whole(1, 1_000)),
    **_each("num_heads num_critics num_members", _whole(1, 1_000)),
    "dim_mults": _whole(1, 64, many=True),
    "dropout": _CHANCE,
    "min_std": _POSITIVE,
    "initial_std": _POSITIVE,
    # shapes of the data
    **_each("observation_dim action_dim num_origins", _whole(1, 1_000_000)),
    "goal_dim": _whole(0, 1_000_000),
    **_each("horizon stride window n_obs_steps n_action_steps n_steps", _LENGTH),
    **_each("pad_before pad_after num_goals context_size", _whole(0, 100_000)),
    # diffusion
    **_each("num_train_timesteps num_inference_steps", _LENGTH),
    "schedule_power": _POSITIVE,
    "snr_gamma": _POSITIVE,
    "cond_drop_prob": _SHARE,
    "bound_gap": _WEIGHT,
    # optimisation
    **_each("lr critic_lr actor_lr", _POSITIVE),
    "tune_lr": _WEIGHT,  # 0 keeps the step size of the guidance
    **_each("lr_warmup_steps ema_start policy_start", _ANY),
    **_each("ema_update_every policy_delay policy_every critic_steps", _SOME),
    "weight_decay": _WEIGHT,
    "adam_betas": Range(0, 1, below=True, many=True),
    "ema_decay": _SHARE,
    "ema_power": _WEIGHT,
    "tau": _DISCOUNT,
    "gradient_clip_val": _WEIGHT,  # 0 does not clip
    # losses
    **_each("discount loss_discount gae_lambda", _DISCOUNT),
    "expectile": Range(0, 1, above=True, below=True),
    **_each("alpha q_weight kl_weight entropy_weight action_weight next_state_weight", _WEIGHT),
    **_each("policy_noise noise_clip goal_radius", _WEIGHT),
    "max_weight": Range(1),
    "returns_scale": _POSITIVE,
    "random_goals": _SHARE,
    "num_backup_actions": _whole(1, 100_000),
    "num_imagined": _whole(2, 10_000_000),  # advantages are normalised over them
    "val_samples": _whole(0, 100_000),
    "max_memory_gib": _POSITIVE,
    # acting and sampling
    **_each("temperature action_temperature choice_temperature", _WEIGHT),
    **_each("guidance_scale value_guidance_scale target_return", _FINITE),
    "skills": Range(many=True),
    **_each("num_candidates replan_every", _whole(1, 1_000_000)),
    **_each("num_guide_steps guidance_stop warm_start_steps lookahead task", _whole(0, 1_000_000)),
    "planning_depth": _whole(1, 1_000),
    **_each("kp kd", _WEIGHT),
    # data
    "batch_size": _whole(1, 10_000_000),
    "val_fraction": _CHANCE,
    "train_fraction": _DISCOUNT,
    "synthetic_share": _SHARE,
    **_each("join_episodes start_steps", _ANY),
    **_each("start_repeats num_draws", _whole(1, 100_000)),
    **_each("generate_steps num_steps batches_per_epoch", _SOME),
    **_each("prefill_steps capacity synthetic_capacity", _SOME),
    "train_on": _whole(0, many=True),
    "ref_scores": Range(many=True),
    "termination_penalty": _FINITE,
    # environments
    "num_envs": _whole(1, 100_000),
    "max_episode_steps": _SOME,
    "action_noise": _WEIGHT,
    # callbacks and tools
    **_each("seed noise_seed", _whole(0, _SEED)),
    "train_seeds": _whole(0, _SEED, many=True),
    **_each("num_episodes development_episodes", _whole(1, 10_000_000)),
    **_each("workers threads choose_on", _whole(1, 10_000)),
    "num_gpus": Range(0, 1_000),
    **_each("val_episodes keep_episodes", _whole(0, 10_000_000)),
    **_each("num_samples shard_size chunk_size num_updates every_n_steps", _SOME),
    "steps_per_update": _POSITIVE,
    **_each("num_points num_futures num_skills num_plans squares", _SOME),
    "num_starts": _ANY,
    **_each("num_windows num_chunks num_states most_steps num_rows", _SOME),
    **_each("num_neighbours num_simulated regression_steps", _ANY),
    **_each("horizons steps timing_envs", _whole(1, 100_000, many=True)),
    # Lightning's trainer and checkpoints
    **_each("max_epochs max_steps num_sanity_val_steps save_top_k", _whole(-1)),
    **_each("min_epochs min_steps log_every_n_steps every_n_train_steps every_n_epochs", _ANY),
    **_each("accumulate_grad_batches check_val_every_n_epoch num_nodes", _SOME),
    "reload_dataloaders_every_n_epochs": _ANY,
    **_each("limit_train_batches limit_val_batches limit_test_batches", _WEIGHT),
    **_each("limit_predict_batches overfit_batches", _WEIGHT),
}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuse arguments that are out of the ranges of their names, and any that is NaN or infinite.

    Args:
        values: by name; those that are no numbers pass, and None, which was not given.

    Raises:
        InputError: naming the first of them.
    """
    for name, value in values.items():
        if name in RANGES:
            RANGES[name].check(name, value)
        elif isinstance(value, float):
            _FINITE.check(name, value)


class RangeChecked:
    """A class whose constructor, and that of each subclass, takes arguments in their ranges only.

    They are checked before anything is built.

    Raises:
        InputError: naming the first that is out of its range.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check what was given."""
        kind: Any = cls
        given = dict(zip(_parameters(kind), args, strict=False)) | kwargs
        check_ranges(given)
        for name, value in given.items():
            if value is None and not _may_be_none(kind, name):
                raise InputError(f"{name} of {cls.__name__} needs a value: null is none.")
        return super().__new__(cls)


@cache
def _may_be_none(cls: Any, name: str) -> bool:
    """Whether a constructor's argument may be None, as its annotation says."""
    for base in cls.__mro__:
        found = signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        if name in found:
            annotation = found[name].annotation
            text = str(annotation)
            return "None" in text or "Any" in text or annotation is found[name].empty
    return True


@cache
def _parameters(cls: Any) -> list[str]:
    return list(signature(cls.__init__).parameters)[1:]


def at_least(least: float, **values: float | None) -> None:
    """Refuse arguments below a bound, where that is a matter of other arguments or of one class."""
    for name, value in values.items():
        Range(least).check(name, value)


def above(bound: float, **values: float | None) -> None:
    """Refuse arguments that are not above a bound; as :func:`at_least`."""
    for name, value in values.items():
        Range(bound, above=True).check(name, value)


def within(low: float, high: float, **values: float | None) -> None:
    """Refuse arguments outside [low, high]; as :func:`at_least`."""
    for name, value in values.items():
        Range(low, high).check(name, value)


def between(low: float, high: float, **values: float | None) -> None:
    """Refuse arguments outside (low, high); as :func:`at_least`."""
    for name, value in values.items():
        Range(low, high, above=True, below=True).check(name, value)


def one_of(choices: Sequence[Any], **values: Any) -> None:
    """Refuse arguments that are none of these choices; None is one that was not given.

    Raises:
        InputError: naming the first of them, and the choices.
    """
    for name, value in values.items():
        if value is not None and value not in choices:
            named = ", ".join(map(str, choices))
            raise InputError(f"{name}={value!r} is unknown: choose one of {named}.")
