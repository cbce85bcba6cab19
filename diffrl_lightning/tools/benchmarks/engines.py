"""Where runs are run: on this machine, or wherever Ray has room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from diffrl_lightning.inputs import InputError
from diffrl_lightning.tools.benchmarks.jobs import Job

_TRIES = 3  # of a run whose process was killed, as the system does where memory ends
_LAST_LINES = 2_000  # characters of a log that tell an error


class Engine(Protocol):
    """Runs jobs side by side.

    Args:
        room: how many are submitted at once, the first of those that wait; None for all.
    """

    room: int | None

    def submit(self, job: Job) -> Future[str]:
        """Start a run when there is room; the result is why it failed, or an empty text."""

    def close(self) -> None:
        """Stop what still runs; it can be resumed."""


class LocalEngine:
    """Processes of this machine.

    Args:
        workers: how many at once.
    """

    def __init__(self, workers: int) -> None:
        self.room: int | None = workers
        self._pool = ThreadPoolExecutor(workers)
        self._running: set[subprocess.Popen[bytes]] = set()

    def submit(self, job: Job) -> Future[str]:
        """As :class:`Engine` says."""
        return self._pool.submit(run, job, self._running)

    def close(self) -> None:
        """As :class:`Engine` says."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            if process.stdin is not None:
                process.stdin.close()  # which the run takes for SIGTERM
        self._pool.shutdown(wait=True)


class RayEngine:
    """Tasks of Ray, on a cluster that is there or on one of this machine alone.

    All of its machines must see the results folder and the datasets at the same paths, and have the
    library installed.

    Args:
        address: of a cluster, ``auto`` for the one that this machine is part of; default a new one.
        workers: of a new cluster, how many runs of one thread at once.
    """

    room: int | None = None  # Ray queues them

    def __init__(self, address: str | None, workers: int) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError("engine ray needs Ray: pip install 'diffrl_lightning[ray]'.") from None
        self._ray: Any = ray
        new = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **new)
        except ConnectionError as error:
            raise InputError(f"There is no Ray cluster at {address!r}: start one.") from error
        self._task: Callable[..., Any] = ray.remote(run)

    def submit(self, job: Job) -> Future[str]:
        """As :class:`Engine` says."""
        asked = {"num_cpus": job.threads, "num_gpus": job.num_gpus, "max_retries": _TRIES}
        return self._task.options(**asked).remote(job).future()  # type: ignore[attr-defined]

    def close(self) -> None:
        """As :class:`Engine` says."""
        self._ray.shutdown()


def run(job: Job, running: set[subprocess.Popen[bytes]] | None = None) -> str:
    """Do a run in a process of its own; started anew where that is killed.

    Args:
        job: the run.
        running: processes that run now; this one is among them while it does.

    Returns:
        Why it failed, or an empty text.
    """
    log = Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(job.threads))
    command = [sys.executable, "-m", "diffrl_lightning.cli.worker"]
    code = 0
    for _ in range(_TRIES):
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | threads,
            )
            if running is not None:
                running.add(process)
            try:
                assert process.stdin is not None
                process.stdin.write(job.to_json().encode() + b"\n")
                process.stdin.flush()
                code = process.wait()
            finally:
                if running is not None:
                    running.discard(process)
        if code >= 0:
            break
    if code == 0 and job.done:
        return ""
    return _reason(log, code)


def _reason(log: Path, code: int) -> str:
    """The last line that a run has printed."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = log.read_text("utf-8", errors="replace")[-_LAST_LINES:].strip().splitlines()
    return (lines[-1] if lines else "").rpartition(": error: ")[2] or f"exit code {code}"
