"""The command line: fit, test, reload, and one clear sentence for each bad input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import write_d4rl
from helpers import ACTING, CONFIGS, ROLES, TINY, companions, diffrl, fit_args
from modules.role_tester import saved

from diffrl_lightning import DiffusedValue, Diffuser, Role, TrajectoryValue
from diffrl_lightning.cli import main

CHECKPOINTS = Path("runs/diffrl/version_0/checkpoints")
SHORT = ("--data.env_kwargs.max_episode_steps=40", "--rollout.num_episodes=2")
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--test_after_fit=true")
KEYS = {"return_mean", "return_sem", "decision_ms", "num_episodes", "seeds", "versions"}


def guided_by(value):
    options = {"value_ckpt": value, "num_candidates": 2, "value_guidance_scale": 0.5}
    return [f"--rollout.acting.{name}={option}" for name, option in options.items()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, pendulum_file):
    """A finished fit, with its test."""
    folder = tmp_path_factory.mktemp("run")
    diffrl(*fit_args(pendulum_file, "--test_after_fit=true"), cwd=folder)
    return folder / "runs" / "diffrl" / "version_0"


def test_fit_writes_everything(run):
    assert {"results.json", "config.yaml", "hparams.yaml"} <= {p.name for p in run.iterdir()}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    results = json.loads((run / "results.json").read_text())
    assert results.keys() >= KEYS
    assert results["checkpoint"].endswith("best.ckpt")
    assert results["env_id"] == "Pendulum-v1"
    assert results["return_mean"] < 0


def test_test_command_repeats_the_figures(run, tmp_path, monkeypatch, pendulum_file):
    monkeypatch.chdir(tmp_path)
    checkpoint = run / "checkpoints" / "best.ckpt"
    args = ("test", *fit_args(pendulum_file)[1:], f"--ckpt_path={checkpoint}")
    main([*args, "--rollout.results_path=again.json"])
    expected = json.loads((run / "results.json").read_text())
    found = json.loads((tmp_path / "again.json").read_text())
    assert found["return_mean"] == expected["return_mean"]
    assert found["seeds"] == [0, 3]


def test_a_run_goes_by_its_name(run, tmp_path, monkeypatch, pendulum_file):
    """That of the logger too, unless it has its own; a saved configuration takes another."""
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_steps=1", "--rollout.val_episodes=0")
    main(["fit", "-c", str(run / "config.yaml"), "--name=anew", "--test_after_fit=false", *short])
    assert (tmp_path / "runs" / "anew" / "version_0" / "config.yaml").is_file()
    csv = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: tables}}"
    main(fit_args(pendulum_file, csv, "--name=mine", *short))
    assert (tmp_path / "tables" / "mine" / "version_0").is_dir()
    main(fit_args(pendulum_file, csv, "--trainer.logger.name=own", "--name=mine", *short))
    assert (tmp_path / "tables" / "own" / "version_0").is_dir()


def test_a_checkpoint_alone_acts(run):
    module = Role.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert type(module).__name__ == "Diffuser"
    action = module.make_policy(execute="actions").act(torch.zeros(2, 3))
    assert action.shape == (2, 1)


@pytest.fixture(scope="module")
def value(tmp_path_factory, pendulum_file):
    """The checkpoint of a value for the Diffuser of ``run``."""
    folder = tmp_path_factory.mktemp("value")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(fit_args(pendulum_file, "--model.normalizer=limits", role="trajectory_value"))
    return folder / CHECKPOINTS / "best.ckpt"


def test_a_value_goes_round(value):
    module = Role.load_from_checkpoint(value)
    assert isinstance(module, TrajectoryValue)
    assert module.value(torch.zeros(2, 8, 4), torch.tensor([-1, 7])).shape == (2,)


@pytest.mark.parametrize("name", ["diffused_value", "relative_reward"])
def test_judges_go_round(name, tmp_path, monkeypatch, pendulum_file):
    """Fit, go on from the last step, and judge by the checkpoint alone."""
    monkeypatch.chdir(tmp_path)
    args = fit_args(pendulum_file, *companions(name, tmp_path, pendulum_file), role=name)
    main(args)
    elsewhere = tmp_path / "elsewhere"  # what it learns from has moved
    elsewhere.mkdir()
    for file in tmp_path.glob("*.ckpt"):
        file.rename(elsewhere / file.name)
    args = [a.replace(f"{tmp_path}/", f"{elsewhere}/") if "_ckpt=" in a else a for a in args]
    main([*args, "--trainer.max_steps=45", f"--ckpt_path={CHECKPOINTS / 'last.ckpt'}"])
    for file in elsewhere.glob("*.ckpt"):
        file.unlink()  # and is needed no more
    module = Role.load_from_checkpoint(CHECKPOINTS / "best.ckpt")
    assert isinstance(module, ROLES[name])
    if isinstance(module, DiffusedValue):
        values, errors = module.values(torch.zeros(2, 3), torch.zeros(2, 1))
        assert values.shape == errors.shape == (2,)
        assert (errors > 0).all()
    else:
        assert module.value(torch.zeros(2, 8, 4), torch.tensor([-1, 7])).shape == (2,)


def test_the_acting_that_is_given_is_checked(tmp_path, monkeypatch, capsys, pendulum_file):
    """Before any training: that of another role, and one that does not fit this model."""
    monkeypatch.chdir(tmp_path)
    for option, message in (
        ("--rollout.acting=QActing", "QActing is not how Diffuser acts: it acts by PlanActing"),
        ("--rollout.acting.execute=states", "states"),
    ):
        options = ("--test_after_fit=true", "--rollout.val_episodes=0", option)
        assert message in fail(*fit_args(pendulum_file, *options), capsys=capsys)
    assert not list(tmp_path.rglob("*.ckpt")), "nothing was trained"


@pytest.mark.parametrize("test_after_fit", [True, False])
def test_a_value_is_not_rolled_out(
    test_after_fit, value, tmp_path, monkeypatch, capsys, pendulum_file
):
    monkeypatch.chdir(tmp_path)
    args = fit_args(pendulum_file, f"--test_after_fit={test_after_fit}", role="trajectory_value")
    if not test_after_fit:
        args = ["test", *args[1:], f"--ckpt_path={value}", "--model.normalizer=limits"]
    assert "TrajectoryValue does not act: roll out a role that does." in fail(*args, capsys=capsys)
    assert not list(tmp_path.rglob("*.ckpt")), "nothing was trained"


@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_value_guides_from_the_command_line(
    inference_mode, run, value, tmp_path, monkeypatch, pendulum_file
):
    monkeypatch.chdir(tmp_path)
    args = fit_args(pendulum_file, *SHORT, *guided_by(value), "--rollout.results_path=guided.json")
    checkpoint = run / "checkpoints" / "best.ckpt"
    main(["test", *args[1:], f"--ckpt_path={checkpoint}", f"--trainer.{inference_mode=}"])
    results = json.loads((tmp_path / "guided.json").read_text())
    assert results["acting"]["value_ckpt"] == str(value)
    assert results["return_mean"] < 0


@pytest.mark.parametrize("name", [name for name in ACTING if name != "diffuser"])
def test_roles_go_round(name, tmp_path, monkeypatch, pendulum_file):
    """Fit, test in the same run, test again by the checkpoint, act by the checkpoint alone.

    What a role was built on is needed for its training alone.
    """
    monkeypatch.chdir(tmp_path)
    args = fit_args(pendulum_file, *SHORT, *companions(name, tmp_path, pendulum_file), role=name)
    main([*args, "--test_after_fit=true"])
    checkpoint = tmp_path / CHECKPOINTS / "best.ckpt"
    expected = json.loads((checkpoint.parents[1] / "results.json").read_text())
    assert expected["role"] == ROLES[name].__name__
    for file in tmp_path.glob("*.ckpt"):
        file.unlink()
    main(["test", *args[1:], f"--ckpt_path={checkpoint}", "--rollout.results_path=again.json"])
    found = json.loads((tmp_path / "again.json").read_text())
    assert found["return_mean"] == expected["return_mean"]
    steps = torch.load(checkpoint, weights_only=True)["global_step"]
    assert found["global_step"] == expected["global_step"] == steps > 0
    module = Role.load_from_checkpoint(checkpoint)
    assert isinstance(module, ROLES[name])
    assert module.make_policy().act(torch.zeros(2, 3)).shape == (2, 1)


def test_an_agent_acts_while_it_learns(tmp_path, monkeypatch):
    """Online, from the command line; interrupted, it goes on; its test needs no replay."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((CONFIGS / "dynamics_agent.yaml").read_text())
    growing = {"horizon": 5, "num_envs": 2, "prefill_steps": 50, "batch_size": 16}
    growing |= {"env_id": "InvertedPendulum-v5", "batches_per_epoch": 20}
    config["data"] = {"class_path": "OnlineData", "init_args": growing}
    config["trainer"] = {"callbacks": [{"class_path": "Collect"}]}
    (tmp_path / "online.yaml").write_text(yaml.safe_dump(config))
    options = ("--rollout.num_episodes=3", "--data.env_kwargs.max_episode_steps=40")
    options = ("-c", TINY, "-c", "online.yaml", *options)
    main(["fit", *options, "--test_after_fit=true"])
    results = json.loads((tmp_path / CHECKPOINTS.parent / "results.json").read_text())
    assert results["env_id"] == "InvertedPendulum-v5"
    last = CHECKPOINTS / "last.ckpt"
    main(["fit", *options, "--trainer.max_steps=45", f"--ckpt_path={last}"])
    main(["test", *options, f"--ckpt_path={last}"])
    last = Path("runs/diffrl/version_1/checkpoints/last.ckpt")
    state = torch.load(last, weights_only=True)["OnlineData"]
    assert state["buffer"]["added"] == 25 + 45 // 2


