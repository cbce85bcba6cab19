"""Ranks of values beside those of returns: a value that knows, and what is refused."""

import json

import numpy as np
import pytest
from conftest import write_d4rl
from modules.role_tester import saved

from diffrl_lightning import BehaviourCloning, DiffusedValue, InputError, Role
from diffrl_lightning.modules.futures import FutureSampling
from diffrl_lightning.tools.value_ranks import value_ranks

SMALL = {"hidden_dim": 8, "num_blocks": 1, "embed_dim": 8, "num_train_timesteps": 4}


class Reward:
    """The value of a state is its first entry."""

    discount, sampling = 0.9, FutureSampling

    def sample_futures(self):
        raise NotImplementedError

    def values(self, states, *, how):
        self.seen = states
        return states[:, 0], None


def test_a_value_is_held_against_the_returns(tmp_path, monkeypatch, pendulum_file):
    value = Reward()
    monkeypatch.setattr(Role, "load_from_checkpoint", lambda path: value)
    options = {"val_fraction": 0.3, "output": str(tmp_path / "ranks")}
    found = value_ranks(str(pendulum_file), "x.ckpt", num_states=50, regression_steps=20, **options)
    assert set(found) == {"V", "regression of the return", "reward of the step"}
    assert found["V"]["num_states"] == 50
    assert found["V"]["mean"] == pytest.approx(value.seen[:, 0].mean().item())
    assert found["V"]["sem"] > 0
    assert json.loads((tmp_path / "ranks.json").read_text()) == found
    assert (tmp_path / "ranks.png").stat().st_size > 10_000


def test_correlations_are_spearmans(tmp_path, monkeypatch):
    """Of states that tell the return: one reward a step, more of them the larger the state."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.random(40), 25)
    observations = np.stack([level, rng.normal(size=1000), rng.normal(size=1000)], 1)
    path = write_d4rl(
        tmp_path / "levels.hdf5", observations=observations.astype(np.float32),
        rewards=level.astype(np.float32), timeouts=np.arange(1000) % 25 == 24,
        terminals=np.zeros(1000, bool),
    )  # fmt: skip
    value = Reward()
    monkeypatch.setattr(Role, "load_from_checkpoint", lambda path: value)
    found = value_ranks(
        str(path), "x.ckpt", regression_steps=300, val_fraction=0.5,
        output=str(tmp_path / "ranks"),
    )  # fmt: skip
    assert found["V"]["rank_correlation"] == pytest.approx(1, abs=0.01)
    assert found["regression of the return"]["rank_correlation"] > 0.9
    assert found["reward of the step"]["rank_correlation"] == pytest.approx(1, abs=0.01)


def test_a_checkpoint_is_enough(tmp_path, pendulum_file):
    options = {
        "num_states": 20,
        "num_samples": 2,
        "regression_steps": 2,
        "val_fraction": 0.2,
    }
    path = saved(DiffusedValue(3, 1, **SMALL), tmp_path / "value.ckpt")
    found = value_ranks(str(pendulum_file), path, output=str(tmp_path / "ranks"), **options)
    assert -1 <= found["V"]["rank_correlation"] <= 1
    other = saved(BehaviourCloning(3, 1, hidden_dim=8), tmp_path / "other.ckpt")
    with pytest.raises(
        InputError, match="BehaviourCloning: give the checkpoint of a DiffusedValue"
    ):
        value_ranks(str(pendulum_file), other, **options)
    with pytest.raises(InputError, match="No episode is held out"):
        value_ranks(str(pendulum_file), path, **options | {"val_fraction": 0.0})
