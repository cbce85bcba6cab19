"""Kills real runs at random times: what they leave is whole, and they go on bit for bit.

    python tests/kills.py --kills=24 --seed=0 --tmpdir=/dev/shm

SIGKILL for fits of six roles, a prediction, a generation and a cache; then SIGTERM and SIGINT. Prints a
line a kill; exit code 1 where anything is wrong. Writes in one temporary folder, and in one of TMPDIR.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from conftest import write_d4rl
from helpers import CONFIGS, TINY, diffrl_command

# Large enough that much of the time goes into saving.
SIZES = {
    "diffuser": "--model.dim=32",
    "diffusion_ql": "--model.hidden_dim=256",
    "idql": "--model.hidden_dim=256",
    "data_synthesizer": "--model.hidden_dim=256",
    "td3_bc": "--model.hidden_dim=512",
    "dynamics_agent": "--model.policy_dim=256",
}
OTHERS = ("predict", "generate", "cache")
STEPS, SAVE_EVERY = 80, 4
PATIENCE = 300  # seconds


class Run:
    """A command in a folder of its own; ``began`` says that it does what is to be disturbed."""

    def __init__(self, args: list[Any], began: Callable[[Path], bool], space: Space) -> None:
        self.args, self.began, self.space = args, began, space

    def start(self, folder: Path) -> subprocess.Popen:
        """Start it in ``folder``."""
        folder.mkdir(exist_ok=True)
        with (folder / "output").open("ab") as output:
            return subprocess.Popen(
                diffrl_command(*self.args),
                cwd=folder,
                env=self.space.environment(folder),
                stdout=output,
                stderr=output,
            )

    def finish(self, folder: Path) -> float:
        """Run it undisturbed; seconds from when it began to its end."""
        process = self.start(folder)
        self.wait(process, folder)
        begun = time.monotonic()
        (folder / "began").touch()
        code = process.wait(PATIENCE)
        if code:
            raise Wrong(f"exit code {code}: {(folder / 'output').read_text()[-1500:]}")
        return time.monotonic() - begun

    def wait(self, process: subprocess.Popen, folder: Path) -> None:
        """Until it began, or has ended."""
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and not self.began(folder) and time.monotonic() < deadline:
            time.sleep(0.002)

    def kill(self, folder: Path, delay: float) -> bool:
        """SIGKILL so long after it began; whether it was still running."""
        process = self.start(folder)
        self.wait(process, folder)
        time.sleep(delay)
        running = process.poll() is None
        process.kill()
        process.wait()
        return running


class Space:
    """Where everything is written."""

    def __init__(self, tmpdir: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kills-"))
        self.temporary = Path(tempfile.mkdtemp(prefix="kills-", dir=tmpdir))

    def environment(self, folder: Path) -> dict[str, str]:
        """Of a run in ``folder``."""
        own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(self.temporary)}
        own |= {"MINARI_DATASETS_PATH": str(folder / "minari")}
        return os.environ | own | {"DIFFRL_CACHE": str(folder / "cache")}

    def check_temporary(self) -> None:
        """Nothing is left in TMPDIR, but for Gymnasium-Robotics' own drawings of mazes."""
        left = sorted(p.name for p in self.temporary.iterdir() if "_maze" not in p.name)
        for path in self.temporary.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if left:
            raise Wrong(f"left in TMPDIR: {', '.join(left)}")

    def close(self) -> None:
        """Remove it all."""
        shutil.rmtree(self.folder)
        shutil.rmtree(self.temporary)


class Wrong(Exception):  # noqa: N818
    """What a kill has shown."""


# Fits


def fit_args(role: str, folder: Path, size: str = "") -> list[Any]:
    """Of a short fit that saves often."""
    config = CONFIGS / f"{role}.yaml"
    if role == "dynamics_agent":  # online
        whole = yaml.safe_load(config.read_text())
        growing = {"horizon": 5, "num_envs": 2, "prefill_steps": 50, "batch_size": 16}
        growing |= {"env_id": "InvertedPendulum-v5", "batches_per_epoch": 30}
        whole["data"] = {"class_path": "OnlineData", "init_args": growing}
        whole["trainer"] = {"callbacks": [{"class_path": "Collect"}]}
        config = folder / "online.yaml"
        config.write_text(yaml.safe_dump(whole))
    data = [] if role == "dynamics_agent" else [f"--data.dataset={folder / 'data.hdf5'}"]
    return [
        *("fit", "-c", TINY, "-c", config, *data, *([size] if size else [])),
        *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={SAVE_EVERY}"),
        "--rollout.val_episodes=0",
    ]


