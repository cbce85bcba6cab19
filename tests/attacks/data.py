"""Bad files of data: D4RL's HDF5, and OGBench's npz."""

from __future__ import annotations

import os
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from conftest import write_d4rl

from attacks.world import Attack, Bomb, World

N = 1000  # rows of the good file


def of(make: Any, *options: Any, role: str = "diffuser") -> Any:
    """A fit on what ``make`` gives."""
    return lambda world: world.fit(make(world), *options, role=role)


# HDF5


def h5(**changes: Any) -> Any:
    """The good file with other arrays, or without (None)."""
    return lambda world: write_d4rl(world.inputs / "bad.hdf5", **changes)


def h5_then(change: Any) -> Any:
    """The good file, changed by a function of it."""

    def make(world: World) -> Path:
        path = write_d4rl(world.inputs / "bad.hdf5")
        with h5py.File(path, "r+") as file:
            change(file, world)
        return path

    return make


def put(file: h5py.File, name: str, value: Any) -> None:
    if name in file:
        del file[name]
    file[name] = value


def external_link(file: h5py.File, world: World, name: str = "observations") -> None:
    put(file, name, h5py.ExternalLink(world.data, "observations"))


def raw_storage(file: h5py.File, world: World) -> None:
    secret = world.file("secret", os.urandom(N * 12))
    del file["observations"]
    file.create_dataset("observations", (N, 3), "f4", external=[(secret, 0, N * 12)])


def virtual(file: h5py.File, world: World, source: str | None = None) -> None:
    layout = h5py.VirtualLayout((N, 3), "f4")
    layout[:] = h5py.VirtualSource(source or world.data, "observations", (N, 3))
    del file["observations"]
    file.create_virtual_dataset("observations", layout)


def declared(file: h5py.File, world: World, rows: int = 10**9) -> None:
    for name, array in [(name, array) for name, array in file.items() if name != "metadata"]:
        shape, dtype = (rows, *array.shape[1:]), array.dtype
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=(65_536, *shape[1:]))


def wide(file: h5py.File, world: World) -> None:
    del file["observations"]
    file.create_dataset("observations", (N, 10**9), "f4", chunks=(1, 10**6))


