"""Writes datasets from shards, one in memory at a time: D4RL's HDF5 layout, or Minari's."""

from __future__ import annotations

import itertools
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from tqdm.auto import tqdm

from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.files import cannot_write, whole_path
from diffrl_lightning.types import InputError

_MINARI_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")
_MINARI_LIMIT = 1_000_000

Steps = dict[str, np.ndarray]
"""Arrays of D4RL's layout, a row a step."""


def check_output(output: str, num_samples: int) -> None:
    """Refuse, before anything is drawn, what could not be written.

    Raises:
        InputError: if it is there already, or is neither a file's name nor a Minari id.
    """
    if _is_file(output):
        _check_folder(output)
        if Path(output).expanduser().exists():
            raise InputError(f"{output!r} is there already: remove it or write another file.")
        return
    if not _MINARI_ID.fullmatch(output):
        raise InputError(
            f"{output!r} is neither a file that ends in .hdf5 nor a Minari id such as "
            "synthetic/hopper-v0: correct synthesis.output."
        )
    from diffrl_lightning.data.sources import minari

    if minari.is_local(output):
        raise InputError(f"The Minari dataset {output!r} is there already: write another one.")
    if num_samples > _MINARI_LIMIT:
        raise InputError(
            f"A Minari dataset takes 15 kB an episode, and {num_samples} synthetic episodes are more "
            f"than {_MINARI_LIMIT}: write a file that ends in .hdf5."
        )


def is_whole(shard: Path) -> bool:
    """Whether a shard is there, and all of it."""
    try:
        with zipfile.ZipFile(shard) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error):
        return False


def parts_folder(output: str) -> Path:
    """Where the shards of a dataset lie until it is whole."""
    from minari.storage.datasets_root_dir import get_dataset_path

    target = Path(output).expanduser() if _is_file(output) else Path(get_dataset_path(output))
    return target.with_name(f"{target.name}.parts")


def write_dataset(
    output: str, shards: Sequence[Path], provenance: Mapping[str, Any], source: Any
) -> None:
    """Join shards (.npz) of transitions or of trajectories into one dataset.

    A transition is an episode of one step; a trajectory (H, ...) one of H - 1 steps.

    Args:
        output: a file that ends in .hdf5, or a Minari id.
        shards: arrays of :class:`TransitionBatch`, or observations (B, H, O), actions (B, H, A) and
            rewards (B, H).
        provenance: how they came about, for the metadata.
        source: the datamodule that the model was trained on, for its environment; or None.
    """
    steps = map(_steps, tqdm(shards, desc="Joining shards", leave=False, disable=None))
    write = _write_hdf5 if _is_file(output) else _write_minari
    write(output, steps, provenance, source)


def write_episodes(
    output: str, episodes: Episodes, provenance: Mapping[str, Any], source: Any
) -> None:
    """Write episodes in D4RL's layout.

    Args:
        output: a file that ends in .hdf5.
        episodes: without goals.
        provenance: how they came about, for the metadata.
        source: the datamodule that they are from, for its environment.
    """
    rows = np.arange(episodes.num_steps) + np.repeat(np.arange(len(episodes)), episodes.lengths)
    steps = {
        "observations": episodes.observations[rows],
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "terminals": episodes.terminations,
        "timeouts": episodes.truncations,
    }
    if episodes.final_observed.all():
        steps["next_observations"] = episodes.observations[rows + 1]
    _write_hdf5(output, [steps], provenance, source)


def _is_file(output: str) -> bool:
    return Path(output).suffix.lower() in (".hdf5", ".h5")


def _check_folder(output: str) -> None:
    """Refuse a file in a place where none can be made."""
    path = Path(output).expanduser().absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise cannot_write(output, NotADirectoryError(f"{str(folder)!r} is a file"))
    if not os.access(folder, os.W_OK):
        raise cannot_write(output, PermissionError(f"{str(folder)!r} is read-only"))


