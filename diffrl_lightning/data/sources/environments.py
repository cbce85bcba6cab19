"""Which environment a dataset is evaluated in: the one that it names, or the user's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.envs.make import EnvConfig, registered_spec
from diffrl_lightning.envs.stored import StoredSpec, is_registered, names_file
from diffrl_lightning.types import InputError

_ENDLESS = 1_000_000  # steps, from which on a limit of recording says nothing of episodes


def trusted_id(env_id: str | None) -> str | None:
    """The id of an environment that a dataset names, None where making it would import code.

    Taken without a module, and only where the environment is registered already; a module is
    imported for a user alone.
    """
    known = env_id is not None and ":" not in env_id and is_registered(env_id)
    return env_id if known else None


def evaluation_env(dataset: str, info: DatasetInfo, options: SourceOptions) -> EnvConfig | str:
    """How the evaluation environment is built, or a sentence that says why none is known.

    A stored environment is taken whole: its keywords, time limit and wrappers. The user's keywords
    go over it; of an environment that the user names and the dataset does not, nothing is stored.
    """
    stored, named = info.env_id, options.env_id
    if named is None and trusted_id(stored) is None:
        return _unknown(dataset, stored)
    env_id = named or stored or ""
    layout = {"observation_keys": options.observation_keys, "goal_key": options.goal_key}
    if stored is None or _without_module(env_id) != _without_module(stored):
        return EnvConfig(env_id, options.kwargs, **layout)  # type: ignore[arg-type]
    kwargs = {k: v for k, v in info.env_kwargs.items() if k != "render_mode"}
    for key in kwargs.keys() - options.kwargs.keys():
        if names_file(kwargs[key]):
            return (
                f"{dataset!r} has its environment read {key}={kwargs[key]!r}, which may be a file of "
                f"this machine: give {key} in env_kwargs yourself if you trust it."
            )
    wrappers = []
    spec = info.env_spec
    for wrapper in spec.wrappers if spec else ():
        rebuilt = wrapper.rebuilt()
        if rebuilt is not None:
            wrappers.append(rebuilt)
        elif wrapper.watches:
            continue
        elif named is None:
            return (
                f"{dataset!r} was recorded through the wrapper {wrapper.entry_point!r}, which can not "
                f"be rebuilt from plain values: register an environment with it and give its env_id, "
                f"or give env_id {env_id} to leave it out."
            )
        else:
            warnings.warn(
                f"{dataset!r} was recorded through the wrapper {wrapper.entry_point!r}, which can not "
                f"be rebuilt: {env_id!r} is evaluated without it.",
                stacklevel=2,
            )
    if spec is not None and "max_episode_steps" not in options.kwargs:
        kwargs |= _limit(dataset, env_id, spec)
    return EnvConfig(env_id, kwargs | options.kwargs, **layout, wrappers=tuple(wrappers))  # type: ignore[arg-type]


def check_action_bounds(
    dataset: str, info: DatasetInfo, options: SourceOptions, env_id: str, space: Box
) -> None:
    """Compare the bounds of recorded actions with those of the environment.

    Raises:
        InputError: if they differ, and the dataset names the environment; where the user does, that
            is only warned of.
    """
    recorded = info.action_space
    if recorded is None or recorded.shape != space.shape:
        return
    pairs = [(recorded.low, space.low), (recorded.high, space.high)]
    if all(np.all(~np.isfinite(a) | np.isclose(a, b, rtol=1e-3, atol=1e-6)) for a, b in pairs):
        return
    text = (
        f"{dataset!r} records actions in {_range(recorded)}, but {env_id!r} takes them in "
        f"{_range(space)}: returns would be those of another task"
    )
    if options.env_id is None:
        raise InputError(f"{text}; give the env_id of an environment with the recorded bounds.")
    warnings.warn(f"{text}.", stacklevel=2)


def _unknown(dataset: str, stored: str | None) -> str:
    if stored is None:
        return f"{dataset!r} does not name its environment: give env_id, the Gymnasium id."
    if ":" in stored:
        return (
            f"{dataset!r} names the environment {stored!r}, which would import code: give env_id "
            "yourself if you trust it."
        )
    return (
        f"{dataset!r} names the environment {stored!r}, which is not registered: give env_id, as "
        f"module:{stored} where a module of yours registers it."
    )


def _without_module(env_id: str) -> str:
    return env_id.rpartition(":")[2]


def _limit(dataset: str, env_id: str, spec: StoredSpec) -> dict[str, Any]:
    """The keyword that sets the stored time limit, where it is not the environment's own."""
    limit, own = spec.max_episode_steps, registered_spec(env_id).max_episode_steps
    endless = limit is None or (limit >= _ENDLESS and not spec.for_evaluation)
    if limit == own:
        return {}
    if not endless:
        return {"max_episode_steps": limit}
    kept = {} if own is not None or limit is None else {"max_episode_steps": limit}
    warnings.warn(
        f"{dataset!r} was recorded with a limit of {limit or 'no'} steps and names no other for "
        f"evaluation: episodes end after {own or limit} steps here; give max_episode_steps in "
        "env_kwargs for another limit.",
        stacklevel=2,
    )
    return kept


def _range(space: Box) -> str:
    low, high = (np.unique(bound).tolist() for bound in (space.low, space.high))
    return f"[{low[0]:g}, {high[0]:g}]" if len(low) == len(high) == 1 else str(space)
