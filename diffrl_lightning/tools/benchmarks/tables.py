"""Tables in Markdown, of results."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from diffrl_lightning.inputs import InputError
from diffrl_lightning.tools.benchmarks.results import Cell, Result, cells
from diffrl_lightning.tools.benchmarks.statistics import (
    Scores,
    differ,
    interquartile_interval,
    interquartile_mean,
    mean_and_error,
    probability_of_improvement,
)


def returns_table(results: Sequence[Result], *, seeds: bool = False) -> str:
    """Mean returns, a row a method and a column a dataset, and what their signs mean.

    Args:
        results: of all runs.
        seeds: print each training seed's mean too.
    """
    table = cells(results)
    datasets = list(dict.fromkeys(r.dataset for r in results))
    best = {d: max((t[d] for t in table.values() if d in t), key=_mean) for d in datasets}
    rows = [
        [name, *(_cell(of.get(d), best[d], seeds) for d in datasets)] for name, of in table.items()
    ]
    return _markdown(["", *datasets], rows) + "\n\n" + _legend(results, table.values(), seeds)


def statistics_table(results: Sequence[Result]) -> str:
    """Interquartile means of normalised scores with 95 % intervals, and chances to beat the best row.

    Rows that were not run on all datasets are left out. Returns of several datasets have no common
    scale without reference scores.
    """
    if len({r.dataset for r in results}) > 1 and not all(r.ref_scores for r in results):
        return (
            "No interquartile mean: without reference scores these datasets have no common scale."
        )
    table = cells(results)
    datasets = list(dict.fromkeys(r.dataset for r in results))
    scores: dict[str, Scores] = {
        name: [of[d].scores for d in datasets]
        for name, of in table.items()
        if all(d in of for d in datasets)
    }
    if not scores:
        return "No interquartile mean: no row was run on all of these datasets."
    best = max(scores, key=lambda name: interquartile_mean(scores[name]))
    rows = []
    for name, of in scores.items():
        low, high = interquartile_interval(of)
        interval = "-" if math.isnan(low) else f"[{low:.1f}, {high:.1f}]"
        chance = f"{probability_of_improvement(of, scores[best]):.2f}" if name != best else "-"
        rows.append([name, f"{interquartile_mean(of):.1f}", interval, chance])
    return _markdown(["", "IQM", "95 % interval", f"P(above {best})"], rows)


def costs_table(results: Sequence[Result]) -> str:
    """Minutes of processor time that a training seed took, a row a method and a column a dataset."""
    if all(r.train_seconds is None for r in results):
        return "No minutes of training are known."
    table = cells(results)
    datasets = list(dict.fromkeys(r.dataset for r in results))
    rows = [[name, *(_minutes(of.get(d)) for d in datasets)] for name, of in table.items()]
    return _markdown(["", *datasets], rows)


def _cell(cell: Cell | None, best: Cell, seeds: bool) -> str:
    if cell is None:
        return ""
    mean, error = mean_and_error(cell.seed_means)
    text = f"{mean:.0f}" if math.isnan(error) else f"{mean:.0f} +- {error:.0f}"
    if (cell is best and len(cell.results) > 1) or differ(
        cell.seed_means, best.seed_means
    ) is False:
        text = f"**{text}**"
    within = [] if math.isnan(cell.episode_error) else [f"{cell.episode_error:.0f}"]
    if seeds and len(cell.results) > 1:
        within.append(" / ".join(f"{m:.0f}" for m in cell.seed_means))
    if within:
        text += f" ({'; '.join(within)})"
    return text if cell.success is None else f"{text}, success {cell.success:.2f}"


def _legend(results: Sequence[Result], rows: Collection[dict[str, Cell]], seeds: bool) -> str:
    """What the table's signs mean, and over what its errors are."""
    counts = sorted({len(cell.results) for of in rows for cell in of.values()})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[-1])
    said = [f"Mean return of {several} training seed{'s' * (counts[-1] > 1)}"]
    if counts[-1] > 1:
        said[0] += ", +- its standard error over them"
    if episodes := sorted({len(r.returns) for r in results if r.returns}):
        said.append(f"in brackets that over all episodes, {episodes[-1]} of each seed")
    if seeds and counts[-1] > 1:
        said.append("separated by strokes the mean of each seed")
    if counts[-1] > 1:
        said.append("bold: the best, and what does not differ from it (Welch's t-test, 5 %)")
    again = {r.row for r in results if r.test_use > 1}
    warning = (
        f" Test episodes were run more than once for {', '.join(sorted(again))}." if again else ""
    )
    return "; ".join(said) + "." + warning


def _minutes(cell: Cell | None) -> str:
    told = [r.train_seconds for r in cell.results if r.train_seconds is not None] if cell else []
    return f"{sum(told) / len(told) / 60:.1f}" if told else ""


def _mean(cell: Cell) -> float:
    return mean_and_error(cell.seed_means)[0]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(f" {c} " if c else " " for c in line) + "|" for line in lines)


def values_table(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, Any]],
    only: Sequence[str] | None = None,
) -> str:
    """Any quantities: of a list, one a training seed, the mean and its standard error over them."""
    unknown = set(only or ()) - set(columns)
    if unknown:
        raise InputError(f"only names {min(unknown)!r}: choose among {', '.join(columns)}.")
    shown = [column for column in columns if not only or column in only]
    lines = [[name, *(_value(row.get(c)) for c in shown)] for name, row in rows.items()]
    return _markdown([title, *shown], lines)


def _value(value: Any) -> str:
    """A cell: as it is, or with its error; three digits of the greatest, or whole numbers."""
    if value in (None, []):
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return f"{value:g}"
    mean, error = mean_and_error(value)
    size = max(*map(abs, value), 1e-9)
    whole = all(float(v).is_integer() for v in value)
    digits = 0 if whole else max(0, 2 - math.floor(math.log10(size)))
    each = " / ".join(f"{v:.{digits}f}" for v in value)
    return f"{mean:.{digits}f} +- {error:.{digits}f} ({each})" if len(value) > 1 else each
