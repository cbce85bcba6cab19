"""A full disk ends training, prediction and generation with one sentence; older files stay whole.

Two ways: a small filesystem in a mount namespace of its own, where that is allowed, and a limit on the
size of a file, which is everywhere.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fit_args
from modules.role_tester import ready, saved

from diffrl_lightning import DataSynthesizer, TransitionData

MOUNT = "mount -t tmpfs -o size={kilobytes}k none {folder} && cd {folder} && "
LIMIT = "trap '' XFSZ; ulimit -S -f {kilobytes}; cd {folder} && "  # in units of 1 kB
WAYS = {"small filesystem": (["unshare", "-rm"], MOUNT), "limit on files": ([], LIMIT)}


@pytest.fixture(params=WAYS)
def disk(request, tmp_path):
    """Runs ``diffrl`` in a folder of so many kB; gives its output, and a copy of what is there then."""
    isolated, before = WAYS[request.param]
    if isolated:
        folder = tmp_path / "probe"
        folder.mkdir()
        probe = [*isolated, "bash", "-c", MOUNT.format(kilobytes=64, folder=folder) + "true"]
        if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
            pytest.skip("no filesystem can be mounted here")

    def run(kilobytes, first, second):
        """The commands ``first`` fit on it; ``second`` does not."""
        folder, out = tmp_path / "disk", tmp_path / "out"
        folder.mkdir()
        command = f"{sys.executable} -m diffrl_lightning"
        steps = [f"{command} {args}" for args in first] + [f"{{ {command} {second}; code=$?; }}"]
        begin = before.format(kilobytes=kilobytes, folder=folder)
        script = (
            f"{begin}{' && '.join(steps)}; echo =====$code; ulimit -S -f unlimited; cp -r . {out}"
        )
        env = os.environ | {"OMP_NUM_THREADS": "1", "MINARI_DATASETS_PATH": str(folder / "minari")}
        ended = subprocess.run(
            [*isolated, "bash", "-c", script], env=env, capture_output=True, text=True, timeout=600
        )
        return ended.stdout, ended.stderr, out

    return run


def check(said, errors):
    """One sentence, and the exit code of what went wrong around the program."""
    assert "Traceback" not in errors, errors[-1500:]
    code = int(re.findall(r"=====(\d+)", said)[-1])
    assert code in (1, 2), (said, errors[-1500:])
    last = errors.strip().splitlines()[-1]
    assert re.fullmatch(r"diffrl(?: [\w-]+)?: error: .+\.", last), errors[-1500:]
    assert re.search("disk|space|large|write|written", last), last


def words(args):
    return " ".join(f"'{a}'" for a in args)


@pytest.mark.slow
def test_checkpoints_on_a_full_disk(disk, pendulum_file):
    """The larger model does not fit beside the checkpoints that are there."""
    short = ("--rollout.val_episodes=0", "--trainer.max_steps=4", "--trainer.val_check_interval=2")
    good = words(fit_args(pendulum_file, *short, "--model.hidden_dim=8", role="td3_bc"))
    bad = words(fit_args(pendulum_file, *short, "--model.hidden_dim=512", role="td3_bc"))
    said, errors, out = disk(2000, [good], bad)
    check(said, errors)
    first = torch.load(
        next(out.glob("runs/diffrl/version_0/checkpoints/last.ckpt")), weights_only=True
    )
    assert first["global_step"] == 4
    for path in out.rglob("*.ckpt"):
        torch.load(path, weights_only=True)  # none is cut off


@pytest.mark.slow
def test_a_prediction_on_a_full_disk(disk, pendulum_file, tmp_path):
    module = DataSynthesizer(3, 1, hidden_dim=16, num_blocks=1, embed_dim=16)
    module.fit_normalizers(ready(TransitionData(str(pendulum_file))))
    path = Path(saved(module, tmp_path / "synthesizer.ckpt"))
    state = torch.load(path, weights_only=True)
    torch.save(state | {"pytorch-lightning_version": "2.6.0"}, path)
    options = (f"--ckpt_path={path}", "--synthesis.output=out.hdf5", "--synthesis.shard_size=2000")
    args = words(["predict", *fit_args(pendulum_file, *options, role="data_synthesizer")[1:]])
    said, errors, out = disk(400, [], f"{args} --synthesis.num_samples=20000")
    check(said, errors)
    assert not (out / "out.hdf5").exists()
    for shard in out.rglob("*.npz"):
        with np.load(shard) as file:
            assert all(np.isfinite(file[name]).all() for name in file)


@pytest.mark.slow
def test_a_generation_on_a_full_disk(disk, tmp_path):
    said, errors, out = disk(200, [], "generate pointmaze/umaze --num_steps=6000")
    check(said, errors)
    assert not list(out.glob("minari/pointmaze/*/data/metadata.json")), "half a dataset"
    assert not list(out.glob("minari/.partial*"))


def test_the_limit_is_felt(tmp_path):
    """So that the tests above can fail."""
    script = LIMIT.format(kilobytes=4, folder=tmp_path) + "head -c 100000 /dev/zero > big"
    assert subprocess.run(["bash", "-c", script], capture_output=True).returncode != 0
    assert (tmp_path / "big").stat().st_size == 4096
