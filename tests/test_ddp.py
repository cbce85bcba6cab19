"""Two processes: their own noise, equal weights, and one set of episodes between them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import CONFIG, diffrl, fit_args

from diffrl_lightning import DiffusionModule

PROBE = """
import lightning.pytorch as pl, torch

class Probe(pl.Callback):
    '''Writes what each rank drew, saw, evaluated and ended with.'''
    draws, rows, seeds = [], [], []
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.draws.append(torch.rand(()).item())
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append(batch["observations"][:, 0].clone())
    def on_test_end(self, trainer, module):
        rollout = next(c for c in trainer.callbacks if type(c).__name__ == "Rollout")
        self.seeds = [(e.seed, e.episode_return) for e in rollout.evaluation.episodes]
        torch.save({"draws": self.draws, "rows": torch.cat(self.rows), "seeds": self.seeds,
                    "ema": module.ema.state_dict(), "denoiser": module.denoiser.state_dict()},
                   f"rank{trainer.global_rank}.pt")
"""


def run(folder, pendulum_file, devices, batch_size):
    folder.mkdir()
    (folder / "probe_callback.py").write_text(PROBE)
    args = fit_args(
        pendulum_file,
        "--test_after_fit=true",
        "--trainer.max_steps=6",
        "--trainer.val_check_interval=6",
        f"--trainer.devices={devices}",
        "--trainer.strategy=ddp" if devices > 1 else "--trainer.strategy=auto",
        f"--data.batch_size={batch_size}",
        "--rollout.num_episodes=5",
        "--trainer.callbacks+=probe_callback.Probe",
    )
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "diffrl_lightning", *args]
    result = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(devices)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, pendulum_file):
    return tmp_path_factory.mktemp("ddp") / "two", pendulum_file


def test_two_processes(ranks):
    folder, pendulum_file = ranks
    first, second = run(folder, pendulum_file, devices=2, batch_size=16)

    assert not set(first["draws"]) & set(second["draws"]), "each rank draws noise of its own"
    assert not torch.equal(first["rows"], second["rows"]), "and sees data of its own"
    for name in ("ema", "denoiser"):
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), f"{name} {key} differs between ranks"

    seeds = [[s for s, _ in rank["seeds"]] for rank in (first, second)]
    assert seeds == [[0, 2, 4], [1, 3]], "no episode is counted twice"

    # One process, on the checkpoint that the two wrote.
    checkpoint = folder / "runs" / "diffrl" / "version_0" / "checkpoints" / "best.ckpt"
    together = json.loads((checkpoint.parents[1] / "results.json").read_text())
    args = ("test", *fit_args(pendulum_file)[1:], f"--ckpt_path={checkpoint}")
    options = ("--rollout.num_episodes=5", "--rollout.results_path=alone.json")
    diffrl(*args, *options, cwd=folder)
    alone = json.loads((folder / "alone.json").read_text())
    for key in ("return_mean", "return_sem", "episode_length", "num_episodes"):
        assert together[key] == pytest.approx(alone[key], rel=1e-4), key
    everyone = dict(first["seeds"] + second["seeds"])
    assert together["return_mean"] == pytest.approx(sum(everyone.values()) / 5, rel=1e-6)
    assert DiffusionModule.load_from_checkpoint(checkpoint).horizon == 8
    assert CONFIG.is_file()