def test_skills_from_the_command_line(tmp_path, monkeypatch, capsys, pendulum_file):
    """A list of datasets, weights of its skills, and then one of them alone."""
    monkeypatch.chdir(tmp_path)
    datasets = [str(pendulum_file), str(write_d4rl(tmp_path / "other.hdf5", seed=1))]
    skills = "--rollout.acting.skills={0: 1.5, 1: -0.5}"
    options = ("--model.conditions=[return,skill]", skills)
    main(fit_args(datasets, *SHORT, *TWO_STEPS, *options, role="decision_diffuser"))
    results = json.loads((tmp_path / CHECKPOINTS.parent / "results.json").read_text())
    assert results["acting"]["skills"] == {"0": 1.5, "1": -0.5}
    args = fit_args(pendulum_file, *SHORT, role="decision_diffuser")
    said = fail("test", *args[1:], f"--ckpt_path={CHECKPOINTS / 'last.ckpt'}", capsys=capsys)
    assert "was trained with num_origins=2, the data have 1" in said


DRAWING = ["diffuser", "decision_diffuser", "diffusion_policy", "diffusion_ql", "idql"]


@pytest.mark.parametrize("role", DRAWING)
def test_mixed_precision(role, value, tmp_path, monkeypatch, pendulum_file):
    """Trains, clips and acts; the weights stay as they are kept."""
    monkeypatch.chdir(tmp_path)
    options = [*SHORT, *TWO_STEPS, "--trainer.precision=bf16-mixed"]
    options += guided_by(value) if role == "diffuser" else []
    main(fit_args(pendulum_file, *options, "--trainer.gradient_clip_val=1", role=role))
    results = json.loads((tmp_path / CHECKPOINTS.parent / "results.json").read_text())
    assert results["return_mean"] < 0
    state = torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)["state_dict"]
    weights = {value.dtype for key, value in state.items() if key.startswith("denoiser.")}
    assert weights == {torch.float32}


