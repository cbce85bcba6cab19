"""Mazes: what a model makes of their places, plans and skills in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from diffrl_lightning.figures.panels import panels, share_legend
from diffrl_lightning.types import Episode

_MOST_POINTS, _MOST_PATHS = 2_000, 200  # a panel
Pair = tuple[np.ndarray, np.ndarray, float]
"""The data's points or paths from a start, the model's, and the total variation between them."""


def draw_map(
    walls: np.ndarray,
    cell_size: float,
    squares: np.ma.MaskedArray,
    starts: Sequence[np.ndarray] = (),
    futures: Sequence[Pair] = (),
) -> Figure:
    """Values over the maze, and for each start the data's futures above the model's.

    Args:
        walls: (R, C) bool.
        cell_size: side of a cell.
        squares: mean value of each square of the maze, masked where there is none; the colours leave
            out half a percent at either end.
        starts: positions (2,).
        futures: of each start, positions (N, 2) and (M, 2).
    """
    columns, rows = 1 + len(futures), 2 if futures else 1
    height, width = walls.shape
    size = (3.4 * columns + 0.8, 3.4 * height / width * rows + 0.6)
    figure, axes = panels(size, rows, columns)
    extent = draw_walls(axes[0, 0], walls, cell_size)
    low, high = np.quantile(squares.compressed(), [0.005, 0.995])
    image = axes[0, 0].imshow(squares, vmin=low, vmax=high, extent=extent, zorder=1)
    figure.colorbar(image, ax=axes[:, 0].tolist(), shrink=0.8, location="left")
    axes[0, 0].set_title("value", fontsize=10)
    titles = ("futures, data", "futures, model: {:.2f} elsewhere")
    for i, (axis, points) in enumerate(_compared(axes, walls, cell_size, futures, titles)):
        axis.plot(*points[:_MOST_POINTS].T, ".", color="tab:blue", ms=2, alpha=0.4, zorder=2)
        axis.plot(*starts[i // 2], "o", color="tab:green", ms=9, mec="white", zorder=4)
    return figure


def draw_walls(
    axis: Axes, walls: np.ndarray, cell_size: float
) -> tuple[float, float, float, float]:
    """The walls (R, C) of a maze in grey, in the simulator's coordinates; their extent."""
    top, right = np.array(walls.shape) / 2 * cell_size
    extent = (-right, right, -top, top)
    axis.imshow(walls, cmap="Greys", vmax=1.6, extent=extent, interpolation="nearest")
    axis.set(xlim=(-right, right), ylim=(-top, top), xticks=[], yticks=[])
    return extent


def _compared(
    axes: np.ndarray, walls: Any, cell_size: float, pairs: Sequence[Pair], titles: tuple[str, str]
) -> Iterator[tuple[Axes, np.ndarray]]:
    """Panels with walls beside the first one, the data's above the model's, and what they show."""
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    for column, (real, drawn, distance) in zip(axes.T[1:], pairs, strict=True):
        for axis, shown, title in zip(column, (real, drawn), titles, strict=True):
            draw_walls(axis, walls, cell_size)
            axis.set_title(title.format(distance), fontsize=10)
            yield axis, shown


def draw_plans(
    walls: np.ndarray, cell_size: float, episodes: Sequence[Episode], goal_radius: float
) -> Figure:
    """A panel for each episode: its maze, start, goal, first plan, path and return."""
    columns = min(3, len(episodes))
    rows = -(-len(episodes) // columns)
    height, width = walls.shape
    size = (3.6 * columns, (3.6 * height / width + 0.3) * rows + 0.5)
    figure, axes = panels(size, rows, columns)
    for axis, episode in zip(axes.flat, episodes, strict=False):
        draw_walls(axis, walls, cell_size)
        _plan_panel(axis, episode, goal_radius)
    for axis in axes.flat[len(episodes) :]:
        axis.set_axis_off()
    share_legend(figure, axes[0, 0])
    return figure


def _plan_panel(axis: Axes, episode: Episode, goal_radius: float) -> None:
    goal, start = episode.start[-2:], episode.start[:2]
    path = np.array(episode.path)[:, :2]
    axis.plot(*path.T, color="tab:blue", lw=1.2, label="path taken", zorder=2)
    _plan(axis, episode.plans[0])
    axis.plot(*start, "o", color="tab:green", ms=9, mec="white", label="start", zorder=4)
    axis.plot(*goal, "*", color="tab:red", ms=15, mec="white", label="goal", zorder=4)
    axis.add_patch(Circle(tuple(goal), goal_radius, fill=False, color="tab:red", lw=0.8, ls=":"))
    axis.set_title(f"return {episode.episode_return:.0f}", fontsize=10)


def _plan(axis: Axes, xy: np.ndarray) -> None:
    """Positions (H, 2), coloured from the first to the last."""
    segments = LineCollection(
        list(np.stack([xy[:-1], xy[1:]], 1)),
        cmap="autumn",
        array=np.linspace(0, 1, len(xy) - 1),
        linewidths=2.2,
        zorder=3,
    )
    axis.add_collection(segments)
    axis.plot([], [], color="tab:orange", lw=2.2, label="plan")
    axis.scatter(xy[:, 0], xy[:, 1], c=np.linspace(0, 1, len(xy)), cmap="autumn", s=9, zorder=3)


def draw_skills(
    latents: np.ndarray,
    shown: np.ndarray,
    *,
    directions: bool,
    walls: np.ndarray | None = None,
    cell_size: float = 1.0,
    paths: Sequence[Pair] = (),
) -> Figure:
    """The latent space, and for each start the data's chunks above the model's skills.

    Args:
        latents: skills (N, D).
        shown: what their colour shows (N,).
        directions: whether that is an angle, in [-pi, pi], else a reward.
        walls: (R, C) bool of the maze, where there are paths.
        cell_size: side of a cell.
        paths: of each start, positions over time (N, T, 2) and (M, T, 2).
    """
    columns, rows = 1 + len(paths), 2 if paths else 1
    figure, axes = panels((3.6 * columns + 1, 6.4 if paths else 4.4), rows, columns)
    centred = latents - latents.mean(0)
    principal = np.linalg.svd(centred, full_matrices=False)[2][:2].T
    x, y = np.pad(centred @ principal, ((0, 0), (0, 1))).T[:2]  # of one dimension y is 0
    name, cmap = ("direction", "hsv") if directions else ("reward a step", "viridis")
    points = axes[0, 0].scatter(x, y, c=shown, s=4, alpha=0.6, cmap=cmap)
    if directions:
        points.set_clim(-np.pi, np.pi)
    figure.colorbar(points, ax=axes[:, 0].tolist(), location="left", label=name, shrink=0.8)
    axes[0, 0].set_title("skills of held-out chunks", fontsize=10)
    titles = ("chunks of the data", "skills: {:.2f} end elsewhere")
    for axis, lines in _compared(axes, walls, cell_size, paths, titles):
        _paths(axis, lines[:_MOST_PATHS])
    return figure


def _paths(axis: Axes, paths: np.ndarray) -> None:
    """Paths (N, T, 2), each coloured by the direction that it leads to."""
    moved = paths[:, -1] - paths[:, 0]
    lines = LineCollection(
        list(paths), cmap="hsv", array=np.arctan2(moved[:, 1], moved[:, 0]), linewidths=0.7
    )
    lines.set_clim(-np.pi, np.pi)
    lines.set_alpha(0.6)
    axis.add_collection(lines)
    axis.plot(*paths[:, 0].mean(0), "o", color="black", ms=6, mec="white", zorder=4)
