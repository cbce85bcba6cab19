"""Draws plans, and what came of them: over the maze, or over time where there is none."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from diffrl_lightning.callbacks.rollout import Rollout
from diffrl_lightning.callbacks.trajectory_figure import draw_imagined
from diffrl_lightning.envs.pointmaze import GOAL_RADIUS, Maze
from diffrl_lightning.types import Episode


class PlanFigure(pl.Callback):
    """After each rollout, writes a picture of its first plans to TensorBoard and as a PNG.

    In a maze, each panel is an episode: the line with dots is its first plan, coloured from its
    first step to its last; the thin line is the path that the agent took. Elsewhere, each panel is
    a dimension of the observations over the first episode's time: the dark line is what came, the red
    ones are plans, each from the step at which it was made; where plans were chosen by their value,
    the thin lines are the candidates, the darker the better. Without plans nothing is drawn, nor
    where ``rollout.keep_episodes`` is 0.

    Args:
        num_plans: plans in the picture, at most.
    """

    def __init__(self, num_plans: int = 6) -> None:
        self.num_plans = num_plans

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the validation's rollout."""
        if not trainer.sanity_checking:
            self._draw(trainer, f"plans_step_{trainer.global_step:07d}", "plans/val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the test's rollout."""
        self._draw(trainer, "plans_test", "plans/test")

    def _draw(self, trainer: pl.Trainer, name: str, tag: str) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.is_global_zero:
            return
        rollouts = [c for c in trainer.callbacks if isinstance(c, Rollout)]  # type: ignore[attr-defined]
        if not rollouts or rollouts[0].evaluation is None:
            return
        episodes = [e for e in rollouts[0].evaluation.episodes if e.snapshots]
        if not episodes:
            return
        env = trainer.datamodule.make_env()  # type: ignore[attr-defined]
        maze = Maze.of(env)
        env.close()
        if maze is not None:
            figure = draw_plans(maze, episodes[: self.num_plans])
        else:
            figure = draw_imagined(episodes[0], num_plans=self.num_plans)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(tag, figure, trainer.global_step)


def draw_plans(maze: Maze, episodes: list[Episode]) -> Figure:
    """A panel for each episode: its maze, start, goal, first plan, path and return."""
    columns = min(3, len(episodes))
    rows = -(-len(episodes) // columns)
    height, width = maze.walls.shape
    size = (3.6 * columns, (3.6 * height / width + 0.3) * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, episode in zip(axes, episodes, strict=False):
        _panel(axis, maze, episode)
    for axis in list(axes)[len(episodes) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_walls(axis: Axes, maze: Maze) -> None:
    """The walls of a maze in grey, in the simulator's coordinates."""
    rows, columns = maze.walls.shape
    right, top = columns / 2 * maze.cell_size, rows / 2 * maze.cell_size
    extent = (-right, right, -top, top)
    axis.imshow(maze.walls, cmap="Greys", vmax=1.6, extent=extent, interpolation="nearest")
    axis.set_xlim(-right, right)
    axis.set_ylim(-top, top)
    axis.set_xticks([])
    axis.set_yticks([])


def _panel(axis: Axes, maze: Maze, episode: Episode) -> None:
    draw_walls(axis, maze)
    goal, start = episode.start[-2:], episode.start[:2]
    path = np.array(episode.path)[:, :2]
    axis.plot(*path.T, color="tab:blue", lw=1.2, label="path taken", zorder=2)
    _plan(axis, episode.plans[0])
    axis.plot(*start, "o", color="tab:green", ms=9, mec="white", label="start", zorder=4)
    axis.plot(*goal, "*", color="tab:red", ms=15, mec="white", label="goal", zorder=4)
    axis.add_patch(_circle(goal))
    axis.set_title(f"return {episode.episode_return:.0f}", fontsize=10)


def _plan(axis: Axes, xy: np.ndarray) -> None:
    points = xy[:, None]
    segments = LineCollection(
        np.concatenate([points[:-1], points[1:]], 1),  # type: ignore[arg-type]
        cmap="autumn",
        array=np.linspace(0, 1, len(xy) - 1),
        linewidths=2.2,
        zorder=3,
    )
    axis.add_collection(segments)
    axis.plot([], [], color="tab:orange", lw=2.2, label="plan")
    axis.scatter(xy[:, 0], xy[:, 1], c=np.linspace(0, 1, len(xy)), cmap="autumn", s=9, zorder=3)


def _circle(goal: np.ndarray) -> Circle:
    return Circle(tuple(goal), GOAL_RADIUS, fill=False, color="tab:red", lw=0.8, ls=":")
