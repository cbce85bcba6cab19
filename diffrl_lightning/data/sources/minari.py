"""Minari datasets: read each episode once, keep flat arrays in a cache."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
from minari.data_collector import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.data.sources.cache import cache_folder, read_cache, write_cache
from diffrl_lightning.data.sources.minari_episodes import read_episodes
from diffrl_lightning.data.sources.minari_metadata import read_metadata
from diffrl_lightning.data.sources.scores import d4rl_reference
from diffrl_lightning.envs.make import layout
from diffrl_lightning.files import sweep, while_room, writing
from diffrl_lightning.types import InputError

_MISSPELT = 0.9  # share of characters from which on an id is taken for a misspelt one
_ALIKE = 0.6  # and from which on it is named


def is_local(dataset: str) -> bool:
    """Whether a Minari dataset is on disk."""
    try:
        return (get_dataset_path(dataset) / "data" / "metadata.json").is_file()
    except ValueError:
        return False


def prepare(dataset: str, options: SourceOptions) -> None:
    """Download a dataset that is not on disk.

    Raises:
        InputError: if there is no such dataset, or no way to reach it; at once, where the id is
            nearly that of a dataset on disk.
    """
    if is_local(dataset):
        return
    local = _ids()
    if (get_dataset_path(dataset) / "data").is_dir():
        raise InputError(
            f"The Minari dataset {dataset!r} on disk has no data/metadata.json: delete its folder and "
            "download or write it again."
        )
    misspelt = _misspelt(dataset, local)
    if misspelt:
        raise InputError(
            f"There is no dataset {dataset!r} on disk: did you mean {' or '.join(misspelt)} (else get "
            f"it first, by minari download {dataset})?"
        )
    try:
        minari.download_dataset(dataset)
    except Exception as error:  # every back end raises its own kinds
        near = difflib.get_close_matches(dataset, local, 3, _ALIKE)
        on_disk = f", where {', '.join(near)} would be," if near else ""
        raise InputError(
            f"There is no dataset {dataset!r} on disk{on_disk} and it can not be downloaded "
            f"({type(error).__name__}): check the Minari id and the network, or give a path that "
            "ends in .hdf5 or .npz."
        ) from error
    if not is_local(dataset):
        raise InputError(f"Minari knows no dataset {dataset!r}: check the id.")


def _ids() -> list[str]:
    """Ids of the datasets on disk."""
    root = get_dataset_path("")
    found = (path.parent.parent.relative_to(root) for path in root.rglob("data/metadata.json"))
    return sorted(path.as_posix() for path in found if not path.as_posix().startswith("."))


def _misspelt(dataset: str, local: list[str]) -> list[str]:
    """Ids on disk that this one nearly is; another version of one of them is another dataset."""
    version = re.compile(r"-v\d+$")
    if version.search(dataset):
        others = [name for name in local if version.sub("", name) != version.sub("", dataset)]
        return difflib.get_close_matches(dataset, others, 3, _MISSPELT)
    versions = [name for name in local if version.sub("", name) == dataset]
    return versions or difflib.get_close_matches(f"{dataset}-v0", local, 3, _MISSPELT)


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Spaces, evaluation environment and reference scores from the metadata."""
    prepare(dataset, options)
    found = read_metadata(dataset)
    observation_dim, goal_dim = options.dims(found.observation_space)
    actions = found.action_space
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1:
        raise InputError(f"Actions must be vectors of real numbers, not {actions}.")
    return DatasetInfo(
        observation_dim=observation_dim,
        action_dim=actions.shape[0],
        goal_dim=goal_dim,
        env_id=found.env_id,
        env_kwargs=found.env_kwargs or {},
        ref_scores=found.ref_scores or d4rl_reference(found.env_id or ""),
        num_steps=found.total_steps,
        env_spec=found.env_spec,
        action_space=actions,
    )


def load(dataset: str, options: SourceOptions) -> Episodes:
    """All episodes, from the cache where it is newer than the dataset."""
    found = read_metadata(dataset)
    keys, goal_key = layout(found.observation_space, options.observation_keys, options.goal_key)
    path = get_dataset_path(dataset)
    stamp = max(p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file())
    folder = cache_folder(dataset, [dataset, keys, goal_key, str(path.resolve()), stamp])
    episodes = read_cache(folder, with_goals=goal_key is not None)
    if episodes is None:
        episodes = read_episodes(dataset, found, keys, goal_key)
        write_cache(folder, episodes)
        episodes = read_cache(folder, with_goals=goal_key is not None) or episodes
    return episodes


def write(
    dataset: str,
    buffers: Iterable[EpisodeBuffer],
    ref_scores: tuple[float, float] | None,
    **metadata: Any,
) -> None:
    """Write a dataset, whole or not at all.

    Args:
        dataset: its id.
        buffers: its episodes; they may come one by one.
        ref_scores: random and expert return.
        metadata: other keywords of ``minari.create_dataset_from_buffers``.

    Raises:
        InputError: if it can not be written, as on a full disk.
    """
    root = Path(get_dataset_path(""))
    with writing(dataset):
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, ".partial-*")
        _write(root, dataset, while_room(buffers, root), ref_scores, **metadata)


def _write(
    root: Path,
    dataset: str,
    buffers: Iterable[EpisodeBuffer],
    ref_scores: tuple[float, float] | None,
    **metadata: Any,
) -> None:
    # Built in a folder beside and then moved, so that a killed process leaves no half dataset.
    scratch = Path(tempfile.mkdtemp(dir=root, prefix=".partial-"))
    before = dict(os.environ)
    os.environ["MINARI_DATASETS_PATH"] = str(scratch)
    low, high = ref_scores or (None, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about an address and a permalink
            minari.create_dataset_from_buffers(
                dataset,
                buffers,  # type: ignore[arg-type]
                author="diffrl_lightning",
                data_format="hdf5",
                ref_min_score=low,
                ref_max_score=high,
                **metadata,
            )
        target = root / dataset
        target.parent.mkdir(parents=True, exist_ok=True)
        for file in (scratch / dataset).parent.glob("*.json"):
            if not (target.parent / file.name).exists():
                shutil.copy(file, target.parent)
        try:
            (scratch / dataset).rename(target)
        except OSError:  # another process was first, with the same data
            if not is_local(dataset):
                raise
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        os.environ.update(before)
        shutil.rmtree(scratch, ignore_errors=True)
