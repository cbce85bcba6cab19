"""Datasets that do not name their environment, and the arguments of every tool."""

import json
from importlib import import_module

import h5py
import pytest
from conftest import write_d4rl
from jsonargparse import ArgumentParser
from modules.role_tester import ready, saved

from diffrl_lightning import (
    ChunkData,
    DiffusedValue,
    Diffuser,
    EnsembleDynamics,
    FutureData,
    InputError,
    LatentSkills,
    RelativeReward,
    SequenceData,
)
from diffrl_lightning.tools.compare import compare
from diffrl_lightning.tools.controls import controls
from diffrl_lightning.tools.dynamics_error import dynamics_error
from diffrl_lightning.tools.quality import quality
from diffrl_lightning.tools.relabel import relabel
from diffrl_lightning.tools.skill_error import skill_error
from diffrl_lightning.tools.value_ranks import value_ranks

ENV = {"env_id": "InvertedPendulum-v5", "env_kwargs": {"max_episode_steps": 5}}
SIZE = {"horizon": 8, "num_train_timesteps": 8, "dim": 16}


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """A file with the dimensions of InvertedPendulum-v5, which does not name it."""
    return str(write_d4rl(tmp_path_factory.mktemp("unnamed") / "data.hdf5", observation_dim=4))


def checkpoint(module, data, folder):
    module.fit_normalizers(ready(data))
    return saved(module, folder / "model.ckpt")


def test_compare(tmp_path, unnamed):
    path = checkpoint(
        Diffuser(4, 1, **SIZE, dim_mults=(1, 2)), SequenceData(unnamed, horizon=8), tmp_path
    )
    rows, output = tmp_path / "rows.yaml", str(tmp_path / "table")
    rows.write_text("plain: {num_inference_steps: 2}")
    with pytest.raises(InputError, match="does not name its environment: give env_id"):
        compare(str(rows), path, unnamed, output=output)
    compare(str(rows), path, unnamed, num_episodes=2, output=output, **ENV)
    returns = json.loads((tmp_path / "table.json").read_text())["rows"]["plain"]["returns"]
    assert all(0 < episode_return <= 5 for episode_return in returns)


def test_quality(tmp_path, unnamed):
    kwargs = {"num_neighbours": 10, "output": str(tmp_path / "report")}
    with pytest.raises(InputError, match="give env_id"):
        quality(unnamed, unnamed, **kwargs)
    found = quality(unnamed, unnamed, num_simulated=50, **kwargs, **ENV)
    assert found["synthetic"]["simulated"] == 50


def test_relabel(tmp_path, unnamed):
    reward = RelativeReward(4, 1, **SIZE, window=2, objective="discriminator", num_origins=2)
    path = checkpoint(reward, SequenceData(unnamed, horizon=8), tmp_path)
    relabel(unnamed, path, str(tmp_path / "new.hdf5"), **ENV)
    with h5py.File(tmp_path / "new.hdf5") as file:
        assert file["metadata/env_id"][()] == ENV["env_id"].encode()


def test_controls(tmp_path, capsys):
    file = write_d4rl(tmp_path / "maze.hdf5", observation_dim=4, action_dim=2)
    controls(str(file), num_episodes=2, env_id="PointMaze_UMaze-v3")
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert table[0][0] == "| control"
    names = ["| planner", "| random", "| straight line"]
    assert [row[0] for row in table[2:]] == names
    assert float(table[2][1]) > float(table[3][1])
    with pytest.raises(InputError, match="no maze"):
        controls(str(write_d4rl(tmp_path / "other.hdf5", observation_dim=4)), **ENV)


def test_dynamics_error(tmp_path, unnamed):
    model = EnsembleDynamics(4, 1, num_members=2, hidden_dim=8, num_layers=1)
    path = checkpoint(model, ChunkData(unnamed), tmp_path)
    options = {"horizons": [1, 10], "output": str(tmp_path / "errors")}
    found = dynamics_error(unnamed, {"ensemble": path}, val_fraction=0.3, **options, **ENV)
    assert found["ensemble"]["mean"][0] > 0


def test_skill_error(tmp_path, unnamed):
    skills = LatentSkills(4, 1, horizon=6, hidden_dim=8, num_layers=1)
    path = checkpoint(skills, ChunkData(unnamed, horizon=6), tmp_path)
    options = {"num_chunks": 5, "output": str(tmp_path / "errors")}
    with pytest.raises(InputError, match="give env_id"):
        skill_error(unnamed, path, **options)
    found = skill_error(unnamed, path, seed=1, **options, **ENV)
    assert len(found["skill"]["mean"]) == 4


def test_value_ranks(tmp_path, unnamed):
    sizes = {"hidden_dim": 8, "num_blocks": 1, "embed_dim": 8, "num_train_timesteps": 4}
    path = checkpoint(DiffusedValue(4, 1, **sizes), FutureData(unnamed), tmp_path)
    options = {"num_states": 20, "num_samples": 2, "regression_steps": 2, "val_fraction": 0.2}
    found = value_ranks(unnamed, path, output=str(tmp_path / "ranks"), **options, **ENV)
    assert found["V"]["num_episodes"] == 2


SOURCE = {"env_id", "env_kwargs", "observation_keys", "goal_key"}
HELD_OUT = SOURCE | {"val_fraction", "join_episodes", "seed", "noise_seed"}


@pytest.mark.parametrize(
    ("name", "expected", "hidden"),
    [
        ("compare", SOURCE, {"source", "options", "kind", "val_fraction"}),
        ("quality", SOURCE, {"source", "options", "kind", "val_fraction"}),
        ("relabel", SOURCE, {"source", "options", "kind", "val_fraction", "horizon"}),
        ("controls", SOURCE, {"source", "options", "kind", "val_fraction"}),
        ("generate", {"env_id", "num_steps"}, set()),
        ("imagination_error", {"env_id", "env_kwargs"}, set()),
        ("dynamics_error", HELD_OUT, {"data", "horizon"}),
        ("skill_error", HELD_OUT - {"noise_seed"}, {"data", "horizon"}),
        ("value_ranks", HELD_OUT, {"data", "discount"}),
    ],
)
def test_help(name, expected, hidden):
    """Every argument of a tool, those that it hands on too, has a type and an explanation."""
    parser = ArgumentParser()
    tool = getattr(import_module(f"diffrl_lightning.tools.{name}"), name)
    parser.add_function_arguments(tool, fail_untyped=True)
    described = {action.dest: action.help for action in parser._actions}
    assert expected <= described.keys()
    assert not hidden & described.keys()
    assert all(described.values())