def checkpoints(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every checkpoint, read.

    Raises:
        Wrong: if one is not whole.
    """
    for path in sorted(folder.rglob("*.ckpt")):
        try:
            yield path, torch.load(path, weights_only=True)
        except Exception as error:
            size = path.stat().st_size
            raise Wrong(f"{path.name} of {size} bytes: {type(error).__name__}: {error}") from error


def last(folder: Path) -> Path | None:
    """The last checkpoint of the newest run that has one."""
    found = {int(p.parts[-3][8:]): p for p in folder.rglob("last.ckpt")}
    return found[max(found)] if found else None


def differ(a: Any, b: Any, name: str = "") -> str | None:
    """Where two checkpoints differ, or None."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return None if torch.equal(a, b) else name
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for k in a if (d := differ(a[k], b[k], f"{name}.{k}"))), None)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for k, (x, y) in pairs if (d := differ(x, y, f"{name}.{k}"))), None)
    return None if a == b or (a != a and b != b) else name


def same(found: Path | None, expected: Path | None) -> None:
    """Weights, moments, counters of batches, and the data of an agent are bit-equal."""
    if found is None or expected is None:
        raise Wrong("no last.ckpt at the end")
    both = [torch.load(p, weights_only=True) for p in (found, expected)]
    for name in (set(both[0]) | set(both[1])) - {"callbacks"}:  # these know their paths
        if name not in both[0] or name not in both[1]:
            raise Wrong(f"{name} is in one checkpoint alone")
        where = differ(both[0][name], both[1][name], name)
        if where:
            raise Wrong(f"differs in {where}")


def kill_fit(role: str, space: Space, kills: int, rng: random.Random) -> Iterator[str | Wrong]:
    """Kill a fit again and again, each time going on; then compare it with an undisturbed one."""
    args = fit_args(role, space.folder, SIZES[role])
    whole, folder = space.folder / f"{role}-whole", space.folder / role
    Run(args, lambda f: any(f.rglob("events*")), space).finish(whole)
    seconds = last(whole).stat().st_mtime - (whole / "began").stat().st_mtime
    yield from space_is_clean(space, "undisturbed")
    versions = 0
    for _ in range(kills):
        seen = versions
        path = last(folder) if folder.exists() else None
        more = [] if path is None else [f"--ckpt_path={path}"]
        run = Run(args + more, lambda f, n=seen: len(list(f.rglob("events*"))) > n, space)
        delay = rng.uniform(0, seconds * 0.8)
        running = run.kill(folder, delay)
        versions = len(list(folder.rglob("events*")))
        try:
            steps = {p.name: c["global_step"] for p, c in checkpoints(folder)}
            space.check_temporary()
            yield f"after {delay:.2f} s" + ("" if running else " (had ended)") + f", {steps}"
        except Wrong as wrong:
            yield wrong
            for broken in folder.rglob("*.ckpt"):  # go on with what can be read
                if not readable(broken):
                    broken.unlink()
        if (path := last(folder)) and torch.load(path, weights_only=True)["global_step"] >= STEPS:
            break
    path = last(folder)
    try:
        if path is None or torch.load(path, weights_only=True)["global_step"] < STEPS:
            more = [] if path is None else [f"--ckpt_path={path}"]
            Run(args + more, lambda f: False, space).finish(folder)
        same(last(folder), last(whole))
        yield "at the end bit-equal to the undisturbed run"
    except Wrong as wrong:
        yield wrong
    yield from space_is_clean(space, "finished")


