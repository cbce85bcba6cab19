"""Errors of models of dynamics over horizons: a perfect model, one that stays, and what is refused."""

import json

import numpy as np
import pytest
import torch
from conftest import write_d4rl
from modules.role_tester import saved

from diffrl_lightning import (
    BehaviourCloning,
    ChunkData,
    EnsembleDynamics,
    InputError,
    Role,
    SequenceData,
)
from diffrl_lightning.tools.dynamics_error import dynamics_error, held_out
from diffrl_lightning.types import Imagined


def recorded(dataset, horizon):
    data = SequenceData(str(dataset), horizon=horizon)
    data.setup("fit")
    return data.val_data[torch.arange(len(data.val_data))]


def test_errors_are_in_standard_deviations(tmp_path, monkeypatch, pendulum_file):
    """Of a model that knows the future but is off by half a deviation in all dimensions."""
    real = recorded(pendulum_file, 21)
    data = SequenceData(str(pendulum_file))
    data.setup("fit")
    observations, rows = data.training_rows("observations")
    scale = observations[rows].std(0, correction=0)

    class Clairvoyant:
        def predict(self, states, actions, *, off=0.0):
            row = (real["observations"][None, :, 0] == states[:, None]).all(-1).float().argmax(1)
            return Imagined(real["observations"][row] + off * scale, actions, None, None)

    monkeypatch.setattr(Role, "load_from_checkpoint", lambda path: Clairvoyant())
    found = dynamics_error(
        str(pendulum_file),
        {"exact": "a.ckpt", "off": "b.ckpt"},
        sampling={"off": {"off": 0.5}},
        horizons=[5, 1, 20],
        num_windows=40,
        output=str(tmp_path / "errors"),
    )
    assert found["exact"]["horizons"] == [1, 5, 20]
    assert found["exact"]["mean"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found["off"]["mean"] == pytest.approx([0.5] * 3, rel=1e-5)
    stays = found["no change"]["mean"]
    assert 0 < stays[0] < stays[1] < stays[2]
    assert json.loads((tmp_path / "errors.json").read_text()) == found
    assert (tmp_path / "errors.png").stat().st_size > 10_000


def test_a_checkpoint_is_enough(tmp_path, pendulum_file):
    model = EnsembleDynamics(3, 1, num_members=2, hidden_dim=8, num_layers=1)
    path = saved(model, tmp_path / "ensemble.ckpt")
    options = {"horizons": [1, 10], "output": str(tmp_path / "errors")}
    found = dynamics_error(str(pendulum_file), {"ensemble": path}, **options)
    assert found["ensemble"]["ms_a_trajectory"] > 0
    other = saved(BehaviourCloning(3, 1, hidden_dim=8), tmp_path / "other.ckpt")
    with pytest.raises(
        InputError, match="BehaviourCloning: give the checkpoint of a model of dynamics"
    ):
        dynamics_error(str(pendulum_file), {"other": other}, **options)


def test_windows_are_of_the_episodes_that_the_models_did_not_see(tmp_path):
    """Also where some are too short to be looked at, which would change which ones are held out."""
    ends = np.zeros(1000, bool)
    ends[[19, *range(99, 1000, 100)]] = True  # the first episode has 20 steps
    path = write_d4rl(tmp_path / "short.hdf5", timeouts=ends)
    for seed in range(4):
        options = {"seed": seed, "val_fraction": 0.3}
        windows, scale = held_out(ChunkData(str(path), horizon=51, **options), 1000)
        data = ChunkData(str(path), **options)
        data.setup("fit")
        firsts = data.val_data[torch.arange(data.val_data.num_starts)]["observations"][:, 0]
        seen = (windows["observations"][:, :1] == firsts).all(-1).any(1)
        assert seen.all()
        assert windows["mask"].all()
    assert (scale > 0).all()
    with pytest.raises(InputError, match="No held-out episode has 101 steps"):
        held_out(ChunkData(str(path), horizon=101), 10)
