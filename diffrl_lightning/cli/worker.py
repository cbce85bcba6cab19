"""``python -m diffrl_lightning.cli.worker``: one run of a benchmark, told on its standard input."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from diffrl_lightning.cli import exit_on_bad_input, main


def work() -> None:
    """Do a run, unless it is done.

    The first line of the standard input is the run; its end means that nobody waits for the run any
    more, which then stops as it does at SIGTERM, and can be resumed.
    """
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with exit_on_bad_input("diffrl benchmark"), _alone(told["log"]):
        from diffrl_lightning.tools.benchmarks import runs
        from diffrl_lightning.tools.benchmarks.jobs import Job

        job = Job(**told)
        if job.done:  # by a run that the lock waited for
            return
        if job.kind == "train":
            main(runs.fit_args(job))
        else:
            {"prepare": runs.prepare, "choose": runs.choose, "test": runs.test}[job.kind](job)


def _stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _alone(log: str) -> Iterator[None]:
    """Wait until no other process is at this run, such as one whose parent was killed."""
    with open(log, "a", encoding="utf-8") as file:
        with suppress(ImportError):  # of Unix alone
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    work()