def readable(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def space_is_clean(space: Space, what: str) -> Iterator[Wrong]:
    try:
        space.check_temporary()
    except Wrong as wrong:
        yield Wrong(f"{what}: {wrong}")


# What is written whole or not at all


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an HDF5 or npz file, or of a folder of npy files."""
    found: dict[str, np.ndarray] = {}
    if path.is_dir():
        return {p.stem: np.load(p) for p in sorted(path.glob("*.npy"))}
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)

    def take(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and "provenance" not in name:
            found[name] = entry[()]

    with h5py.File(path) as file:
        file.visititems(take)
    return found


def same_arrays(found: Path, expected: Path) -> None:
    a, b = arrays(found), arrays(expected)
    if a.keys() != b.keys():
        raise Wrong(f"{found.name} has {sorted(a)}, not {sorted(b)}")
    unequal = [name for name in a if not np.array_equal(a[name], b[name])]
    if unequal:
        raise Wrong(f"{found.name} differs in {', '.join(unequal[:3])}")


def predict_run(space: Space) -> tuple[Run, Callable[[Path], list[Path]], str]:
    """A prediction in many shards, by a synthesizer that is trained first."""
    trained = space.folder / "synthesizer"
    args = fit_args("data_synthesizer", space.folder)
    if not trained.exists():
        Run(args, lambda f: False, space).finish(trained)
    args = [
        *("predict", *args[1:6], f"--ckpt_path={last(trained)}"),
        *("--synthesis.output=out.hdf5", "--synthesis.num_samples=3000"),
        "--synthesis.shard_size=50",
    ]
    run = Run(args, lambda f: (f / "out.hdf5.parts").is_dir(), space)
    return run, lambda f: [*f.glob("*.hdf5"), *f.glob("*.parts/*.npz")], "out.hdf5"


def generate_run(space: Space) -> tuple[Run, Callable[[Path], list[Path]], str]:
    """A maze's dataset."""
    args = ["generate", "pointmaze/umaze", "--num_steps=2500"]
    run = Run(args, lambda f: any((f / "minari").glob(".partial*")), space)
    return (
        run,
        lambda f: list(f.glob("minari/pointmaze/*/data/*.hdf5")),
        ("minari/pointmaze/umaze-v0/data/main_data.hdf5"),
    )


def cache_run(space: Space) -> tuple[Run, Callable[[Path], list[Path]], str]:
    """A fit that reads a Minari dataset for the first time."""
    made = space.folder / "maze"
    if not made.exists():
        generate_run(space)[0].finish(made)
    args = ["fit", "-c", TINY, "-c", CONFIGS / "diffuser.yaml", "--data.dataset=pointmaze/umaze"]
    args += ["--trainer.max_steps=1", "--rollout.val_episodes=0"]
    run = Run(args, lambda f: any((f / "cache").glob("*")), space)
    return run, lambda f: [p for p in f.glob("cache/*") if p.name.startswith("pointmaze")], "cache"


def kill_writer(kind: str, space: Space, kills: int, rng: random.Random) -> Iterator[str | Wrong]:
    """Kill what writes a dataset; the same command then finishes it, equal to an undisturbed one."""
    makers = {"predict": predict_run, "generate": generate_run, "cache": cache_run}
    run, written, target = makers[kind](space)
    whole = space.folder / f"{kind}-whole"
    prepare(kind, whole, space)
    seconds = min(run.finish(whole), 0.05 if kind == "cache" else 60)
    yield from space_is_clean(space, "undisturbed")
    for number in range(kills):
        folder = space.folder / f"{kind}-{number}"
        prepare(kind, folder, space)
        delay = rng.uniform(0, seconds)
        running = run.kill(folder, delay)
        try:
            for path in written(folder):
                arrays(path)  # each is whole
            space.check_temporary()
            done = len(written(folder))
            if kind == "cache" or not (folder / target).exists():
                run.finish(folder)
            pairs = zip(written(folder), written(whole), strict=True)
            for path, expected in pairs:
                same_arrays(path, expected)
            ended = "" if running else " (had ended)"
            yield f"after {delay:.2f} s{ended}, {done} written; then finished, and equal"
        except Wrong as wrong:
            yield wrong
        except Exception as error:
            yield Wrong(f"{type(error).__name__}: {error}")


def prepare(kind: str, folder: Path, space: Space) -> None:
    """What a run needs in its folder; the cache knows a dataset by its path, and by its time."""
    folder.mkdir()
    if kind == "cache":
        shutil.copytree(space.folder / "maze" / "minari", folder / "minari")


# Signals that ask


def ask(number: signal.Signals, role: str, space: Space, rng: random.Random) -> str:
    """End a long fit by a signal: its last step is kept, and it goes on from there."""
    args = [a for a in fit_args(role, space.folder) if "max_steps" not in str(a)]
    args = [a for a in args if "val_check_interval" not in str(a)]
    logger = "--trainer.logger.init_args."
    csv = ["--trainer.logger=CSVLogger", f"{logger}save_dir=runs"]
    csv += [f"{logger}flush_logs_every_n_steps=1", "--trainer.log_every_n_steps=1"]
    csv += ["--trainer.val_check_interval=100000"]
    run = Run([*args, *csv, "--trainer.max_steps=50000"], rows_are_logged, space)
    folder = space.folder / f"{number.name}-{role}"
    process = run.start(folder)
    run.wait(process, folder)
    time.sleep(rng.uniform(0, 2))
    process.send_signal(number)
    code, expected = process.wait(60), 128 + number
    output = (folder / "output").read_text()
    if code != expected:
        raise Wrong(f"exit code {code}, not {expected}")
    if "Traceback" in output:
        raise Wrong("prints a traceback")
    space.check_temporary()
    path = last(folder)
    if path is None:
        raise Wrong("no last.ckpt")
    if not re.search(r"\S*last\.ckpt", output):
        raise Wrong("the path of last.ckpt is not printed")
    step = torch.load(path, weights_only=True)["global_step"]
    logged = last_logged(folder)
    if abs(step - logged) > 1:
        raise Wrong(f"last.ckpt is of step {step}, the last logged one is {logged}")
    more = [*args, *csv, f"--trainer.max_steps={step + 20}"]
    Run([*more, f"--ckpt_path={path}"], lambda f: False, space).finish(folder)
    whole = space.folder / f"{number.name}-{role}-whole"
    Run(more, lambda f: False, space).finish(whole)
    same(last(folder), last(whole))
    return f"exit code {code}, last.ckpt of step {step} (logged {logged}), goes on bit for bit"


def rows_are_logged(folder: Path) -> bool:
    return any(len(p.read_text().splitlines()) > 20 for p in folder.rglob("metrics.csv"))


def last_logged(folder: Path) -> int:
    """Optimiser steps as the last row counts them."""
    (path,) = folder.rglob("metrics.csv")
    names, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return max(int(row[names.index("step")]) for row in rows) + 1


def main(args: list[str] | None = None) -> int:
    """Kill, report, and say by the exit code whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tmpdir", default="/dev/shm", help="a folder of another filesystem")
    every = [*SIZES, *OTHERS]
    parser.add_argument("--roles", default=",".join(every), help=f"of {', '.join(every)}")
    parser.add_argument("--signals", default="SIGTERM,SIGINT", help="empty for none")
    given = parser.parse_args(args)
    space, rng = Space(given.tmpdir), random.Random(given.seed)
    write_d4rl(space.folder / "data.hdf5")
    if os.stat(space.folder).st_dev == os.stat(space.temporary).st_dev:
        print("note: TMPDIR is on the filesystem of the runs; give another with --tmpdir")
    try:
        return attack_all(given, space, rng)
    finally:
        space.close()


def attack_all(given: argparse.Namespace, space: Space, rng: random.Random) -> int:
    """Every kind that was asked for."""
    kinds, wrong, killed, begun = given.roles.split(","), 0, 0, time.monotonic()
    for index, kind in enumerate(kinds):
        kills = given.kills // len(kinds) + (index < given.kills % len(kinds))
        attack = kill_fit if kind in SIZES else kill_writer
        for found in attack(kind, space, kills, rng):
            wrong += isinstance(found, Wrong)
            killed += str(found).startswith("after") and "had ended" not in str(found)
            print(f"{kind:17s} {'WRONG: ' if isinstance(found, Wrong) else ''}{found}", flush=True)
    for name in filter(None, given.signals.split(",")):
        for role in [r for r in kinds if r in SIZES][:2]:
            try:
                text = ask(signal.Signals[name], role, space, rng)
            except Wrong as error:
                wrong, text = wrong + 1, f"WRONG: {error}"
            print(f"{name:8s} {role:17s} {text}", flush=True)
    print(f"{killed} kills, {wrong} wrong, {time.monotonic() - begun:.0f} s, seed {given.seed}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