@pytest.mark.parametrize("role", DRAWING)
def test_low_precision(role, value, tmp_path, monkeypatch, pendulum_file):
    """Acts from a checkpoint in bfloat16."""
    monkeypatch.chdir(tmp_path)
    args = fit_args(pendulum_file, *SHORT, *TWO_STEPS[:2], role=role)
    low = ("--trainer.precision=bf16-true", "--rollout.val_episodes=0")
    main([*args, "--rollout.val_episodes=0"])
    test = ["test", *args[1:], *low, f"--ckpt_path={CHECKPOINTS / 'last.ckpt'}"]
    test += guided_by(value) if role == "diffuser" else []
    main([*test, "--rollout.results_path=low.json"])
    assert json.loads((tmp_path / "low.json").read_text())["return_mean"] < 0


def fail(*args, capsys):
    """Run in this process, and return what it said."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    assert end.value.code not in (0, None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def nan_file(folder):
    rewards = np.zeros(1000, np.float32)
    rewards[3] = np.inf
    return write_d4rl(folder / "nan.hdf5", rewards=rewards)


def not_hdf5(folder):
    (folder / "text.hdf5").write_text("text")
    return folder / "text.hdf5"


def pickled(folder):
    np.savez(
        folder / "evil.npz",
        observations=np.zeros((4, 3)),
        actions=np.array([{}] * 4, dtype=object),
        terminals=np.ones(4),
    )
    return folder / "evil.npz"


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (lambda f: "who/knows-v0", [], "can not be downloaded"),
        (nan_file, [], "rewards hold NaN or infinite values in 1 rows"),
        (lambda f: write_d4rl(f / "a.hdf5", actions=np.zeros((5, 1))), [], "unequal lengths"),
        (lambda f: write_d4rl(f / "a.hdf5", terminals=None), [], "no array 'terminals'"),
        (not_hdf5, [], "not a readable HDF5 file"),
        (pickled, [], "pickled objects"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.env_id=Hopper-v5"], "do not match"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.horizon=128"], "longest episode has 100"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.horizon=7"], "use 6 or 8"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--model.width=3"], "width"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--rollout.acting.speed=3"], "PlanActing has no 'speed'"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--rollout.acting.num_inference_steps=99"],
         "between 1 and the 8"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--ckpt_path=nowhere.ckpt"], "no checkpoint"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.env_kwargs.foo=1"], "can not be made"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.env_id=foo:Bar-v0"], "can not be made"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.ref_scores=[5,5]"], "a lower and a higher"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--data.pad_before=1"], "need padding edge or zero"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--model.lr_schedule=cosine", "--trainer.max_steps=-1",
         "--trainer.max_epochs=-1"], "lr_schedule=cosine needs an end"),
        (lambda f: write_d4rl(f / "a.hdf5"), ["--trainer.precision=bf16-true"],
         "train with precision bf16-mixed"),
        (lambda f: write_d4rl(f / "a.hdf5", observation_dim=5),
         ["--rollout.val_episodes=0", "--test_after_fit=true"], "give env_id"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_sentence(dataset, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = fail(*fit_args(dataset(tmp_path), *options), capsys=capsys)
    assert message in said
    assert said.count("diffrl: error:") + said.count("error: ") >= 1
    assert not list(tmp_path.rglob("*.ckpt")), "nothing was trained"


@pytest.mark.parametrize(
    ("role", "data"),
    [("diffusion_ql", "SequenceData"), ("diffusion_policy", "TransitionData")],
)
def test_data_of_the_wrong_kind(role, data, tmp_path, monkeypatch, capsys, pendulum_file):
    monkeypatch.chdir(tmp_path)
    text = (CONFIGS / f"{role}.yaml").read_text()
    text = re.sub(r"class_path: (Seq|Tran)\w+", f"class_path: {data}", text)
    text = re.sub(r"    (horizon|padding|pad_before|pad_after): .*\n", "", text)
    (tmp_path / "odd.yaml").write_text(text)
    said = fail("fit", "-c", "odd.yaml", f"--data.dataset={pendulum_file}", capsys=capsys)
    assert f"{data} makes a" in said


def test_critics_are_tested_as_they_are_at_the_end(tmp_path, monkeypatch, pendulum_file):
    """Without rollouts in validation no checkpoint is chosen by the critics' loss."""
    monkeypatch.chdir(tmp_path)
    options = ("--rollout.val_episodes=0", "--test_after_fit=true", "--trainer.max_steps=45")
    main(fit_args(pendulum_file, *SHORT, *options, role="td3_bc"))
    results = json.loads((tmp_path / CHECKPOINTS.parent / "results.json").read_text())
    best = torch.load(results["checkpoint"], weights_only=True)
    assert best["global_step"] == 45


