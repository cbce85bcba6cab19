"""Two processes: their own noise, equal weights, and one set of episodes between them."""

import json

import pytest
import torch
from helpers import SILENT, companions, fit_args
from modules.role_tester import ready, saved
from two_processes import TwoProcesses

from diffrl_lightning import Role, SequenceData, TrajectoryValue
from diffrl_lightning.cli import main


@pytest.fixture(scope="module")
def two_processes():
    processes = TwoProcesses()
    yield processes
    processes.stop()


def read(folder, stage):
    return [torch.load(folder / f"{stage}{rank}.pt", weights_only=True) for rank in (0, 1)]


def value_checkpoint(folder, pendulum_file):
    data = ready(SequenceData(str(pendulum_file), horizon=8))
    small = {"horizon": 8, "dim": 16, "dim_mults": (1, 2), "num_train_timesteps": 8}
    value = TrajectoryValue(3, 1, **small, normalizer="limits")
    value.fit_normalizers(data)
    return saved(value, folder / "value.ckpt")


ROLES = [
    "diffuser",
    "decision_diffuser",
    "trajectory_value",
    "diffusion_policy",
    "diffusion_ql",
    "idql",
    "td3_bc",
    "behaviour_cloning",
    "data_synthesizer",
    "trajectory_synthesizer",
    "diffused_value",
    "relative_reward",
    "value_policy",
    "latent_skills",
    "latent_diffusion",
    "latent_q",
    "diffusion_dynamics",
    "ensemble_dynamics",
    "dynamics_agent",
]


@pytest.mark.parametrize("role", ROLES)
def test_two_processes(role, two_processes, tmp_path, monkeypatch, pendulum_file):
    acts = role not in SILENT
    options = ["--rollout.num_episodes=5", "--data.env_kwargs.max_episode_steps=60"]
    if role == "diffuser":
        options += [
            f"--rollout.acting.value_ckpt={value_checkpoint(tmp_path, pendulum_file)}",
            "--rollout.acting.num_candidates=3",
            "--rollout.acting.value_guidance_scale=10",
        ]
    fit = (
        f"--test_after_fit={acts}",
        "--trainer.max_steps=6",
        "--trainer.val_check_interval=6",
        "--data.batch_size=16",
        "--trainer.callbacks+=two_processes.Probe",
    )
    options += companions(role, tmp_path, pendulum_file)
    two_processes.run(tmp_path, fit_args(pendulum_file, *options, *fit, role=role))

    first, second = read(tmp_path, "fit")
    assert not set(first["draws"]) & set(second["draws"]), "each rank draws noise of its own"
    assert not torch.equal(first["rows"], second["rows"]), "and sees data of its own"
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), f"{key} differs between ranks"

    checkpoint = tmp_path / "runs" / "diffrl" / "version_0" / "checkpoints" / "best.ckpt"
    module = Role.load_from_checkpoint(checkpoint)
    assert type(module).__name__.lower() == role.replace("_", "")
    if not acts:
        return
    first, second = read(tmp_path, "test")
    seeds = [[seed for seed, _ in rank] for rank in (first, second)]
    assert seeds == [[0, 2, 4], [1, 3]], "no episode is counted twice"

    # One process, on the checkpoint that the two wrote.
    together = json.loads((checkpoint.parents[1] / "results.json").read_text())
    monkeypatch.chdir(tmp_path)
    path = "--rollout.results_path=alone.json"
    test = ["test", *fit_args(pendulum_file, *options, path, role=role)[1:]]
    main([*test, f"--ckpt_path={checkpoint}"])
    alone = json.loads((tmp_path / "alone.json").read_text())
    for key in ("return_mean", "return_sem", "episode_length", "num_episodes"):
        assert together[key] == pytest.approx(alone[key], rel=1e-4), key
    everyone = dict(first + second)
    assert together["return_mean"] == pytest.approx(sum(everyone.values()) / 5, rel=1e-6)
