"""Comparing ways to act: a table, a record and a figure from checkpoints alone."""

import json

import pytest
import torch
from modules.role_tester import quiet_trainer

from diffrl_lightning import Diffuser, SequenceData, TrajectoryValue
from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.tools.compare import compare
from diffrl_lightning.types import InputError

ROWS = """
plain: &plain {replan_every: 1, num_inference_steps: 2}
chosen: {<<: *plain, value_ckpt: null, num_candidates: 3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pendulum_file):
    """Checkpoints of two training seeds, and a value's."""
    path = tmp_path_factory.mktemp("compare")
    data = SequenceData(str(pendulum_file), horizon=8)
    shared = {"horizon": 8, "dim": 16, "dim_mults": (1, 2), "num_train_timesteps": 4}
    shared["normalizer"] = "gaussian"
    for name, role in (("0", Diffuser), ("1", Diffuser), ("value", TrajectoryValue)):
        torch.manual_seed(len(list(path.iterdir())))
        trainer = quiet_trainer(path, max_steps=1, limit_val_batches=0)
        trainer.fit(role(3, 1, **shared), datamodule=data)
        trainer.save_checkpoint(path / f"{name}.ckpt")
    (path / "rows.yaml").write_text(ROWS)
    return path


def run(folder, pendulum_file, **kwargs):
    compare(
        str(folder / "rows.yaml"),
        str(folder / "{seed}.ckpt"),
        str(pendulum_file),
        value_ckpt=str(folder / "value.ckpt"),
        train_seeds=[0, 1],
        num_episodes=2,
        env_kwargs={"max_episode_steps": 5},
        output=str(folder / "out" / "table"),
        **kwargs,
    )
    return json.loads((folder / "out" / "table.json").read_text())["rows"]


def test_table_record_and_figure(folder, pendulum_file, capsys):
    results = run(folder, pendulum_file, timing_envs=[1, 3])
    said = capsys.readouterr().out
    assert list(results) == ["plain", "chosen"]
    for name, result in results.items():
        assert len(result["returns"]) == 4, "two episodes of each of two training seeds"
        assert result["return_mean"] == pytest.approx(sum(result["returns"]) / 4)
        assert result["return_mean"] == pytest.approx(sum(result["seed_means"]) / 2)
        a, b = result["seed_means"]
        assert result["return_sem"] == pytest.approx(abs(a - b) / 2), "over training seeds"
        assert result["ms_1"] > 0
        assert result["ms_3"] > 0
        assert f"| {name} | {result['return_mean']:.0f} +- " in said
    assert results["plain"]["returns"] != results["chosen"]["returns"]
    assert (folder / "out" / "table.png").read_bytes().startswith(b"\x89PNG")


def test_share_of_successes_where_the_environment_tells_them(
    folder, pendulum_file, monkeypatch, capsys
):
    assert "success_rate" not in run(folder, pendulum_file, only=["plain"])["plain"]

    def half_of_them(*args, **kwargs):
        evaluation, metrics = roll_out(*args, **kwargs)
        for i, episode in enumerate(evaluation.episodes):
            episode.success = i % 2 == 0
        return evaluation, metrics

    monkeypatch.setattr("diffrl_lightning.tools.compare.roll_out", half_of_them)
    assert run(folder, pendulum_file, only=["plain"])["plain"]["success_rate"] == 0.5
    assert "| success 0.50 |" in capsys.readouterr().out


def test_a_model_that_is_told_no_goal(tmp_path):
    maze = {"dataset": "pointmaze/umaze", "generate_steps": 6000}
    data = SequenceData(**maze, horizon=8, goal_key="none")
    model = Diffuser(4, 2, horizon=8, dim=16, dim_mults=(1, 2), num_train_timesteps=4)
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "rows.yaml").write_text("plain: {execute: states, num_inference_steps: 2}")
    compare(
        str(tmp_path / "rows.yaml"),
        str(tmp_path / "model.ckpt"),
        maze["dataset"],
        num_episodes=1,
        goal_key="none",
        output=str(tmp_path / "table"),
    )
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]["plain"]["returns"]) == 1


def test_development_episodes_choose_and_others_do_not(folder, pendulum_file, capsys):
    results = run(folder, pendulum_file)
    record = json.loads((folder / "out" / "table.json").read_text())
    assert record["first_seed"] == 1_000_000
    assert record["chosen"] == max(results, key=lambda name: results[name]["return_mean"])
    assert f"Chosen on development episodes: {record['chosen']}" in capsys.readouterr().out
    run(folder, pendulum_file, seed=100)
    record = json.loads((folder / "out" / "table.json").read_text())
    assert (record["first_seed"], record["chosen"]) == (100, None)


def test_only_some_rows(folder, pendulum_file):
    assert list(run(folder, pendulum_file, only=["chosen"])) == ["chosen"]
    with pytest.raises(InputError, match="no row other: choose among plain, chosen"):
        run(folder, pendulum_file, only=["other"])


def test_a_row_keeps_a_value_of_its_own(folder, pendulum_file):
    (folder / "own.yaml").write_text("own: {value_ckpt: nowhere.ckpt}")
    with pytest.raises(InputError, match=r"no checkpoint 'nowhere\.ckpt'"):
        compare(
            str(folder / "own.yaml"),
            str(folder / "0.ckpt"),
            str(pendulum_file),
            value_ckpt=str(folder / "value.ckpt"),
        )


def test_rows_that_are_not_there(folder, pendulum_file):
    with pytest.raises(InputError, match="no file"):
        compare(str(folder / "none.yaml"), str(folder / "0.ckpt"), str(pendulum_file))


def test_rows_that_are_no_way_to_act(folder, pendulum_file):
    (folder / "wrong.yaml").write_text("wrong: {n_action_steps: 2}")
    with pytest.raises(
        InputError, match="'n_action_steps' is unknown: Diffuser acts by PlanActing"
    ):
        compare(str(folder / "wrong.yaml"), str(folder / "0.ckpt"), str(pendulum_file))
