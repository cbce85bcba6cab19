"""Results of benchmarks, read from the JSON of each run or from a summary of many."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from diffrl_lightning.data.sources.scores import check_scores
from diffrl_lightning.inputs import InputError
from diffrl_lightning.tools.benchmarks.statistics import mean_and_error


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row on a dataset with one training seed.

    Args:
        row: of the table.
        dataset: its column.
        seed: of the training.
        returns: of the test episodes, each.
        successes: of each, where the environment tells.
        mean: return of the episodes, where an older record has no more than that.
        wall_free_rate: share of plans that cross no wall.
        ref_scores: random and expert return, for the normalised score.
        train_seconds: of processor time of all trainings that the row needs.
        curve: of each validation the step, seconds, and what it logged.
        chosen: which of the ways to act development episodes chose.
        test_use: how often these test episodes were run for this row.
        data: the dataset's name and digest.
        revision: of the library.
        device: that the run was trained on.
        date: of the test.
    """

    row: str
    dataset: str
    seed: int
    returns: list[float] = field(default_factory=list)
    successes: list[bool] | None = None
    mean: float | None = None
    wall_free_rate: float | None = None
    ref_scores: tuple[float, float] | None = None
    train_seconds: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    chosen: str | None = None
    test_use: int = 1
    data: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    device: str | None = None
    date: str | None = None

    @property
    def return_mean(self) -> float:
        """Over the test episodes.

        Raises:
            ValueError: if neither they nor their mean are known.
        """
        return fmean(self.returns) if self.mean is None else self.mean

    @property
    def score(self) -> float:
        """The return in percent between the random and the expert one, where both are known."""
        if self.ref_scores is None:
            return self.return_mean
        low, high = self.ref_scores
        return 100 * (self.return_mean - low) / (high - low)


def read_results(paths: Sequence[str | Path]) -> list[Result]:
    """All results of folders of runs and of summaries.

    Raises:
        InputError: if there are none, a file holds something else, or a run comes twice.
    """
    found = [result for path in paths for result in _read(Path(path))]
    if not found:
        raise InputError(f"There are no results in {', '.join(map(str, paths))}: run a benchmark.")
    counts = Counter((r.row, r.dataset, r.seed) for r in found)
    (row, dataset, seed), most = counts.most_common(1)[0]
    if most > 1:
        raise InputError(f"{row!r} on {dataset!r} with seed {seed} is there twice: leave one out.")
    return found


def summary(results: Iterable[Result]) -> str:
    """Results as one small JSON file, a run a line."""
    lines = [
        json.dumps({k: v for k, v in asdict(r).items() if v not in (None, [], {})}) for r in results
    ]
    return '{"runs": [\n' + ",\n".join(lines) + "\n]}\n"


def _read(path: Path) -> list[Result]:
    if path.is_dir():
        return [_result(_json(file), file) for file in sorted(path.rglob("seed_*.json"))]
    found = _json(path)
    if not isinstance(found.get("runs"), list):
        return [_result(found, path)]
    return [_result(run, path) for run in found["runs"]]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{str(path)!r} can not be read ({error.strerror}): mend that.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no JSON ({error}): give results.") from error
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} holds no results: give those of diffrl benchmark.")
    return found


def _result(found: Any, path: Path) -> Result:
    """A run's own record, or its line of a summary."""
    names = {f.name for f in fields(Result)}
    try:
        given = {k: v for k, v in found.items() if k in names}
        if trainings := found.get("trainings"):
            given["train_seconds"] = sum(t["cpu_seconds"] for t in trainings.values())
            given["device"] = next(t["device"] for t in trainings.values())
        result = Result(**given)
        low, high = result.ref_scores or (0.0, 1.0)
        numbers = np.asarray([result.return_mean, low, high, *result.returns], float)
    except (TypeError, ValueError, AttributeError, KeyError):
        raise InputError(
            f"{str(path)!r} holds no results: give those of diffrl benchmark."
        ) from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{str(path)!r} has a return that is no finite number: test it again.")
    check_scores(result.ref_scores, f"ref_scores of {str(path)!r}")
    return result


@dataclass(frozen=True)
class Cell:
    """All training seeds of a row on a dataset."""

    results: list[Result]

    @property
    def seed_means(self) -> list[float]:
        """The return of each training seed."""
        return [r.return_mean for r in self.results]

    @property
    def scores(self) -> list[float]:
        """The normalised score of each training seed."""
        return [r.score for r in self.results]

    @property
    def episode_error(self) -> float:
        """The standard error over all test episodes; NaN where they are not known."""
        return mean_and_error([x for r in self.results for x in r.returns] or [np.nan])[1]

    @property
    def success(self) -> float | None:
        """The share of test episodes that succeeded, where the environment tells."""
        told = [bool(s) for r in self.results for s in r.successes or ()]
        return float(np.mean(told)) if told else None


def cells(results: Iterable[Result]) -> dict[str, dict[str, Cell]]:
    """Results by row and dataset, in the order in which they come."""
    table: dict[str, dict[str, Cell]] = {}
    for result in results:
        of_row = table.setdefault(result.row, {})
        of_row.setdefault(result.dataset, Cell([])).results.append(result)
    for of_row in table.values():
        for cell in of_row.values():
            cell.results.sort(key=lambda r: r.seed)
    return table


def read_values(paths: Sequence[str | Path]) -> tuple[str, list[str], dict[str, dict[str, Any]]]:
    """A table of any quantities: its title, columns and rows, as JSON files of these keys have them.

    A value is a text, a number, or a list of them, one a training seed.

    Raises:
        InputError: if a file holds something else.
    """
    title, columns = "", dict[str, None]()
    rows: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        found = _json(path)
        ours, theirs = found.get("columns"), found.get("rows")
        if not isinstance(ours, list) or not isinstance(theirs, dict):
            raise InputError(f"{str(path)!r} holds no columns and rows: leave table: values out.")
        title = str(found.get("title") or title)
        columns |= dict.fromkeys(map(str, ours))
        for name, row in theirs.items():
            if not isinstance(row, dict) or not row.keys() <= set(ours):
                raise InputError(
                    f"{str(path)!r}: the row {name!r} must hold values of the columns."
                )
            rows.setdefault(name, {}).update(row)
    return title, list(columns), rows
