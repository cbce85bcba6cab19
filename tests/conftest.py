"""Shared fixtures: small datasets made on the spot, and where the real ones are found."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at import
torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real data is not here")
    return SHARED_DATA


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """The same noise whatever ran before, in fixtures too."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Keep datasets and caches of the tests out of the user's folders, and share them."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(base / "minari"))
    monkeypatch.setenv("DIFFRL_CACHE", str(base / "cache"))


def write_d4rl(path, *, episodes=10, length=100, observation_dim=3, action_dim=1, seed=0, **extra):
    """A file in D4RL's layout: smooth random walks; ``extra`` replaces or (None) drops arrays."""
    rng = np.random.default_rng(seed)
    n = episodes * length
    walks = rng.normal(size=(episodes, length, observation_dim)).cumsum(1) / 10
    timeouts = np.zeros(n, bool)
    timeouts[length - 1 :: length] = True
    arrays = {
        "observations": walks.reshape(n, observation_dim).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": timeouts,
    } | extra
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
        if observation_dim == 3:
            file["metadata/env_id"] = "Pendulum-v1"
    return path


def concatenate(parts):
    """Sets of episodes as those of a list of datasets."""
    from diffrl_lightning.data.sources.outline import Outline, gather

    return gather([Outline.of(lambda part=part: part) for part in parts])


@pytest.fixture(scope="session")
def pendulum_file(tmp_path_factory):
    """Episodes with the dimensions of Pendulum-v1."""
    return write_d4rl(tmp_path_factory.mktemp("data") / "pendulum.hdf5")
