"""What a dataset costs in memory, measured in a process of its own."""

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
