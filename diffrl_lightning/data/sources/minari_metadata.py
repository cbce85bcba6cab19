"""A Minari dataset's metadata, as plain JSON: Minari itself would make the stored environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.serialization import deserialize_space
from minari.storage.datasets_root_dir import get_dataset_path

from diffrl_lightning.envs.stored import StoredSpec, parse_spec
from diffrl_lightning.types import InputError

FORMATS = ("hdf5", "arrow", "parquet")
_DEEPEST = 16  # spaces within spaces


@dataclass(frozen=True)
class Metadata:
    """What ``data/metadata.json`` says; nothing of it has been imported or made."""

    observation_space: gym.Space
    action_space: gym.Space
    total_episodes: int
    total_steps: int
    data_format: str
    ref_scores: tuple[float, float] | None
    env_id: str | None = None
    env_kwargs: dict[str, Any] | None = None
    env_spec: StoredSpec | None = None


def read_metadata(dataset: str) -> Metadata:
    """Read and check the metadata of a dataset that is on disk.

    Raises:
        InputError: if the file is broken, a value is of another type, or the spaces are missing, in
            whose place Minari would run what the file names.
    """
    try:
        text = (get_dataset_path(dataset) / "data" / "metadata.json").read_text()
        found = json.loads(text)
        if not isinstance(found, dict):
            raise InputError("data/metadata.json is no dictionary")
        return _metadata(found)
    except (OSError, ValueError, RecursionError) as error:  # of ValueError also InputError
        raise InputError(
            f"The Minari dataset {dataset!r} can not be read ({str(error).rstrip('.')}): delete it and "
            "download or write it again."
        ) from error


def _metadata(found: dict[str, Any]) -> Metadata:
    for name in ("total_episodes", "total_steps"):
        if type(found.get(name)) is not int or found[name] < 1:
            raise InputError(f"{name} is {found.get(name)!r}, not a number above 0")
    if found.get("data_format") not in FORMATS:
        raise InputError(f"its data_format {found.get('data_format')!r} is none of {FORMATS}")
    if found.get("minari_version") not in minari.supported_dataset_versions:
        raise InputError(
            f"it is of Minari {found.get('minari_version')!r}, not of the installed one"
        )
    scores = [found.get(f"ref_{end}_score") for end in ("min", "max")]
    if any(type(score) not in (int, float, type(None)) for score in scores):
        raise InputError(f"its reference scores are {scores}, not two numbers")
    spec: tuple[Any, ...] = ()
    for name in ("eval_env_spec", "env_spec"):
        if found.get(name) and not spec:
            spec = parse_spec(found[name], for_evaluation=name == "eval_env_spec")
    return Metadata(
        _space(found, "observation_space"),
        _space(found, "action_space"),
        found["total_episodes"],
        found["total_steps"],
        found["data_format"],
        None if None in scores else (float(scores[0]), float(scores[1])),  # type: ignore[arg-type]
        *spec,
    )


def _space(found: dict[str, Any], name: str) -> gym.Space:
    """A space, whose description is checked before anything is allocated by it."""
    if not isinstance(found.get(name), str):
        raise InputError(f"it has no {name}, and the environment that it names is not run for it")
    described = json.loads(found[name])
    if not _is_sound(described):
        raise InputError(f"its {name} is none of Gymnasium's, or does not hold what it declares")
    try:
        return deserialize_space(described)
    except Exception as error:  # Gymnasium's spaces raise their own kinds
        raise InputError(f"its {name} is not sound: {error}") from error


def _is_sound(space: Any, depth: int = 0) -> bool:
    """Whether a description is of a known space, no larger than it is written down."""
    if not isinstance(space, dict) or depth > _DEEPEST:
        return False
    kind, parts = space.get("type"), space.get("subspaces")
    if kind == "Dict":
        return isinstance(parts, dict) and all(_is_sound(p, depth + 1) for p in parts.values())
    if kind == "Tuple":
        return isinstance(parts, list) and all(_is_sound(p, depth + 1) for p in parts)
    if kind == "Box":
        try:
            dtype = np.dtype(space.get("dtype"))
            shapes = [np.array(space.get(end), dtype).shape for end in ("low", "high")]
            declared = tuple(space.get("shape") or ())
        except (TypeError, ValueError, OverflowError):
            return False
        return dtype.kind in "fiub" and shapes == [declared, declared]
    return kind in ("Discrete", "MultiDiscrete", "MultiBinary", "Text")
