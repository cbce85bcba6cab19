"""A grid of methods, datasets and training seeds: trains, chooses, tests, and resumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.tools.benchmarks.engines import Engine, LocalEngine, RayEngine
from diffrl_lightning.tools.benchmarks.estimates import estimate
from diffrl_lightning.tools.benchmarks.grid import read_grid
from diffrl_lightning.tools.benchmarks.jobs import Job, still_to_do
from diffrl_lightning.tools.benchmarks.plan import make_jobs
from diffrl_lightning.types import RunError


def benchmark(
    grid: str,
    *,
    output: str = "results",
    data_dir: str = ".",
    only: list[str] | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> None:
    """Train and test every row of a grid on every dataset with every training seed.

    Runs that are done are skipped, those that were stopped go on from their last checkpoint, bit for
    bit, and one that fails leaves the others whole. How a row acts is chosen on development episodes,
    and its test episodes are run once. Each test writes one JSON under
    ``<output>/<grid>/<dataset>/<row>/``, which ``diffrl report`` reads.

    Args:
        grid: a YAML file, or a shipped one (``benchmarks/smoke``).
        output: folder of all results; this grid's are in one of its name.
        data_dir: folder of datasets that are files.
        only: names of rows and datasets to run; default all.
        engine: ``local`` runs processes of this machine; ``ray`` tasks of Ray (extra ``[ray]``), on
            one or many machines that share their folders.
        workers: runs at once; default as many as there are cores for.
        address: of a Ray cluster, ``auto`` for the one that this machine is part of; default a
            cluster of this machine alone.
        dry_run: print the runs and how long they may take, and run none.
    """
    check_ranges(locals())
    read = read_grid(grid)
    folder = Path(output) / read.name
    jobs = make_jobs(read, folder, data_dir, only)
    minutes = estimate(jobs)
    workers = workers or max(1, len(_cores()) // read.grid.threads)
    if dry_run:
        _print_plan(jobs, minutes, workers)
        return
    runner: Engine = LocalEngine(workers) if engine == "local" else RayEngine(address, workers)
    with closing(runner):
        failed = _run_all(jobs, minutes, runner)
    if failed:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in failed.items())
        raise RunError(
            f"{len(failed)} of {len(jobs)} runs failed ({reasons}); the others are whole. Logs are in "
            f"{str(folder / 'logs')!r}; the same command tries again what is missing."
        )
    tqdm.write(f"All {len(jobs)} runs are done; the table: diffrl report {folder}")


def _run_all(
    jobs: Mapping[str, Job], minutes: Mapping[str, float], engine: Engine
) -> dict[str, str]:
    """Run what is missing, each after what it needs; returns why runs failed, by name."""
    waiting = still_to_do(jobs)
    done = jobs.keys() - {job.name for job in waiting}
    running: dict[Future[str], Job] = {}
    failed: dict[str, str] = {}
    total = sum(minutes[job.name] for job in waiting)
    bar = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=total, bar_format=bar, desc=f"{len(done)} of {len(jobs)} runs") as progress:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            room = None if engine.room is None else engine.room - len(running)
            for job in ready[:room]:
                running[engine.submit(job)] = job
                waiting.remove(job)
            if not running:
                break
            for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                reason = _result(future)
                if reason:
                    failed[job.name] = reason
                    tqdm.write(f"Failed: {job.name}: {reason}")
                else:
                    done.add(job.name)
                progress.update(minutes[job.name])
                progress.set_description(f"{len(done)} of {len(jobs)} runs")
            if sys.stderr.isatty():  # time goes by; a file is told of ends alone
                progress.refresh()
    lost = {job.name: "what it needs failed" for job in waiting}
    return failed | lost


def _result(future: Future[str]) -> str:
    try:
        return future.result()
    except Exception as error:  # of Ray, where a machine is lost for good
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _print_plan(jobs: Mapping[str, Job], minutes: Mapping[str, float], workers: int) -> None:
    missing = still_to_do(jobs)
    left = {job.name for job in missing}
    for job in jobs.values():
        state = "done" if job.name not in left else "to resume" if job.begun else "to run"
        print(f"{state:9s} {minutes[job.name]:6.1f} min  {job.name}")
    hours = sum(minutes[job.name] for job in missing) / 60
    print(
        f"{len(missing)} of {len(jobs)} runs to do, about {hours:.1f} hours of one run at a time, "
        f"{hours / workers:.1f} with {workers} at once."
    )


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
