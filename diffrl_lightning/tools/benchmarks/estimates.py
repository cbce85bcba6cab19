"""How long runs may take, by those that have ended."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from diffrl_lightning.tools.benchmarks.jobs import Job


def estimate(jobs: Mapping[str, Job]) -> dict[str, float]:
    """Minutes of each run: the mean of those alike that are done, else what is said of it."""
    known: dict[str, list[float]] = defaultdict(list)
    for job in jobs.values():
        if job.done and (seconds := _seconds(Path(job.result))) is not None:
            known[job.alike].append(seconds / 60)
    return {
        name: sum(known[job.alike]) / len(known[job.alike]) if known[job.alike] else job.minutes
        for name, job in jobs.items()
    }


def _seconds(result: Path) -> float | None:
    """What a run took, by its own result."""
    record = json.loads(result.read_text("utf-8"))
    if "test_seconds" in record:
        return record["test_seconds"]["wall"]
    return record.get("wall_seconds")