def _write_hdf5(
    output: str, parts: Iterable[Steps], provenance: Mapping[str, Any], source: Any
) -> None:
    """Append the parts to a file with its metadata, which takes its name once it is whole."""
    import h5py

    with whole_path(output) as temporary, temporary.open("w+b", buffering=0) as raw:
        disk = _Disk(raw)
        with h5py.File(disk, "w") as file:
            for part in parts:
                for name, rows in part.items():
                    if name not in file:
                        file.create_dataset(name, data=rows, maxshape=(None, *rows.shape[1:]))
                        continue
                    file[name].resize(len(file[name]) + len(rows), 0)
                    file[name][-len(rows) :] = rows
                disk.check()
            file["metadata/provenance"] = json.dumps(dict(provenance))
            if source is not None and source.env_id is not None:
                file["metadata/env_id"] = source.env_id
            if source is not None and source.ref_scores is not None:
                file["metadata/ref_min_score"], file["metadata/ref_max_score"] = source.ref_scores
        disk.check()


class _Disk:
    """A file for HDF5 that keeps the first error of a write until it is asked for.

    HDF5 can not close a file after a write that failed, and crashes when the process ends.
    """

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.error: OSError | None = None
        self.read, self.readinto, self.flush = file.read, file.readinto, file.flush
        self.seek, self.tell = file.seek, file.tell

    def write(self, block: memoryview) -> int:
        """Write, or do nothing once a write has failed."""
        done = 0
        try:
            while self.error is None and done < len(block):
                done += self.file.write(block[done:])
        except OSError as error:
            self.error = error
        return len(block)

    def truncate(self, size: int) -> None:
        """Make the file as long as this, unless a write has failed."""
        try:
            if self.error is None:
                self.file.truncate(size)
        except OSError as error:
            self.error = error

    def check(self) -> None:
        """Raise the error of a write that has failed."""
        if self.error is not None:
            raise self.error


def _steps(path: Path) -> Steps:
    """A shard as flat steps in D4RL's layout."""
    if not is_whole(path):
        raise InputError(f"{str(path)!r} is damaged: remove it and draw it again.")
    with np.load(path, allow_pickle=False) as file:
        shard = dict(file)
    observations, actions, rewards = (shard[k] for k in ("observations", "actions", "rewards"))
    if observations.ndim == 2:
        terminals = shard["terminations"] > 0.5
        following, timeouts = shard["next_observations"], ~terminals
    else:
        following, observations = observations[:, 1:], observations[:, :-1]
        actions, rewards = actions[:, :-1], rewards[:, :-1]
        timeouts = np.zeros(rewards.shape, bool)
        timeouts[:, -1] = True
        terminals = np.zeros_like(timeouts)
    arrays = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "next_observations": following,
        "terminals": terminals,
        "timeouts": timeouts,
    }
    lead = rewards.ndim
    return {k: v.reshape(-1, *v.shape[lead:]) for k, v in arrays.items()}


def _write_minari(
    dataset: str, parts: Iterable[Steps], provenance: Mapping[str, Any], source: Any
) -> None:
    from diffrl_lightning.data.sources import minari

    known = source is not None and source.env_id is not None
    env = source.env_config.make_unflattened() if known else None
    if env is None or not isinstance(env.observation_space, Box):
        raise InputError(
            f"The Minari dataset {dataset!r} needs an environment with vectors as observations: "
            "give the data that the model was trained on, or write a file that ends in .hdf5."
        )
    minari.write(
        dataset,
        _episodes(parts),
        source.ref_scores,
        env=env,
        eval_env=env,
        algorithm_name=provenance["role"],
        description=json.dumps(dict(provenance)),
    )
    env.close()


def _episodes(parts: Iterable[Steps]) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    number = itertools.count()
    for steps in parts:
        ends = np.flatnonzero(steps["terminals"] | steps["timeouts"]) + 1
        for begin, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
            part = {name: rows[begin:end] for name, rows in steps.items()}
            last = part["next_observations"][-1:]
            yield EpisodeBuffer(
                id=next(number),
                observations=np.concatenate([part["observations"], last]),
                actions=part["actions"],
                rewards=part["rewards"],
                terminations=part["terminals"],
                truncations=part["timeouts"],
                infos={},
            )
