"""Plans of a rollout: over the maze, or over time where there is none."""

from __future__ import annotations

import lightning.pytorch as pl

from diffrl_lightning.callbacks.pictures import run_folder, save_picture
from diffrl_lightning.callbacks.rollout import Rollout
from diffrl_lightning.envs.pointmaze import GOAL_RADIUS, Maze
from diffrl_lightning.figures.mazes import draw_plans
from diffrl_lightning.figures.trajectories import draw_imagined
from diffrl_lightning.inputs import RangeChecked


class PlanFigure(RangeChecked, pl.Callback):
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
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        evaluations = [c.evaluation for c in callbacks if isinstance(c, Rollout)][:1]
        episodes = [e for found in evaluations if found for e in found.episodes if e.snapshots]
        if not episodes:
            return
        maze = Maze.of_source(trainer.datamodule)  # type: ignore[attr-defined]
        if maze is not None:
            shown = episodes[: self.num_plans]
            figure = draw_plans(maze.walls, maze.cell_size, shown, GOAL_RADIUS)
        else:
            figure = draw_imagined(episodes[0], num_plans=self.num_plans)
        save_picture(trainer, figure, folder / f"{name}.png", tag)
