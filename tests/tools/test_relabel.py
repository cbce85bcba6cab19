"""Labelling a dataset with a relative reward: what changes, what does not, and what is refused."""

import h5py
import numpy as np
import pytest
import torch
from modules.role_tester import ready, saved

from diffrl_lightning import Diffuser, InputError, RelativeReward, SequenceData
from diffrl_lightning.tools.relabel import relabel

SIZE = {"horizon": 8, "num_train_timesteps": 8, "dim": 16}


@pytest.fixture(scope="module")
def models(pendulum_file):
    """A reward, which has learned nothing, and a Diffuser."""
    found = [
        RelativeReward(3, 1, **SIZE, window=2, objective="discriminator", num_origins=2),
        Diffuser(3, 1, **SIZE, dim_mults=(1, 2)),
    ]
    for model in found:
        model.fit_normalizers(ready(SequenceData(str(pendulum_file), horizon=8)))
    return found


def test_rewards_are_those_of_the_trajectories_that_begin_there(tmp_path, pendulum_file, models):
    output = tmp_path / "labelled.hdf5"
    reward = models[0].eval()
    relabel(str(pendulum_file), saved(reward, tmp_path / "0.ckpt"), str(output), batch_size=77)
    with h5py.File(pendulum_file) as before, h5py.File(output) as after:
        for name in ("observations", "actions", "terminals", "timeouts"):
            np.testing.assert_array_equal(before[name][:], after[name][:])
        states, actions, rewards = (
            torch.from_numpy(after[name][:]) for name in ("observations", "actions", "rewards")
        )
        assert "next_observations" not in after, "none were recorded"
        assert after["metadata/env_id"][()] == b"Pendulum-v1"
    for step in (0, 60, 99, 100, 999):
        last = step - step % 100 + 99
        rows = torch.arange(step, step + 8).clamp(max=last)
        x0 = reward.trajectory.join(actions[rows], states[rows])[None]
        expected = reward.value(x0, torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(rewards[step : step + 1], expected)


def test_refuses(tmp_path, pendulum_file, models):
    paths = [saved(model, tmp_path / f"{i}.ckpt") for i, model in enumerate(models)]
    output = str(tmp_path / "out.hdf5")
    with pytest.raises(InputError, match="end in"):
        relabel(str(pendulum_file), paths[0], str(tmp_path / "out"))
    with pytest.raises(InputError, match="holds a Diffuser"):
        relabel(str(pendulum_file), paths[1], output)
    other = saved(RelativeReward(4, 1, **SIZE), tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="observation_dim=3, the reward 4"):
        relabel(str(pendulum_file), other, output)
    relabel(str(pendulum_file), paths[0], output)
    with pytest.raises(InputError, match="is there already"):
        relabel(str(pendulum_file), paths[0], output)
