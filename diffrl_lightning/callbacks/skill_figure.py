"""Draws skills: where they lie in the latent space, and what they do in a maze."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.callbacks.maze_map import busy_cells, cell_distance, to_device
from diffrl_lightning.callbacks.plan_figure import draw_walls
from diffrl_lightning.envs.pointmaze import Maze
from diffrl_lightning.envs.simulate import simulate
from diffrl_lightning.types import InputError


class Start(NamedTuple):
    """What begins in one cell: positions over time."""

    real: np.ndarray  # (N, H + 1, 2) of the data's chunks
    decoded: np.ndarray  # (M, H + 1, 2) of the model's skills, in the simulator


class SkillFigure(pl.Callback):
    """After each validation, draws the skills of held-out chunks, and in a maze what skills do there.

    The first panel is the latent space along the two directions in which it spreads most. In a maze
    the colour of a skill is the direction that it leads to; elsewhere it is the reward of its steps. In
    a maze the next ones begin in a few cells: paths of the data's chunks, above those of as many skills
    that the model draws there and its decoder plays in the simulator; ``val/end_distance`` is the share
    (total variation, over cells) in which their ends differ, averaged. The picture goes to TensorBoard
    and to ``skills_val.png``.

    Args:
        num_points: held-out chunks that are looked at.
        num_starts: cells in which skills begin.
        num_skills: skills that are played in each.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, num_points: int = 4_096, num_starts: int = 3, num_skills: int = 100) -> None:
        if num_points < 3 or num_starts < 0 or num_skills < 1:
            raise InputError(
                f"{num_points=} must be at least 3, {num_starts=} at least 0, {num_skills=} 1."
            )
        self.num_points, self.num_starts, self.num_skills = num_points, num_starts, num_skills

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a role without skills of its own, and a maze that can not be set to a state."""
        if not all(hasattr(pl_module, name) for name in ("encode", "sample_skills", "decode")):
            raise InputError(
                f"{type(pl_module).__name__} draws no skills: leave out the callback SkillFigure."
            )
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not self.num_starts or not datamodule.env_id:
            return
        env = datamodule.make_env()
        if Maze.of(env) is not None:
            nothing = [
                np.zeros((0, d)) for d in (datamodule.observation_dim, datamodule.action_dim)
            ]
            simulate(env, nothing[0], nothing[1], show_progress=False)
        env.close()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw, measure and log, in the first process."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        env = datamodule.make_env() if datamodule.env_id else None
        maze = None if env is None else Maze.of(env)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        starts = []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            data = datamodule.val_data
            order = torch.randperm(len(data))[: self.num_points]
            batch = to_device(data[order], pl_module.device)
            encoded = pl_module.encode(batch)
            latents = encoded if isinstance(encoded, Tensor) else encoded.mean  # of a Gaussian
            if maze is not None:
                starts = self._starts(env, maze, batch, pl_module)
        if starts and maze is not None:
            distance = np.mean(
                [cell_distance(maze, s.real[:, -1], s.decoded[:, -1]) for s in starts]
            )
            pl_module.log("val/end_distance", float(distance), rank_zero_only=True)
        if env is not None:
            env.close()
        figure = draw_skills(latents, batch, maze, starts)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "skills_val.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("val/skills", figure, trainer.global_step)

    def _starts(self, env: Any, maze: Maze, batch: dict[str, Tensor], module: Any) -> list[Start]:
        """Of full chunks, what the data do and what the model's skills do, from a few cells."""
        full = batch["mask"].all(1)
        first = batch["observations"][full][:, 0]
        ends = batch["next_observations"][full][:, None]
        paths = torch.cat([batch["observations"][full], ends], 1)[..., :2].float().cpu().numpy()
        found = []
        for rows in busy_cells(maze, first[:, :2].cpu().numpy(), self.num_starts):
            chosen = torch.from_numpy(np.resize(rows, self.num_skills)).to(first.device)
            states = first[chosen]
            skills = module.sample_skills(states)[:, 0]
            horizon = batch["mask"].shape[1]
            found.append(Start(paths[rows], play(env, module, states, skills, horizon)))
        return found


def play(env: gym.Env, module: Any, states: Tensor, skills: Tensor, num_steps: int) -> np.ndarray:
    """Positions (N, num_steps + 1, 2) of skills (N, D) that a decoder plays from states (N, O)."""
    path = [states[:, :2].float().cpu().numpy()]
    for k in range(num_steps):
        steps = torch.full((len(states),), k, device=states.device)
        actions = module.decode(states, skills, steps).float().cpu().numpy()
        following = simulate(
            env, states.float().cpu().numpy(), np.clip(actions, -1, 1), show_progress=False
        ).next_observations
        states = torch.from_numpy(following).to(states)
        path.append(following[:, :2])
    return np.stack(path, 1)


def draw_skills(
    latents: Tensor, batch: dict[str, Tensor], maze: Maze | None, starts: list[Start]
) -> Figure:
    """The latent space, and for each start the data's chunks above the model's skills."""
    columns = 1 + len(starts)
    figure = Figure(figsize=(3.6 * columns + 1, 6.4 if starts else 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if starts else 1, columns, squeeze=False)
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    centred = latents.float().cpu() - latents.float().cpu().mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    x, y = torch.nn.functional.pad(centred @ directions[:2].T, (0, 1)).T[:2].numpy()
    if maze is not None:
        moved = (batch["next_observations"] - batch["observations"][:, 0])[:, :2].float().cpu()
        shown, name = torch.atan2(moved[:, 1], moved[:, 0]).numpy(), "direction"
        colours: dict[str, Any] = {"cmap": "hsv", "vmin": -np.pi, "vmax": np.pi}
    else:
        shown = (batch["rewards"].sum(1) / batch["steps"]).float().cpu().numpy()
        name, colours = "reward a step", {"cmap": "viridis"}
    points = axes[0, 0].scatter(x, y, c=shown, s=4, alpha=0.6, **colours)
    figure.colorbar(points, ax=axes[:, 0].tolist(), location="left", label=name, shrink=0.8)
    axes[0, 0].set_title("skills of held-out chunks", fontsize=10)
    for column, start in enumerate(starts, 1):
        assert maze is not None
        share = cell_distance(maze, start.real[:, -1], start.decoded[:, -1])
        for axis, paths, title in (
            (axes[0, column], start.real, "chunks of the data"),
            (axes[1, column], start.decoded, f"skills: {share:.2f} end elsewhere"),
        ):
            _paths(axis, maze, paths[:200])
            axis.set_title(title, fontsize=10)
    return figure


def _paths(axis: Axes, maze: Maze, paths: np.ndarray) -> None:
    """Paths (N, T, 2), each coloured by the direction that it leads to."""
    draw_walls(axis, maze)
    moved = paths[:, -1] - paths[:, 0]
    lines = LineCollection(
        list(paths), cmap="hsv", array=np.arctan2(moved[:, 1], moved[:, 0]), linewidths=0.7
    )
    lines.set_clim(-np.pi, np.pi)
    lines.set_alpha(0.6)
    axis.add_collection(lines)
    axis.plot(*paths[:, 0].mean(0), "o", color="black", ms=6, mec="white", zorder=4)
