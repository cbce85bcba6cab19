"""Versions of packages and the name of the device, which results tell."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

_OF_RESULTS = ("diffrl_lightning", "torch", "lightning", "gymnasium", "mujoco", "numpy")


def versions(*packages: str) -> dict[str, str]:
    """Of each package; one that runs from its folder alone has no version, and says so."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def run_versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | versions(*_OF_RESULTS)


def device_name(device: torch.device) -> str:
    """The accelerator, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):  # Linux alone
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def revision() -> str | None:
    """The commit that the package is run from, with ``+`` where files differ from it, if any."""
    here = Path(__file__).parent
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(here), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", ".."],
            )
        )
    except (OSError, subprocess.CalledProcessError):  # installed, or no git
        return None
    return head + "+" * bool(changed)
