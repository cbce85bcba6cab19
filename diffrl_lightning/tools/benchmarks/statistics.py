"""Statistics over training seeds.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

_RESAMPLES = 10_000
_TRIMMED = 0.25  # of each side, which leaves the interquartile mean
_LEVEL = 0.05

Scores = Sequence[Sequence[float]]
"""Of every task (dataset) the scores of its runs (training seeds)."""


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error; NaN for that of one value."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all runs of all tasks."""
    return float(stats.trim_mean(np.concatenate([np.asarray(s, float) for s in scores]), _TRIMMED))


def interquartile_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the interquartile mean, by resampling the runs of each task apart.

    Args:
        scores: of tasks; each needs two runs or more, else both ends are NaN.
        confidence: of the interval.
    """
    if min(map(len, scores)) < 2:
        return math.nan, math.nan
    found = stats.bootstrap(
        [np.asarray(s, float) for s in scores],
        lambda *tasks, axis: stats.trim_mean(np.concatenate(tasks, axis), _TRIMMED, axis=axis),
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """The chance that a run of the first row scores above one of the second, averaged over tasks.

    Ties count half (the Mann-Whitney statistic over the number of pairs).
    """
    chances = [
        stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(chances))


def differ(first: Sequence[float], second: Sequence[float]) -> bool | None:
    """Whether two rows differ beyond their training seeds: Welch's t-test at 5 %.

    None where one of them has a single seed, and nothing can be said.
    """
    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == np.ptp(second) == 0:
        return first[0] != second[0]
    return bool(stats.ttest_ind(first, second, equal_var=False).pvalue < _LEVEL)
