"""A small share of ``kills.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")  # a filesystem of its own on Linux


@pytest.mark.slow
def test_what_was_killed_is_whole_and_goes_on(tmp_path):
    tmpdir = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else tmp_path
    script = Path(__file__).with_name("kills.py")
    options = ("--kills=3", "--roles=td3_bc,generate,cache", "--signals=SIGTERM")
    ended = subprocess.run(
        [sys.executable, script, *options, f"--tmpdir={tmpdir}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert "0 wrong" in ended.stdout
