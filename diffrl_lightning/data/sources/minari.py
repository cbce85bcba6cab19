"""Minari datasets: read each episode once, keep flat arrays in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path
from tqdm.auto import tqdm

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources.base import DatasetInfo, SourceOptions
from diffrl_lightning.data.sources.scores import d4rl_reference
from diffrl_lightning.envs.make import layout
from diffrl_lightning.files import while_room, writing
from diffrl_lightning.types import InputError

_FIELDS = tuple(entry.name for entry in fields(Episodes) if entry.name != "origins")
_DTYPES = {"actions": np.float32, "rewards": np.float32, "terminations": bool, "truncations": bool}


def is_local(dataset: str) -> bool:
    """Whether a Minari dataset is on disk."""
    try:
        return (get_dataset_path(dataset) / "data" / "metadata.json").is_file()
    except ValueError:
        return False


def prepare(dataset: str, options: SourceOptions) -> None:
    """Download a dataset that is not on disk.

    Raises:
        InputError: if there is no such dataset, or no way to reach it.
    """
    if is_local(dataset):
        return
    try:
        minari.download_dataset(dataset)
    except Exception as error:  # every back end raises its own kinds
        raise InputError(
            f"There is no dataset {dataset!r} on disk and it can not be downloaded "
            f"({type(error).__name__}): check the Minari id and the network, or give a path that "
            "ends in .hdf5 or .npz."
        ) from error
    if not is_local(dataset):
        raise InputError(f"Minari knows no dataset {dataset!r}: check the id.")


def describe(dataset: str, options: SourceOptions) -> DatasetInfo:
    """Spaces, evaluation environment and reference scores from the metadata."""
    prepare(dataset, options)
    opened = _open(dataset)
    observation_dim, goal_dim = options.dims(opened.observation_space)
    actions = opened.action_space
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1:
        raise InputError(f"Actions must be vectors of real numbers, not {actions}.")
    metadata = opened.storage.metadata
    spec = metadata.get("eval_env_spec") or metadata.get("env_spec") or "{}"
    spec = json.loads(spec) if isinstance(spec, str) else json.loads(spec.to_json())
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    env_id = spec.get("id")
    # The stored keywords are the stored environment's, not those of another that a user names.
    kwargs = (spec.get("kwargs") or {}) if options.env_id in (None, env_id) else {}
    return DatasetInfo(
        observation_dim=observation_dim,
        action_dim=actions.shape[0],
        goal_dim=goal_dim,
        env_id=env_id,
        env_kwargs=kwargs | options.kwargs,
        ref_scores=d4rl_reference(env_id or "") if low is None or high is None else (low, high),
        num_steps=int(opened.total_steps),
    )


def load(dataset: str, options: SourceOptions) -> Episodes:
    """All episodes, from the cache where it is newer than the dataset."""
    opened = _open(dataset)
    keys, goal_key = layout(opened.observation_space, options.observation_keys, options.goal_key)
    path = get_dataset_path(dataset)
    key = [dataset, keys, goal_key, str(path.resolve())]
    stamp = max(p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256(json.dumps([*key, stamp]).encode()).hexdigest()[:16]
    root = Path(os.environ.get("DIFFRL_CACHE") or Path.home() / ".cache" / "diffrl_lightning")
    folder = root / f"{dataset.replace('/', '--')}-{digest}"
    if not folder.is_dir():
        _write_cache(folder, _read(opened, keys, goal_key))
    files = folder.glob("*.npy")
    return Episodes(**{p.stem: np.load(p, mmap_mode="c", allow_pickle=False) for p in files})


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


def _open(dataset: str) -> minari.MinariDataset:
    try:
        return minari.load_dataset(dataset)
    except Exception as error:  # a folder with broken files fails in many ways
        raise InputError(f"The Minari dataset {dataset!r} can not be read: {error}.") from error


def _read(dataset: minari.MinariDataset, keys: tuple[str, ...], goal_key: str | None) -> Episodes:
    lists: dict[str, list[Any]] = {name: [] for name in _FIELDS}
    episodes = dataset.iterate_episodes()
    for episode in tqdm(episodes, total=len(dataset), desc="Reading episodes", leave=False):
        observations = episode.observations
        parts = [observations[key] for key in keys] if keys else [observations]
        flat = [np.asarray(p, np.float32).reshape(len(p), -1) for p in parts]
        lists["observations"].append(np.concatenate(flat, 1))
        for name, dtype in _DTYPES.items():
            lists[name].append(np.array(getattr(episode, name), dtype))
        lists["truncations"][-1][-1] |= not episode.terminations[-1]
        if goal_key:  # an episode's first goal may be the one before; its last is its own
            lists["goals"].append(np.asarray(observations[goal_key][-1], np.float32)[None])
    lengths = [len(rewards) for rewards in lists["rewards"]]
    joined = {name: np.concatenate(parts) for name, parts in lists.items() if parts}
    return Episodes(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        final_observed=np.ones(len(lengths), bool),
        **joined,
    )


def _write_cache(folder: Path, episodes: Episodes) -> None:
    """Write beside the target and rename, so that a killed process leaves no half cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    for name in _FIELDS:
        array = getattr(episodes, name)
        if array is not None:
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(temporary)
