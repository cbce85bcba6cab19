"""Environments as datasets describe them: plain values, of which nothing is imported or run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from diffrl_lightning.envs.make import import_plugins
from diffrl_lightning.types import InputError

# Gymnasium's own wrappers that change what an episode is, and are whole with their plain keywords.
_REBUILT = frozenset(
    (
        "ClipAction",
        "ClipReward",
        "DelayObservation",
        "FilterObservation",
        "FlattenObservation",
        "FrameStackObservation",
        "MaxAndSkipObservation",
        "RepeatAction",
        "RescaleAction",
        "RescaleObservation",
        "ReshapeObservation",
        "StickyAction",
        "TimeAwareObservation",
    )
)
# Those that watch and draw.
_WATCHING = frozenset(
    (
        "HumanRendering",
        "OrderEnforcing",
        "PassiveEnvChecker",
        "RecordEpisodeStatistics",
        "RecordVideo",
        "RenderCollection",
    )
)
_ARRAYS = ("RescaleAction", "RescaleObservation", "ClipReward")  # whose lists are arrays
_WATCHED = "gymnasium.wrappers"


@dataclass(frozen=True)
class StoredWrapper:
    """A wrapper that a dataset's environment was recorded through."""

    name: str
    entry_point: str
    kwargs: Mapping[str, Any] | None

    @property
    def watches(self) -> bool:
        """Whether an episode is the same without it."""
        return self._of_gymnasium(_WATCHING)

    def rebuilt(self) -> tuple[str, Mapping[str, Any]] | None:
        """Its name in ``gymnasium.wrappers`` and its keywords, None where it can not be rebuilt."""
        if self.kwargs is None or not self._of_gymnasium(_REBUILT):
            return None
        make = np.asarray if self.name in _ARRAYS else tuple
        plain = {k: make(v) if isinstance(v, list) else v for k, v in self.kwargs.items()}  # type: ignore[operator]
        return self.name, plain

    def _of_gymnasium(self, names: frozenset[str]) -> bool:
        module, _, name = self.entry_point.partition(":")
        known = name == self.name and name in names
        return known and (module == _WATCHED or module.startswith(f"{_WATCHED}."))


@dataclass(frozen=True)
class StoredSpec:
    """What a dataset says of its environment, beside the id and the keywords.

    Args:
        max_episode_steps: time limit, None where there was none.
        wrappers: that it was recorded through, the innermost first.
        for_evaluation: whether this is the environment to evaluate in, rather than that of recording.
    """

    max_episode_steps: int | None = None
    wrappers: tuple[StoredWrapper, ...] = field(default_factory=tuple)
    for_evaluation: bool = False


def parse_spec(text: Any, for_evaluation: bool) -> tuple[str, dict[str, Any], StoredSpec]:
    """The id, the keywords and the rest of an environment that Gymnasium wrote as JSON.

    Raises:
        InputError: saying which part is not as Gymnasium writes it.
    """
    try:
        spec = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise InputError(f"its environment is not valid JSON: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("id"), str):
        raise InputError("its environment has no id")
    kwargs, limit = spec.get("kwargs") or {}, spec.get("max_episode_steps")
    if not isinstance(kwargs, dict):
        raise InputError("the keywords of its environment are no dictionary")
    if limit is not None and (type(limit) is not int or limit < -1 or limit == 0):
        raise InputError(f"the time limit of its environment is {limit!r}")
    limit = None if limit == -1 else limit
    listed = spec.get("additional_wrappers") or []
    if not isinstance(listed, list):
        raise InputError("the wrappers of its environment are no list")
    wrappers = tuple(map(_wrapper, listed))
    return spec["id"], kwargs, StoredSpec(limit, wrappers, for_evaluation)


def _wrapper(found: Any) -> StoredWrapper:
    found = found if isinstance(found, dict) else {}
    name, entry_point, kwargs = (found.get(k) for k in ("name", "entry_point", "kwargs"))
    named = isinstance(name, str) and isinstance(entry_point, str)
    if not named or not isinstance(kwargs, dict | None):
        raise InputError("a wrapper of its environment has no name, entry point or keywords")
    return StoredWrapper(name, entry_point, kwargs)


def is_registered(env_id: str) -> bool:
    """Whether an id is that of an environment here, found without importing anything for it."""
    import_plugins()
    try:
        gym.spec(env_id)
    except gym.error.Error:
        return False
    return True


def names_file(value: Any) -> bool:
    """Whether a stored keyword could be a path, an address or something to import."""
    if isinstance(value, str):
        return value.startswith((".", "~")) or any(mark in value for mark in "/\\:")
    if isinstance(value, dict):
        return any(names_file(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(names_file, value))
