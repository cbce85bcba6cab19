"""Blank figures, and the legend that their panels share."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def panels(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of ``size`` inches and its axes (rows, columns).

    It needs no display, and belongs to nobody: unlike pyplot's it goes with its last reference.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def share_legend(figure: Figure, axis: Axes, where: Any = "lower center", **options: Any) -> None:
    """One legend outside the panels, of what one of them shows; by default in a single row."""
    handles, labels = axis.get_legend_handles_labels()
    options = {"ncols": len(labels), "frameon": False} | options
    figure.legend(handles, labels, loc=f"outside {where}", **options)  # type: ignore[call-overload]