def test_fit_without_rollouts_needs_no_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_d4rl(tmp_path / "a.hdf5", observation_dim=5)
    main([*fit_args(path, "--rollout.val_episodes=0")])
    assert (tmp_path / "runs" / "diffrl" / "version_0" / "checkpoints" / "best.ckpt").is_file()


def test_unknown_key_in_yaml(tmp_path, monkeypatch, capsys, pendulum_file):
    monkeypatch.chdir(tmp_path)
    text = (CONFIGS / "diffuser.yaml").read_text().replace("    dim: 8\n", "    dimm: 8\n")
    (tmp_path / "bad.yaml").write_text(text)
    said = fail("fit", "-c", "bad.yaml", f"--data.dataset={pendulum_file}", capsys=capsys)
    assert "Diffuser has no 'dimm': did you mean 'dim'?" in said


def test_bad_checkpoints(run, tmp_path, monkeypatch, capsys, pendulum_file):
    monkeypatch.chdir(tmp_path)
    good = (run / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(good[: len(good) // 2])
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save(checkpoint | {"diffrl_role": "NoSuchRole"}, tmp_path / "role.ckpt")
    torch.save(checkpoint | {"extra": Evil()}, tmp_path / "evil.ckpt")
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    hparams = {k: v for k, v in checkpoint["hyper_parameters"].items() if k[0] != "_"}
    saved(Diffuser(**hparams | {"observation_dim": 5}), tmp_path / "dims.ckpt")
    for name, message in (
        ("tensor.ckpt", "no checkpoint of this library"),
        ("dims.ckpt", "was trained with observation_dim=5, the data have 3"),
        ("cut.ckpt", "is damaged or no checkpoint"),
        ("role.ckpt", "holds NoSuchRole, but the configuration asks for Diffuser"),
        ("evil.ckpt", "pickled objects"),
    ):
        said = fail(*fit_args(pendulum_file, f"--ckpt_path={name}"), capsys=capsys)
        assert message in said
        assert "code ran" not in said
    for name, message in (
        ("cut.ckpt", "damaged"),
        ("role.ckpt", "holds NoSuchRole"),
        ("evil.ckpt", "pickled objects"),
    ):
        with pytest.raises(ValueError, match=message):
            Role.load_from_checkpoint(tmp_path / name)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_fit_that_never_validated_tests_the_model_as_it_is(tmp_path, monkeypatch, pendulum_file):
    monkeypatch.chdir(tmp_path)
    main(fit_args(pendulum_file, "--test_after_fit=true", "--trainer.max_steps=2"))
    results = json.loads((tmp_path / "runs/diffrl/version_0/results.json").read_text())
    assert results["checkpoint"] is None
    assert results["global_step"] == 2
