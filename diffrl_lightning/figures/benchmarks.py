"""Results of benchmarks: returns of training seeds, interquartile means, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Means = Mapping[str, Mapping[str, Sequence[float]]]
Intervals = Mapping[str, tuple[float, float, float]]
Curves = Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, float]]]]]


def draw_benchmark(means: Means, intervals: Intervals, curves: Curves) -> Figure:
    """A panel of returns for each dataset, one of interquartile means, and learning curves.

    Args:
        means: by row and dataset, the mean return of each training seed.
        intervals: by row, interquartile mean of the scores, and both ends of its interval.
        curves: by row and dataset, of each training seed its validations, with ``step``,
            ``cpu_seconds`` and ``val/return_mean``.
    """
    datasets = list(dict.fromkeys(d for of in means.values() for d in of))
    colors = {row: f"C{i % 10}" for i, row in enumerate(means)}
    curved = [d for d in datasets if any(_is_curve(of.get(d, ())) for of in curves.values())]
    columns, height = len(datasets) + bool(intervals), 1.2 + 0.32 * len(means)
    width = max(3.6 * columns, 7.2 if curved else 0)
    figure = Figure(figsize=(width, height + 3.2 * len(curved)), layout="constrained")
    heights = [height, *[3.2] * len(curved)]
    parts: Any = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    above, *below = parts[:, 0]
    axes = above.subplots(1, columns, squeeze=False)[0]
    for i, dataset in enumerate(datasets):
        _draw_means(axes[i], means, dataset, colors, i == 0)
    if intervals:
        _draw_intervals(axes[-1], intervals, list(means), colors)
    for dataset, part in zip(curved, below, strict=True):
        pair = part.subplots(1, 2, sharey=True)
        for axis, key, label in zip(
            pair, ("step", "cpu_seconds"), ("updates", "CPU seconds"), strict=True
        ):
            for row, of in curves.items():
                _draw_curve(axis, of.get(dataset, ()), key, row, colors[row])
            axis.set(xlabel=label, title=dataset)
            axis.grid(alpha=0.3)
        pair[0].set_ylabel("return, development episodes")
        pair[0].legend(frameon=False, fontsize="small")
    return figure


def _is_curve(seeds: Any) -> bool:
    return any("val/return_mean" in point for run in seeds for point in run)


def _draw_means(
    axis: Axes, means: Means, dataset: str, colors: Mapping[str, str], named: bool
) -> None:
    """Each training seed as a dot, and the mean with its standard error."""
    for y, (row, of) in enumerate(means.items()):
        values = of.get(dataset, ())
        if len(values):
            error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            axis.plot(values, [y] * len(values), "o", color=colors[row], alpha=0.35, ms=4)
            axis.errorbar(
                np.mean(values), y, xerr=error, fmt="|", color=colors[row], capsize=3, ms=12
            )
    axis.set_title(dataset)
    axis.set_xlabel("return")
    _name_rows(axis, list(means), named)


def _draw_intervals(
    axis: Axes, intervals: Intervals, rows: Sequence[str], colors: Mapping[str, str]
) -> None:
    for row, (middle, low, high) in intervals.items():
        y = rows.index(row)
        if not math.isnan(low):
            axis.plot([low, high], [y, y], color=colors[row], lw=6, alpha=0.35)
        axis.plot([middle], [y], "|", color=colors[row], ms=14, mew=2)
    axis.set_title("interquartile mean, 95 %")
    axis.set_xlabel("normalised score")
    _name_rows(axis, rows, False)


def _name_rows(axis: Axes, rows: Sequence[str], named: bool) -> None:
    axis.set_yticks(range(len(rows)), labels=rows if named else [""] * len(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.3)


def _draw_curve(axis: Axes, seeds: Any, key: str, row: str, color: str) -> None:
    """The mean over training seeds, and its standard error as a band."""
    runs = [[p for p in run if "val/return_mean" in p] for run in seeds]
    count = min((len(run) for run in runs), default=0)
    if not count:
        return
    x = np.mean([[p[key] for p in run[:count]] for run in runs], 0)
    y = np.array([[p["val/return_mean"] for p in run[:count]] for run in runs])
    axis.plot(x, y.mean(0), "o-", color=color, label=row, ms=3)
    if len(runs) > 1:
        error = y.std(0, ddof=1) / math.sqrt(len(runs))
        axis.fill_between(x, y.mean(0) - error, y.mean(0) + error, color=color, alpha=0.2, lw=0)
