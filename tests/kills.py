"""Kills runs at random times: every one goes on bit for bit, and no file is cut short.

    PYTHONPATH=tests:tests/data python tests/kills.py --kills 24 --tmpdir /dev/shm

Six roles are trained with ``last.ckpt`` written every few steps, one of them while it acts in its
environment; a synthesizer draws a dataset; PointMaze is generated; a Minari dataset is cached. Each
is run once undisturbed. Then it is killed by SIGKILL, at a random time or twice, and started again;
its result is compared with the undisturbed one, array by array. SIGTERM and SIGINT follow.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from conftest import write_d4rl
from helpers import CONFIGS, TINY, diffrl_command
from modules.role_tester import ready, saved

from diffrl_lightning import DataSynthesizer, TransitionData
from diffrl_lightning.modules.checkpoint_files import read_checkpoint

ONLINE = (
    "--data=OnlineData", "--data.env_id=InvertedPendulum-v5", "--data.horizon=8",
    "--data.batch_size=32", "--data.prefill_steps=100", "--trainer.callbacks=Collect",
)  # fmt: skip
SAVED = (
    "--checkpoint.every_n_train_steps=5", "--trainer.val_check_interval=40", "--rollout.val_episodes=0",
)  # fmt: skip
STEPS = {
    "diffuser": 400, "diffusion_ql": 300, "idql": 500, "td3_bc": 900, "data_synthesizer": 600,
    "dynamics_agent": 300,
}  # fmt: skip


class Job:
    """A command that is run in a folder of its own until it has its result."""

    def __init__(self, name, folder, tmpdir, command):
        self.name, self.folder, self.tmpdir, self.command = name, folder, tmpdir, command
        folder.mkdir(parents=True)
        tmpdir.mkdir(parents=True, exist_ok=True)

    def start(self):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.tmpdir),
            "MINARI_DATASETS_PATH": str(self.folder / "minari"),
            "DIFFRL_CACHE": str(self.folder / "cache"),
        }
        return subprocess.Popen(
            [*diffrl_command(*self.command), *self.more()],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def more(self):
        """Further arguments, where there is something to go on from."""
        return []

    def finish(self):
        process = self.start()
        stderr = process.communicate(timeout=600)[1]
        assert process.returncode == 0, f"{self.name}: {stderr[-2000:]}"
        return self.result()

    def result(self):
        """Arrays by name."""
        raise NotImplementedError

    def check(self):
        """No checkpoint is cut short, and nothing is left where temporary files lie."""
        for path in self.folder.rglob("*.ckpt"):
            read_checkpoint(path)
        left = [p for p in self.tmpdir.rglob("*") if p.is_file() and p.stat().st_size > 0]
        assert not left, f"left in TMPDIR: {left}"


class Training(Job):
    def runs(self):
        paths = self.folder.glob("runs/*/version_*/checkpoints/last.ckpt")
        return sorted(paths, key=lambda path: int(path.parts[-3].split("_")[1]))

    def more(self):
        runs = self.runs()
        return [f"--ckpt_path={runs[-1]}"] if runs else []

    def result(self):
        checkpoint = read_checkpoint(self.runs()[-1])
        arrays = {"step": torch.tensor(checkpoint["global_step"])} | checkpoint["state_dict"]
        for k, moments in checkpoint["optimizer_states"][0]["state"].items():
            arrays |= {f"{k}.{name}": value for name, value in moments.items()}
        buffer = checkpoint.get("OnlineData", {}).get("buffer", {})
        return arrays | {k: v for k, v in buffer.items() if torch.is_tensor(v)}


class Prediction(Job):
    def result(self):
        with h5py.File(self.folder / "new.hdf5") as file:
            return {k: torch.from_numpy(v[:]) for k, v in file.items() if hasattr(v, "shape")}


class Generation(Job):
    def result(self):
        files = self.folder.glob("minari/**/main_data.hdf5")
        found = {}

        def keep(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = torch.from_numpy(np.asarray(item[()]))

        with h5py.File(next(files)) as file:
            file.visititems(keep)
        return found


class Caching(Job):
    def result(self):
        return {p.name: torch.from_numpy(np.load(p)) for p in self.folder.glob("cache/*/*.npy")}


def fit(role, dataset, *more):
    options = () if role == "dynamics_agent" else (f"--data.dataset={dataset}",)
    if role == "dynamics_agent":
        options = ONLINE
    return ("fit", "-c", TINY, "-c", CONFIGS / f"{role}.yaml", *options, *SAVED, *more)


def jobs(root, tmpdir):
    """The makers of all jobs, by name."""
    dataset = write_d4rl(root / "pendulum.hdf5")
    synthesizer = DataSynthesizer(3, 1, hidden_dim=16, num_blocks=1, embed_dim=16)
    synthesizer.fit_normalizers(ready(TransitionData(str(dataset))))
    drawn = saved(synthesizer, root / "synthesizer.ckpt")
    predict = (
        "predict", "-c", TINY, "-c", CONFIGS / "data_synthesizer.yaml", f"--data.dataset={dataset}",
        f"--ckpt_path={drawn}", "--synthesis.output=new.hdf5", "--synthesis.num_samples=3000",
        "--synthesis.shard_size=20", "--synthesis.sampling=SynthesisSampling",
        "--synthesis.sampling.num_inference_steps=101",
    )  # fmt: skip
    maze = fit(
        "td3_bc",
        "pointmaze/open",
        "--trainer.max_steps=1",
        "--data.goal_key=none",
        "--data.generate_steps=60000",
    )
    generate = ("generate", "pointmaze/open", "--num_steps=20000")
    found = {
        role: (Training, fit(role, dataset, f"--trainer.max_steps={steps}"))
        for role, steps in STEPS.items()
    }
    found |= {
        "predict": (Prediction, predict),
        "generate": (Generation, generate),
        "cache": (Caching, maze),
    }

    def maker(name):
        kind, command = found[name]
        count = iter(range(1000))
        return lambda: kind(name, root / f"{name}_{next(count)}", tmpdir / name, command)

    return {name: maker(name) for name in found}


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], value) for name, value in expected.items())


def kill(make, expected, seconds, rng, times):
    """Kill a job once or twice, let it finish, and compare."""
    job, done = make(), []
    for _ in range(times):
        process = job.start()
        wait = rng.uniform(0.3, 1.0) * seconds
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            done.append(round(wait, 1))
        process.communicate()
        job.check()
        if not done or (len(done) < times and process.returncode == 0):
            break
    equal = same(job.finish(), expected)
    job.check()
    shutil.rmtree(job.folder)
    return done, equal


def interrupt(make, expected, seconds, rng, number):
    """Send a signal while it trains; the last checkpoint is of the step that it stopped at."""
    job = make()
    process = job.start()
    time.sleep(rng.uniform(0.6, 0.9) * seconds)
    process.send_signal(number)
    stderr = process.communicate(timeout=120)[1]
    said = [line for line in stderr.splitlines() if line.startswith("Stopped at step")]
    job.check()
    step = read_checkpoint(job.runs()[-1])["global_step"] if job.runs() else None
    right = process.returncode == 128 + number and bool(said) and f"step {step};" in said[0]
    equal = same(job.finish(), expected)
    shutil.rmtree(job.folder)
    return process.returncode, step, right and equal


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tmpdir", default=None, help="on another file system, such as /dev/shm")
    parser.add_argument("--jobs", nargs="*", default=None)
    options = parser.parse_args()
    rng, failed = random.Random(options.seed), 0
    with (
        tempfile.TemporaryDirectory() as root,
        tempfile.TemporaryDirectory(dir=options.tmpdir) as tmp,
    ):
        makers = jobs(Path(root), Path(tmp))
        names = options.jobs or [*makers]
        whole = {}
        for name in names:
            begin, job = time.monotonic(), makers[name]()
            whole[name] = (job.finish(), time.monotonic() - begin)
            print(f"{name}: {whole[name][1]:.1f} s undisturbed", flush=True)
        total, turn = 0, 0
        while total < options.kills:
            name = names[turn % len(names)]
            done, equal = kill(makers[name], *whole[name], rng, times=1 + turn % 2)
            total, turn, failed = total + len(done), turn + 1, failed + (not equal)
            print(f"{name}: killed after {done} s, {'equal' if equal else 'DIFFERENT'}", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            for name in [name for name in names if name in STEPS]:
                code, step, right = interrupt(makers[name], *whole[name], rng, number)
                failed += not right
                print(f"{name}: {number.name}, exit code {code}, step {step}, "
                      f"{'equal' if right else 'WRONG'}", flush=True)  # fmt: skip
    print(f"{total} kills, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
