"""The runs of a benchmark: what each needs, does and leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

LAST = Path("checkpoints", "last.ckpt")  # within a training's folder
Kind = Literal["prepare", "train", "choose", "test"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run in a process of its own; nothing but JSON, so that it can be sent anywhere.

    Args:
        kind: ``prepare`` a dataset, ``train`` a model, ``choose`` how it acts, or ``test`` it.
        name: of the run, which no other has.
        result: the file that it leaves behind when it is done.
        log: what it prints.
        needs: names of the runs that come before it.
        alike: what runs of the same cost have in common.
        minutes: that it may take.
        threads: that it runs on.
        num_gpus: that it is given by Ray.
        spec: all that the run is told.
    """

    kind: Kind
    name: str
    result: str
    log: str
    needs: tuple[str, ...] = ()
    alike: str = ""
    minutes: float = 0.0
    threads: int = 1
    num_gpus: float = 0.0
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return Path(self.result).is_file()

    @property
    def begun(self) -> bool:
        """Whether it is a training with a checkpoint to go on from."""
        return self.kind == "train" and (Path(self.spec["folder"]) / LAST).is_file()

    def to_json(self) -> str:
        """Itself, in one line."""
        return json.dumps(asdict(self))


def still_to_do(jobs: Mapping[str, Job]) -> list[Job]:
    """Runs that are missing and that a missing test needs: models of finished tests may be gone."""
    wanted: set[str] = set()
    for name, job in reversed(list(jobs.items())):
        if (job.kind == "test" or name in wanted) and not job.done:
            wanted |= {name, *job.needs}
    return [job for name, job in jobs.items() if name in wanted and not job.done]
