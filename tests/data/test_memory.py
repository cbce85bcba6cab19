"""What a dataset costs in memory, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_d4rl

MEASURE = """
import gc, sys
from diffrl_lightning.data import SequenceData

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def ready(path):
    data = SequenceData(path, horizon=32)
    data.setup("fit")
    next(iter(data.train_dataloader()))
    return data

small = ready(sys.argv[1])
gc.collect()
before = resident()
data = ready(sys.argv[2])
gc.collect()
episodes = data.episodes
arrays = episodes.observations.nbytes + episodes.actions.nbytes + episodes.rewards.nbytes
print((resident() - before) / arrays)
"""


PEAK = """
import gc, sys
from diffrl_lightning.data import SequenceData

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def ready(paths):
    data = SequenceData(paths, horizon=32)
    data.setup("fit")
    next(iter(data.train_dataloader()))
    return data

ready(sys.argv[1])
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS")
data = ready(sys.argv[2:])
episodes = data.episodes
arrays = episodes.observations.nbytes + episodes.actions.nbytes + episodes.rewards.nbytes
print((status("VmHWM") - before) / arrays)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_dataset_is_in_memory_once(tmp_path):
    small = write_d4rl(tmp_path / "small.hdf5")
    large = write_d4rl(
        tmp_path / "large.hdf5", episodes=400, length=1000, observation_dim=17, action_dim=6
    )
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) <= 1.5


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_a_list_of_datasets_is_never_in_memory_twice(tmp_path):
    """At 5M rows in all the peak is 1.17 times the arrays; here what is fixed counts for more."""
    sizes = {"length": 1000, "observation_dim": 17, "action_dim": 6}
    small = write_d4rl(tmp_path / "small.hdf5", episodes=2)
    parts = [write_d4rl(tmp_path / f"{k}.hdf5", episodes=200, seed=k, **sizes) for k in range(5)]
    command = [sys.executable, "-c", PEAK, *map(str, (small, *parts))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) <= 1.4
