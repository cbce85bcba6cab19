"""A run that was killed goes on as if nothing had happened."""

import os
import signal
import subprocess
import time

import pytest
import torch
from helpers import SILENT, companions, diffrl, diffrl_command, fit_args

from diffrl_lightning.cli import main


def run_folder(folder, version=0):
    return folder / "runs" / "diffrl" / f"version_{version}" / "checkpoints"


# 1000 steps of 10 episodes, less one episode for validation, are 26 batches an epoch.
@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sigkill_and_resume_is_bit_exact(tmp_path, pendulum_file, accumulate):
    options = (
        "--trainer.max_steps=70",
        f"--trainer.accumulate_grad_batches={accumulate}",
        "--checkpoint.monitor=null",
        "--checkpoint.every_n_train_steps=7",
        "--rollout.val_episodes=0",
        "--model.lr_schedule=cosine",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    diffrl(*fit_args(pendulum_file, *options), cwd=whole)

    process = subprocess.Popen(
        diffrl_command(*fit_args(pendulum_file, *options)),
        cwd=killed,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = run_folder(killed) / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 70, f"the run was to be killed in its middle, not at {step}"

    diffrl(*fit_args(pendulum_file, *options, f"--ckpt_path={last}"), cwd=killed)
    expected = torch.load(run_folder(whole) / "last.ckpt", weights_only=True)
    resumed = torch.load(run_folder(killed, 1) / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == expected["global_step"] == 70
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    moments = (run["optimizer_states"][0]["state"][0]["exp_avg"] for run in (expected, resumed))
    assert torch.equal(*moments)


@pytest.mark.parametrize(
    ("role", "last", "steps"),
    [
        ("diffuser", 40, (13, 15, 26, 27, 30)),
        ("decision_diffuser", 30, (15, 27)),
        ("trajectory_value", 30, (13, 26)),
        ("diffusion_policy", 30, (13, 27)),
        ("diffusion_ql", 32, (15, 30)),
        ("idql", 32, (13, 30)),
        ("td3_bc", 32, (13, 30)),
        ("behaviour_cloning", 32, (13, 30)),
        ("data_synthesizer", 32, (13, 30)),
        ("trajectory_synthesizer", 32, (13, 26)),
        ("diffused_value", 32, (13, 30)),
        ("relative_reward", 30, (13, 26)),
        ("value_policy", 32, (13, 30)),
        ("latent_skills", 30, (13, 29)),
        ("latent_diffusion", 30, (13, 29)),
        ("latent_q", 30, (13, 29)),
        ("diffusion_dynamics", 30, (13, 29)),
        ("ensemble_dynamics", 30, (13, 29)),
        ("dynamics_agent", 30, (13, 28)),
    ],
)
def test_resume_from_every_kind_of_step(tmp_path, monkeypatch, pendulum_file, role, last, steps):
    """In mid-epoch, at a validation, at an epoch's end, and in the second epoch."""
    monkeypatch.chdir(tmp_path)
    options = (
        "--checkpoint.monitor=null",
        "--checkpoint.every_n_train_steps=1",
        "--checkpoint.save_top_k=-1",
        "--checkpoint.filename=step{step}",
        "--checkpoint.auto_insert_metric_name=false",
        f"--rollout.val_episodes={int(role not in SILENT)}",
        "--data.env_kwargs.max_episode_steps=60",
        f"--trainer.max_steps={last}",
        *companions(role, tmp_path, pendulum_file),
    )
    main(fit_args(pendulum_file, *options, role=role))
    if role.startswith("latent"):
        for file in tmp_path.glob("*.ckpt"):
            file.unlink()  # what it was built on travels in its own checkpoints
    whole = torch.load(run_folder(tmp_path) / f"step{last}.ckpt", weights_only=True)["state_dict"]
    for version, step in enumerate(steps, 1):
        first = run_folder(tmp_path) / f"step{step}.ckpt"
        main(fit_args(pendulum_file, *options, f"--ckpt_path={first}", role=role))
        resumed = torch.load(run_folder(tmp_path, version) / f"step{last}.ckpt", weights_only=True)
        for key, value in whole.items():
            assert torch.equal(value, resumed["state_dict"][key]), (step, key)