def bomb(file: h5py.File, world: World) -> None:
    """60 GB are declared; 3 GB of zeros are there, in some MB."""
    rows, chunk = 5_000_000_000, 4_000_000
    declared(file, world, rows)
    del file["observations"]
    array = file.create_dataset("observations", (rows, 3), "f4", chunks=(chunk, 3), compression=9)
    squeezed = zlib.compress(bytes(chunk * 12), 9)
    for start in range(0, rows // 20, chunk):
        array.id.write_direct_chunk((start, 0), squeezed)


def checksum(file: h5py.File, world: World) -> None:
    array = file["observations"][:]
    del file["observations"]
    file.create_dataset("observations", data=array, chunks=(N, 3), fletcher32=True)
    mask, chunk = file["observations"].id.read_direct_chunk((0, 0))
    file["observations"].id.write_direct_chunk((0, 0), bytes([chunk[0] ^ 255]) + chunk[1:], mask)


def group(file: h5py.File, world: World) -> None:
    del file["actions"]
    file.create_group("actions")


def loop(file: h5py.File, world: World) -> None:
    put(file, "actions", h5py.SoftLink("/actions"))


def stored(name: str, make: Any) -> Any:
    """The good file with another entry."""
    return h5_then(lambda file, world: put(file, name, make(world)))


def canary_module(world: World, name: str) -> str:
    """A module that shows that it was imported."""
    world.file(f"{name}.py", f"import os\nos.system({world.touch!r})\n")
    return f"{name}:Pendulum-v1"


def damaged(change: Any, name: str = "bad.hdf5") -> Any:
    """The good file's bytes, changed."""
    return lambda world: world.file(name, change(Path(world.data).read_bytes()))


def flipped(content: bytes, first: int = 0, count: int = 64) -> bytes:
    return (
        content[:first]
        + bytes(b ^ 255 for b in content[first : first + count])
        + content[first + count :]
    )


def linked(world: World) -> Path:
    (world.inputs / "bad.hdf5").symlink_to(world.inputs / "nowhere.hdf5")
    return world.inputs / "bad.hdf5"


def folder(name: str) -> Any:
    def make(world: World) -> Path:
        (world.inputs / name).mkdir()
        return world.inputs / name

    return make


def pipe(world: World) -> Path:
    os.mkfifo(world.inputs / "bad.hdf5")
    return world.inputs / "bad.hdf5"


def rows(*values: float, width: int | None = None, dtype: Any = np.float32) -> np.ndarray:
    """An array of zeros that holds these in its middle."""
    array = np.zeros(N if width is None else (N, width), dtype)
    array[500 : 500 + len(values)] = np.reshape(values, (-1, *([1] * (array.ndim - 1))))
    return array


HDF5 = [
    ("an external link", of(h5_then(external_link)), "link|external"),
    ("an external link to the environment's id",
     of(h5_then(partial(external_link, name="metadata/env_id"))), "link|external|env_id"),
    ("external raw storage", of(h5_then(raw_storage)), "external|storage"),
    ("a virtual array", of(h5_then(virtual)), "virtual"),
    ("a virtual array without its source", of(h5_then(partial(virtual, source="none.hdf5"))),
     "virtual"),
    ("1e9 rows declared", of(h5_then(declared)), "declare|memory|bytes|GB|larger"),
    ("1e13 rows declared", of(h5_then(partial(declared, rows=10**13))),
     "declare|memory|bytes|GB|larger"),
    ("1e9 columns declared", of(h5_then(wide)), "declare|memory|dimensions|larger"),
    ("compressed zeros, 60 GB declared in some MB", of(h5_then(bomb)),
     "declare|memory|bytes|GB|larger"),
    ("a wrong checksum", of(h5_then(checksum)), "damaged"),
    ("a group in an array's place", of(h5_then(group)), "actions"),
    ("a link to itself", of(h5_then(loop)), "actions"),
    ("a dangling link", of(stored("actions", lambda w: h5py.SoftLink("/nowhere"))), "actions"),
    ("half a file", of(damaged(lambda b: b[: len(b) // 2])), "HDF5|damaged|cut"),
    ("flipped bytes at its head", of(damaged(flipped)), "HDF5|damaged"),
    ("flipped bytes behind its head", of(damaged(partial(flipped, first=96, count=512))),
     "HDF5|damaged|array"),
    ("no bytes", of(damaged(lambda b: b"")), "HDF5|empty"),
    ("random bytes", of(damaged(lambda b: bytes(range(256)) * 20)), "HDF5"),
    ("an npz that is called HDF5", of(damaged(lambda b: b"PK\x03\x04" + bytes(500))), "HDF5"),
    ("a folder", of(folder("bad.hdf5")), "folder|directory|no file"),
    ("a dangling link to a file", of(linked), "no file|link"),
    ("a pipe", of(pipe), "no file|pipe|regular"),
    ("no such file, in capitals", of(lambda w: w.inputs / "none.HDF5"), "no file"),
    ("another suffix", of(damaged(bytes, "bad.h5py")), "hdf5",
     "not a Minari id that cannot be downloaded"),
    ("text for numbers", of(h5(rewards=np.array([b"a"] * N))), "rewards"),
    ("complex numbers", of(h5(actions=rows(width=1, dtype=np.complex64))), "actions"),
    ("records", of(h5(rewards=np.zeros(N, [("a", "f4")]))), "rewards"),
    ("observations (N, 3, 1)", of(h5(observations=np.zeros((N, 3, 1), "f4"))), "observations"),
    ("observations (N, 0)", of(h5(observations=np.zeros((N, 0), "f4"))), "observations"),
    ("rewards (N, 2)", of(h5(rewards=rows(width=2))), "rewards"),
    ("a scalar for actions", of(h5(actions=np.float32(1))), "actions"),
    ("unequal lengths", of(h5(timeouts=np.zeros(N - 1, bool))), "timeouts"),
    ("no observations", of(h5(observations=None)), "observations"),
    ("no rewards", of(h5(rewards=None), role="td3_bc"), "rewards"),
    ("no rows", of(h5(episodes=0)), "no steps"),
    ("one row", of(h5(episodes=1, length=1)), "step|row|episode"),
    ("NaN in observations", of(h5(observations=rows(np.nan, width=3))), "observations"),
    ("NaN everywhere", of(h5(observations=np.full((N, 3), np.nan, "f4"))), "observations"),
    ("infinite actions", of(h5(actions=rows(np.inf, -np.inf, width=1))), "actions"),
    ("NaN in next_observations", of(h5(next_observations=rows(np.nan, width=3))),
     "next_observations"),
    ("NaN in terminals", of(h5(terminals=rows(np.nan))), "terminals"),
    ("terminals of 0.5", of(h5(terminals=rows(0.5))), "terminals"),
    ("timeouts of -1", of(h5(timeouts=rows(-1))), "timeouts"),
    ("NaN as a reference score", of(h5_then(lambda f, w: f.update(
        {"metadata/ref_min_score": np.nan, "metadata/ref_max_score": 1.0}))),
        "ref_min_score|reference"),
    ("a number as the environment's id", of(stored("metadata/env_id", lambda w: 7)), "env_id"),
    ("two ids of environments", of(stored("metadata/env_id", lambda w: ["A-v0", "B-v0"])),
     "env_id"),
    ("an id that is no text", of(stored("metadata/env_id", lambda w: np.bytes_(b"\xff\xfe"))),
     "env_id"),
    ("an id that names a module", of(stored(
        "metadata/env_id", lambda w: canary_module(w, "canary_h5"))), "env_id|canary_h5"),
    ("an unknown id", of(stored("metadata/env_id", lambda w: "NoSuch-v0")), "NoSuch-v0"),
]  # fmt: skip

# npz


def npz(**changes: Any) -> Any:
    """A good file of 10 episodes with other arrays, or without (None)."""

    def make(world: World) -> Path:
        ends = np.zeros(N, bool)
        ends[99::100] = True
        whole = {
            "observations": np.zeros((N, 3), "f4"),
            "actions": np.zeros((N, 1), "f4"),
            "terminals": ends,
        }
        chosen = {name: array for name, array in (whole | changes).items() if array is not None}
        np.savez(world.inputs / "bad.npz", **chosen)
        return world.inputs / "bad.npz"

    return make


def npz_bytes(change: Any) -> Any:
    return lambda world: world.file("bad.npz", change(npz()(world).read_bytes()))


def member(content: Any) -> Any:
    """A file whose observations are these bytes, or those that a function of the world gives."""

    def make(world: World) -> Path:
        path = npz(observations=None)(world)
        archive = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED)
        with archive, archive.open("observations.npy", "w", force_zip64=True) as file:
            for part in content(world) if callable(content) else [content]:
                file.write(part)
        return path

    return make


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """The head of an array in an npz, whatever follows it."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zeros(world: World) -> Any:
    yield header("(40000000, 3)")
    yield from [bytes(10**7)] * 48


def objects(world: World) -> Path:
    return npz(actions=np.array([Bomb(world.touch)] * N, object))(world)


def code(world: World) -> Any:
    yield header("(1000, 3)", f"__import__('os').system({world.touch!r})") + bytes(12_000)


NPZ = [
    ("pickled objects in an npz", of(objects), "actions|pickle"),
    ("an expression in an array's head", of(member(code)), "npz|observations"),
    ("half an npz", of(npz_bytes(lambda b: b[: len(b) // 2])), "npz|damaged"),
    ("flipped bytes in an npz", of(npz_bytes(partial(flipped, first=700))), "npz|damaged"),
    ("no bytes in an npz", of(npz_bytes(lambda b: b"")), "npz"),
    ("an npz of no arrays", of(npz(observations=None, actions=None, terminals=None)),
     "observations"),
    ("no terminals in an npz", of(npz(terminals=None)), "terminals"),
    ("1e9 rows declared in an npz", of(member(header("(1000000000, 3)"))),
     "observations|declare|memory|length"),
    ("less than no rows in an npz", of(member(header("(-1, 3)") + bytes(12))), "observations|npz"),
    ("480 MB of zeros in 480 kB", of(member(zeros)), "length|larger|declare|observations"),
    ("an npy of another version", of(member(b"\x93NUMPY\x09\x00" + bytes(200))),
     "npz|observations"),
    ("text in an npz", of(npz(observations=np.array([["a", "b", "c"]] * N))), "observations"),
    ("an npz without a last terminal", of(npz(terminals=np.zeros(N, bool))), "terminal"),
    ("episodes without an action", of(npz(terminals=np.ones(N, bool))), "action|episode"),
    ("NaN in an npz", of(npz(observations=np.full((N, 3), np.nan, "f4"))), "observations"),
    ("NaN terminals in an npz", of(npz(terminals=np.full(N, np.nan))), "terminals"),
    ("no rewards in an npz", of(npz(), "--rollout.val_episodes=0", role="td3_bc"), "rewards"),
]  # fmt: skip

TABLE = [Attack(name, args, words, why="".join(why))
         for name, args, words, *why in (*HDF5, *NPZ)]  # fmt: skip
