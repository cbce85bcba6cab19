"""Runs the command line as a user would."""

import os
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
CONFIG = CONFIGS / "diffuser.yaml"


def diffrl_command(*args):
    return [sys.executable, "-m", "diffrl_lightning", *map(str, args)]


def diffrl(*args, cwd, check=True, timeout=240):
    """Run ``diffrl`` in a process of its own, in a folder of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        diffrl_command(*args), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
    return result


def fit_args(dataset, *more, role="diffuser"):
    return ["fit", "-c", str(CONFIGS / f"{role}.yaml"), f"--data.dataset={dataset}", *more]
