"""Bad data that are no files: Minari datasets, lists, and names of mazes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from conftest import write_d4rl

from attacks.data import canary_module, of, put
from attacks.world import Attack, World, record


def spec(**changes: Any) -> Any:
    """The stored environments with other entries."""
    return lambda w: {k: json.dumps(json.loads(_meta(w)[k]) | {n: v(w) if callable(v) else v
                      for n, v in changes.items()}) for k in ("env_spec", "eval_env_spec")}  # fmt: skip


def _meta(world: World) -> dict[str, Any]:
    return json.loads((world.good / "minari/attack/toy-v0/data/metadata.json").read_text())


def meta(change: Any, without: tuple[str, ...] = ()) -> Any:
    """The dataset's metadata with other entries."""

    def make(world: World) -> str:
        path = world.dataset() / "metadata.json"
        whole = _meta(world) | (change(world) if callable(change) else change)
        path.write_text(json.dumps({k: v for k, v in whole.items() if k not in without}))
        return "attack/toy-v0"

    return make


def minari_then(change: Any) -> Any:
    """The dataset's folder, changed."""

    def make(world: World) -> str:
        change(world.dataset())
        return "attack/toy-v0"

    return make


def in_episodes(change: Any) -> Any:
    def make(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "r+") as file:
            change(file)

    return minari_then(make)


def uneven(file: h5py.File) -> None:
    """A short and a long episode: their sum is right."""
    for name in ("rewards", "terminations", "truncations"):
        both = [file[f"episode_{i}/{name}"][:] for i in (0, 1)]
        put(file, f"episode_0/{name}", both[0][:-1])
        put(file, f"episode_1/{name}", np.concatenate([both[1][:1], both[1]]))


def recorded(**arrays: Any) -> Any:
    def make(world: World) -> str:
        world.minari.mkdir(exist_ok=True)
        return record("attack/bad-v0", **arrays)

    return make


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


RUNS = {"entry_point": "os:system", "kwargs": lambda w: {"command": w.touch}}
SPACES = ("observation_space", "action_space")
WRAPPER = [{"name": "Evil", "entry_point": "canary_wrap:Wrap", "kwargs": {}}]


def wrapped(world: World) -> dict[str, Any]:
    canary_module(world, "canary_wrap")
    return spec(additional_wrappers=WRAPPER)(world)


def space(**value: Any) -> dict[str, str]:
    return {"observation_space": json.dumps(value)}


MINARI = [
    ("an entry point that runs a command, without spaces", of(meta(spec(**RUNS), SPACES)), "space"),
    ("the same as a vector's", of(meta(spec(vector_entry_point="os:system", **RUNS), SPACES)),
     "space"),
    ("an entry point that runs a command", of(meta(spec(id="NoSuch-v0", **RUNS))),
     "NoSuch-v0|environment"),
    ("no observation space", of(meta({}, SPACES[:1])), "space"),
    ("a wrapper of another module", of(meta(wrapped)), "wrapper|Evil|canary_wrap"),
    ("the same, without spaces", of(meta(wrapped, SPACES)), "wrapper|space"),
    ("a stored id that names a module", of(meta(
        spec(id=lambda w: canary_module(w, "canary_minari")))), "canary_minari|env_id"),
    ("no metadata", of(minari_then(lambda d: (d / "metadata.json").unlink())), "toy-v0"),
    ("half of the metadata", of(minari_then(lambda d: shorten(d / "metadata.json"))),
     "metadata|toy-v0"),
    ("metadata that are a list", of(minari_then(lambda d: (d / "metadata.json").write_text("[]"))),
     "metadata|toy-v0"),
    ("deeply nested metadata", of(minari_then(
        lambda d: (d / "metadata.json").write_text("[" * 100_000))), "metadata|toy-v0"),
    ("a specification that is no JSON", of(meta({"env_spec": "{", "eval_env_spec": "{"})),
     "spec|toy-v0"),
    ("an unknown kind of space", of(meta(space(type="Hyperbolic"))), "space|Hyperbolic"),
    ("a discrete space of actions", of(meta({"action_space": json.dumps(
        {"type": "Discrete", "dtype": "int64", "start": 0, "n": 2})})), "action"),
    ("images", of(meta(space(type="Box", dtype="uint8", shape=[8, 8, 3],
                             low=[[[0] * 3] * 8] * 8, high=[[[255] * 3] * 8] * 8))), "observation"),
    ("text in the observations", of(meta(space(type="Dict", subspaces={"said": {
        "type": "Text", "max_length": 9, "min_length": 1, "charset": "abc"}}))),
        "observation|said"),
    ("half of the episodes", of(minari_then(lambda d: shorten(d / "main_data.hdf5"))), "toy-v0"),
    ("no episodes' file", of(minari_then(lambda d: (d / "main_data.hdf5").unlink())), "toy-v0"),
    ("episodes that are not there", of(meta({"total_episodes": 9})), "episode|toy-v0"),
    ("no episodes", of(meta({"total_episodes": 0, "total_steps": 0})), "episode"),
    ("an unknown format", of(meta({"data_format": "pickle"})), "format|pickle|toy-v0"),
    ("a short and a long episode", of(in_episodes(uneven)), "episode|rewards|length"),
    ("an external link in an episode", of(in_episodes(lambda f: put(
        f, "episode_0/actions", h5py.ExternalLink("/etc/hostname", "x")))), "link|external|toy-v0"),
    ("NaN in an episode", of(recorded(rewards=[float("nan")] * 20)), "rewards"),
    ("NaN in its last observation", of(recorded(
        observations=np.full((21, 3), np.nan, np.float32))), "observations"),
    ("a misspelt id", of(lambda w: [w.dataset(), "attack/toi-v0"][1]), "attack/toy-v0"),
    ("an id outside the folder", of(lambda w: "../../../etc/passwd-v0"), "passwd-v0"),
    ("a folder that is gone", of(minari_then(shutil.rmtree)), "toy-v0"),
    ("observation keys of vectors", of(lambda w: [w.dataset(), "attack/toy-v0"][1],
                                       "--data.observation_keys=[a]"), "observation_keys"),
]  # fmt: skip

# Lists, and names of mazes


def maze(name: str, *options: str) -> Any:
    return of(lambda w: f"pointmaze/{name}", *options)


OTHERS = [
    ("an empty list", of(lambda w: "[]"), "dataset"),
    ("a list of unequal dimensions", of(lambda w: [
        w.data, str(write_d4rl(w.inputs / "other.hdf5", observation_dim=4))]), "dimensions"),
    ("a list with a missing file", of(lambda w: [w.data, "none.hdf5"]), "none.hdf5"),
    ("an unknown maze", maze("tiny"), "tiny"),
    ("a goal in a wall", maze("umaze-to-0-0"), "wall"),
    ("a maze without a name", maze(""), "maze"),
    ("a maze without a free cell", maze("own", "--data.env_kwargs.maze_map=[[1,1],[1,1]]"),
     "maze_map|free"),
    ("rows of unequal lengths", maze("own", "--data.env_kwargs.maze_map=[[1,1,1],[1,0],[1,1,1]]"),
     "maze_map"),
    ("a letter in a maze", maze("own", "--data.env_kwargs.maze_map=[[1,1,1],[1,x,1],[1,1,1]]"),
     "maze_map"),
    ("no steps to generate", maze("umaze", "--data.generate_steps=0"), "generate_steps"),
]  # fmt: skip

TABLE = [Attack(name, args, words) for name, args, words in (*MINARI, *OTHERS)]
