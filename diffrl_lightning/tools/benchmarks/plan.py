"""Which runs a grid needs, with all that each is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from diffrl_lightning.inputs import DEVELOPMENT_SEED, InputError
from diffrl_lightning.tools.benchmarks.grid import (
    TEST_SEED,
    Benchmark,
    Row,
    fill_in,
    find_data,
    slug,
    upstream,
)
from diffrl_lightning.tools.benchmarks.jobs import Job, Kind
from diffrl_lightning.tools.configs import check_yaml, find_config

_MINUTES: dict[str, float] = {"prepare": 0.2, "train": 5.0, "choose": 1.0, "test": 0.5}  # a guess


def make_jobs(
    benchmark: Benchmark, output: str | Path, data_dir: str | Path, only: Sequence[str] | None
) -> dict[str, Job]:
    """All runs of a benchmark by name, in an order in which each follows what it needs.

    The training seed is the outermost loop, so that what was stopped early has complete tables of
    fewer seeds.

    Args:
        benchmark: the grid.
        output: its results folder.
        data_dir: where datasets lie.
        only: rows or datasets, by name; default all.

    Raises:
        InputError: if ``only`` names neither, or a result was made by another definition.
    """
    return _Planner(benchmark, Path(output).resolve(), data_dir, only).jobs()


class _Planner:
    def __init__(
        self,
        benchmark: Benchmark,
        output: Path,
        data_dir: str | Path,
        only: Sequence[str] | None,
    ) -> None:
        self.benchmark, self.output, self.only = benchmark, output, set(only or ())
        unknown = self.only - set(benchmark.rows) - set(benchmark.datasets)
        if unknown:
            names = ", ".join([*benchmark.rows, *benchmark.datasets])
            raise InputError(f"only names {min(unknown)!r}: choose among {names}.")
        wanted = {d for _, d in self._cells()}
        self.data = {
            name: find_data(data.dataset, data_dir)
            for name, data in benchmark.datasets.items()
            if name in wanted
        }
        self._training_definition = cache(self._training_definition)  # type: ignore[method-assign]
        self.shared = {"threads": benchmark.grid.threads, "num_gpus": benchmark.grid.num_gpus}

    def jobs(self) -> dict[str, Job]:
        found: dict[str, Job] = {}
        for dataset in self.data:
            self._add(found, self._prepare(dataset))
        for place, seed in enumerate(self.benchmark.grid.seeds, 1):
            for name, dataset in self._cells():
                row = self.benchmark.rows[name]
                for training in self._trainings(row):
                    self._add(found, self._train(training, dataset, seed))
                if row.choices is not None and place >= self._choose_on:
                    self._add(found, self._choose(name, dataset))
                    for earlier in self.benchmark.grid.seeds[:place]:
                        self._add(found, self._test(name, dataset, earlier))
                elif row.choices is None and (row.training or place == 1):
                    self._add(found, self._test(name, dataset, seed if row.training else 0))
        return found

    def _cells(self) -> list[tuple[str, str]]:
        """Rows and datasets that are asked for."""
        rows = self.only & set(self.benchmark.rows) or set(self.benchmark.rows)
        datasets = self.only & set(self.benchmark.datasets) or set(self.benchmark.datasets)
        return [
            (name, dataset)
            for name, row in self.benchmark.rows.items()
            for dataset in self.benchmark.datasets_of(row)
            if name in rows and dataset in datasets
        ]

    @property
    def _choose_on(self) -> int:
        grid = self.benchmark.grid
        return min(grid.choose_on or len(grid.seeds), len(grid.seeds))

    def _trainings(self, row: Row) -> list[str]:
        """All models that a row needs, the first to train first."""
        if row.training is None:
            return []
        named = [row.training, *self.benchmark.references(row.acting, row.choices)]
        return list(dict.fromkeys(n for name in named for n in upstream(self.benchmark, name)))

    def _add(self, jobs: dict[str, Job], job: Job) -> None:
        jobs.setdefault(job.name, job)

    def _log(self, name: str) -> str:
        return str(self.output / "logs" / f"{slug(name)}.txt")

    def _prepare(self, dataset: str) -> Job:
        name = f"prepare {dataset}"
        spec = {"dataset": self.data[dataset], "source": self._source(dataset)}
        result = self.output / slug(dataset) / "data.json"
        return self._job("prepare", name, result, (), name, spec)

    def _train(self, training: str, dataset: str, seed: int) -> Job:
        folder = self._folder(training, dataset, seed)
        benchmark, of = self.benchmark, self.benchmark.trainings[training]
        args = benchmark.datasets[dataset].args | of.args
        needed = benchmark.references(of.args)
        spec = {
            "folder": str(folder),
            "configs": self._configs(training, dataset),
            "args": fill_in(args, self._words(dataset))
            | {"data.dataset": self.data[dataset], "seed_everything": seed},
            "checkpoint": benchmark.grid.checkpoint,
            "checkpoints": {n: str(self._folder(n, dataset, seed)) for n in needed},
        }
        needs = [f"prepare {dataset}", *(_train_name(n, dataset, seed) for n in needed)]
        name = _train_name(training, dataset, seed)
        alike = f"train {training} on {dataset}"
        job = self._job("train", name, folder / "training.json", needs, alike, spec)
        return job if of.minutes is None else replace(job, minutes=of.minutes)

    def _choose(self, row: str, dataset: str) -> Job:
        grid, of = self.benchmark.grid, self.benchmark.rows[row]
        seeds = grid.seeds[: self._choose_on]
        spec = {
            "row": row,
            "choices": fill_in(of.choices, self._words(dataset)),
            "models": [self._model(of, dataset, seed) for seed in seeds],
            "train_seeds": seeds,
            "first_seed": DEVELOPMENT_SEED,
            "num_episodes": grid.development_episodes,
            "num_envs": grid.num_envs,
            "dataset": self.data[dataset],
        }
        needs = [_train_name(n, dataset, s) for s in seeds for n in self._trainings(of)]
        name = f"choose {row} on {dataset}"
        return self._job("choose", name, self._results(row, dataset, "choice"), needs, name, spec)

    def _test(self, row: str, dataset: str, seed: int) -> Job:
        grid, of = self.benchmark.grid, self.benchmark.rows[row]
        result = self._results(row, dataset, f"seed_{seed}")
        spec = {
            "benchmark": self.benchmark.name,
            "row": row,
            "dataset_name": dataset,
            "dataset": self.data[dataset],
            "data": str(self.output / slug(dataset) / "data.json"),
            "seed": seed,
            "control": of.control,
            "source": self._source(dataset),
            "acting": fill_in(of.acting, self._words(dataset)),
            "choice": str(self._results(row, dataset, "choice")) if of.choices else None,
            "model": None if of.control else self._model(of, dataset, seed),
            "first_seed": TEST_SEED,
            "num_episodes": grid.num_episodes,
            "num_envs": grid.num_envs,
            "uses": str(self.output / "test_uses.jsonl"),
            "definition": self._definition(of, dataset),
        }
        needs = [
            f"prepare {dataset}",
            *(_train_name(n, dataset, seed) for n in self._trainings(of)),
        ]
        if of.choices is not None:
            needs.append(f"choose {row} on {dataset}")
        alike = f"test {row} on {dataset}"
        _check_definition(result, spec["definition"])
        return self._job("test", f"{alike} with seed {seed}", result, needs, alike, spec)

    def _job(
        self,
        kind: Kind,
        name: str,
        result: Path,
        needs: Sequence[str],
        alike: str,
        spec: dict[str, Any],
    ) -> Job:
        return Job(
            kind=kind,
            name=name,
            result=str(result),
            log=self._log(name),
            needs=tuple(needs),
            alike=alike,
            minutes=_MINUTES[kind],
            spec=spec,
            **self.shared,  # type: ignore[arg-type]
        )

    def _results(self, row: str, dataset: str, name: str) -> Path:
        return self.output / slug(dataset) / slug(row) / f"{name}.json"

    def _model(self, row: Row, dataset: str, seed: int) -> dict[str, Any]:
        """Folders of the model of a row, and of the others that it refers to."""
        assert row.training is not None
        trainings = self._trainings(row)
        return {
            "folder": str(self._folder(row.training, dataset, seed)),
            "checkpoints": {n: str(self._folder(n, dataset, seed)) for n in trainings},
            "checkpoint": self.benchmark.grid.checkpoint,
        }

    def _folder(self, training: str, dataset: str, seed: int) -> Path:
        """Of a training: another one for another definition."""
        version = _digest(self._training_definition(training, dataset))[:8]
        return self.output / "runs" / slug(dataset) / f"{slug(training)}-{version}" / f"seed_{seed}"

    def _configs(self, training: str, dataset: str) -> list[str]:
        named = self.benchmark.trainings[training].config
        names = [named] if isinstance(named, str) else named
        return [str(find_config(fill_in(n, self._words(dataset))).resolve()) for n in names]

    def _words(self, dataset: str) -> dict[str, str]:
        return {"env": self.benchmark.datasets[dataset].env}

    def _source(self, dataset: str) -> dict[str, Any]:
        """Arguments of a dataset's environment."""
        args = self.benchmark.datasets[dataset].args
        return {k[5:]: v for k, v in args.items() if k.startswith("data.")}

    def _training_definition(self, training: str, dataset: str) -> dict[str, Any]:
        of = self.benchmark.trainings[training]
        needed = self.benchmark.references(of.args)
        return {
            "configs": [check_yaml(Path(p), repr(p)) for p in self._configs(training, dataset)],
            "args": self.benchmark.datasets[dataset].args | of.args,
            "dataset": self.benchmark.datasets[dataset].dataset,
            "needs": {n: self._training_definition(n, dataset) for n in needed},
            "checkpoint": self.benchmark.grid.checkpoint,
        }

    def _definition(self, row: Row, dataset: str) -> str:
        """Of what a test is a test of: another one must not be judged on the same episodes unseen."""
        trained = [self._training_definition(n, dataset) for n in self._trainings(row)]
        parts = {"trained": trained, "acting": row.acting, "choices": row.choices}
        grid = self.benchmark.grid
        chosen = [grid.development_episodes, grid.choose_on] if row.choices else None
        return _digest(parts | {"episodes": grid.num_episodes, "chosen": chosen})


def _train_name(training: str, dataset: str, seed: int) -> str:
    return f"train {training} on {dataset} with seed {seed}"


def _digest(definition: Any) -> str:
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def _check_definition(result: Path, definition: str) -> None:
    """Refuse to mix results of two definitions of a row.

    Raises:
        InputError: naming the file.
    """
    if not result.is_file():
        return
    if json.loads(result.read_text("utf-8")).get("definition") != definition:
        raise InputError(
            f"{str(result)!r} was tested with another definition of its row: give the row another "
            "name, or another --output, so that test episodes are run once."
        )
