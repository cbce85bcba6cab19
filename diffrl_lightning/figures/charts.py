"""Charts of numbers: errors, ranks, times and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from diffrl_lightning.figures.panels import panels, share_legend

_LEAST_ERROR = 1e-3
_MOST_PLOTS = 4  # dimensions of the state
_MOST_LINES = 6  # trajectories


def draw_errors(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Errors over horizons, a line with error bars for each model; the first is the control, dashed.

    Args:
        results: by name of the model lists of ``horizons``, ``mean`` and ``sem``.
    """
    figure, axes = panels((6.4, 4.4))
    axis = axes[0, 0]
    for index, (name, row) in enumerate(results.items()):
        style = {"color": f"C{index - 1}"} if index else {"color": "0.5", "ls": "--"}
        points = (row["horizons"], row["mean"], row["sem"])
        axis.errorbar(*points, marker="o", capsize=3, label=name, **style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=max(axis.get_ylim()[0], _LEAST_ERROR))
    axis.set_xticks(row["horizons"], labels=map(str, row["horizons"]))
    axis.set_xticks([], minor=True)
    axis.set_xlabel("steps ahead")
    axis.set_ylabel("error, in standard deviations of the data")
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False)
    return figure


def draw_model_rollouts(real: Sequence[np.ndarray], imagined: Sequence[np.ndarray]) -> Figure:
    """A few trajectories (L, O) over steps, a panel a dimension of the state: real and imagined."""
    dims = min(real[0].shape[-1], _MOST_PLOTS)
    figure, axes = panels((3.2 * dims, 3.2), columns=dims)
    for dim, axis in enumerate(axes[0]):
        for row, pair in enumerate(zip(real[:_MOST_LINES], imagined[:_MOST_LINES], strict=True)):
            for path, style, name in zip(pair, ("-", "--"), ("real", "imagined"), strict=True):
                axis.plot(path[:, dim], style, color=f"C{row}", label=None if row else name)
        axis.set_xlabel("step")
        axis.set_title(f"observation {dim}")
        axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def draw_ranks(values: Mapping[str, np.ndarray], returns: np.ndarray) -> Figure:
    """Each value (N,), by its title, over the return (N,) that followed."""
    figure, axes = panels((4.0 * len(values), 3.8), columns=len(values))
    for axis, (title, predicted) in zip(axes[0], values.items(), strict=True):
        axis.plot(returns, predicted, ".", ms=2, alpha=0.3)
        axis.axline((float(returns.mean()),) * 2, slope=1, color="0.5", lw=1, ls="--")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("return that followed")
    return figure


def draw_trade_offs(results: Mapping[str, Mapping[str, float]], num_envs: Sequence[int]) -> Figure:
    """Return against the time of a decision, one panel for each number of environments.

    Args:
        results: by name ``return_mean``, ``return_sem``, and ``ms_N`` for each number N.
        num_envs: these numbers.
    """
    figure, axes = panels((5.2 * len(num_envs), 4.2), columns=len(num_envs), sharey=True)
    for axis, n in zip(axes[0], num_envs, strict=True):
        for name, row in results.items():
            point = (row[f"ms_{n}"], row["return_mean"], row["return_sem"])
            axis.errorbar(*point, fmt="o", ms=7, capsize=3, label=name)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"milliseconds a decision, {n} environment{'s' if n > 1 else ''}")
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("return (mean and standard error)")
    share_legend(figure, axes[0, 0], ncols=3)
    return figure


_COLUMNS = 7


def draw_marginals(names: Sequence[str], real: np.ndarray, synthetic: np.ndarray) -> Figure:
    """Histograms of every dimension of real rows (N, D) and synthetic ones (M, D)."""
    rows = -(-len(names) // _COLUMNS)
    figure, axes = panels((2.2 * _COLUMNS, 1.7 * rows), rows, _COLUMNS)
    for axis, name, x, y in zip(axes.flat, names, real.T, synthetic.T, strict=False):
        low, high = np.quantile(x, [0.001, 0.999])
        bins = np.linspace(low, high if high > low else low + 1, 50).tolist()
        axis.hist(x, bins, density=True, color="0.75", label="real")
        axis.hist(y, bins, density=True, histtype="step", color="C3", label="synthetic")
        axis.set_title(name, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    share_legend(figure, axes[0, 0], "upper center")
    return figure
