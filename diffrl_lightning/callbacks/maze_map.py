"""Draws over a maze what a model makes of its places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.callbacks.plan_figure import draw_walls
from diffrl_lightning.envs.pointmaze import Maze
from diffrl_lightning.types import InputError


class MazeMap(pl.Callback):
    """After each validation, draws values over the maze, and where the future of some places lies.

    The values are those that the role's ``place_values`` has for held-out data, averaged over squares.
    Where the role has ``sample_futures`` too, futures from a few cells are drawn beside the data's own
    from the same states, and ``val/occupancy_distance`` is logged: the share (total variation, over
    cells) in which they differ, averaged. A perfect model's is not 0, as few futures are of one cell:
    about 0.13 where some hundred are, 0.07 where a thousand are, and more where they are of one walk
    of the held-out data. The picture goes to TensorBoard and to ``maze_val.png``.

    Args:
        num_points: held-out windows or steps that the map of values is made of.
        squares: a cell is so many squares wide.
        num_starts: cells whose futures are drawn.
        num_futures: held-out steps that those of the cells are taken from.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        num_points: int = 2_048,
        squares: int = 2,
        num_starts: int = 3,
        num_futures: int = 16_384,
    ) -> None:
        if min(num_points, squares, num_futures) < 1 or num_starts < 0:
            raise InputError(
                f"{num_points=}, {squares=} and {num_futures=} must be at least 1, {num_starts=} "
                "at least 0."
            )
        self.num_points, self.squares = num_points, squares
        self.num_starts, self.num_futures = num_starts, num_futures

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a role without values of places, and an environment without a maze."""
        if not hasattr(pl_module, "place_values"):
            raise InputError(
                f"{type(pl_module).__name__} has no values of places: leave out the callback MazeMap."
            )
        if self._maze(trainer) is None:
            raise InputError(
                "The dataset's environment has no maze: leave out the callback MazeMap."
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw, measure and log, in the first process."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        maze, data = self._maze(trainer), trainer.datamodule.val_data  # type: ignore[attr-defined]
        assert maze is not None
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            order = torch.randperm(len(data))
            batch = to_device(data[order[: self.num_points]], pl_module.device)
            states, values = pl_module.place_values(batch)
            futures = []
            if hasattr(pl_module, "sample_futures"):
                batch = to_device(data[order[: self.num_futures]], pl_module.device)
                futures = self._futures(maze, batch, pl_module)
        if futures:
            distance = float(np.mean([cell_distance(maze, *pair) for _, *pair in futures]))
            pl_module.log("val/occupancy_distance", distance, rank_zero_only=True)
        points = (states[:, :2].cpu().numpy(), values.cpu().numpy())
        figure = draw_map(maze, *points, squares=self.squares, futures=futures)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "maze_val.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("val/maze", figure, trainer.global_step)

    def _futures(
        self, maze: Maze, batch: dict[str, Tensor], module: Any
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Positions of steps in one cell, of the data's futures and of the model's, for some cells."""
        found: list[Any] = []
        positions = batch["observations"][:, :2].cpu().numpy()
        for cell in busy_cells(maze, positions, self.num_starts):
            rows = torch.from_numpy(cell).to(module.device)
            states = batch["observations"][rows]
            drawn = module.sample_futures(states, num_samples=4).flatten(0, 1)
            real = batch["future_observations"][rows]
            found.append(tuple(x[:, :2].float().cpu().numpy() for x in (states, real, drawn)))
        return found

    @staticmethod
    def _maze(trainer: pl.Trainer) -> Maze | None:
        env = trainer.datamodule.make_env()  # type: ignore[attr-defined]
        maze = Maze.of(env)
        env.close()
        return maze


def to_device(batch: Any, device: torch.device) -> dict[str, Tensor]:
    """A batch where a module is."""
    return {name: value.to(device) for name, value in batch.items()}


def busy_cells(maze: Maze, xy: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows of positions (N, 2) that lie in one cell, for some cells, from the most visited one on.

    They are spread over the cells from that one to the middle of the list.
    """
    cells = maze.to_cells(xy)
    index = np.ravel_multi_index(tuple(cells.T), maze.walls.shape)
    numbers, counts = np.unique(index, return_counts=True)
    often = numbers[np.argsort(-counts, kind="stable")]
    middle = max(1, len(often) // 2)
    step = max(1, middle // max(1, count))
    return [np.flatnonzero(index == number) for number in often[:middle][::step][:count]]


def cell_distance(maze: Maze, first: np.ndarray, second: np.ndarray) -> float:
    """Total variation between positions (N, 2) and (M, 2) as shares of cells, from 0 to 1."""
    shares = []
    for xy in (first, second):
        cells = np.ravel_multi_index(tuple(maze.to_cells(xy).T), maze.walls.shape)
        shares.append(np.bincount(cells, minlength=maze.walls.size) / len(cells))
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def square_means(
    maze: Maze, xy: np.ndarray, values: np.ndarray, squares: int = 1
) -> np.ma.MaskedArray:
    """Mean of values (N,) at positions (N, 2) in each square of the maze, masked where there is none.

    Args:
        maze: of R rows and C columns of cells.
        xy: positions.
        values: of the positions.
        squares: S, squares along a cell's side.

    Returns:
        (R * S, C * S), the first row at the top.
    """
    rows, columns = maze.walls.shape
    right, top = columns / 2 * maze.cell_size, rows / 2 * maze.cell_size
    edges = [
        np.linspace(-top, top, rows * squares + 1),
        np.linspace(-right, right, columns * squares + 1),
    ]
    at = (-xy[:, 1], xy[:, 0])
    sums = np.histogram2d(*at, bins=edges, weights=values)[0]  # type: ignore[arg-type]
    counts = np.histogram2d(*at, bins=edges)[0]  # type: ignore[arg-type]
    return np.ma.masked_array(sums / np.maximum(counts, 1), counts == 0)


def draw_map(
    maze: Maze,
    xy: np.ndarray,
    values: np.ndarray,
    *,
    squares: int = 2,
    futures: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> Figure:
    """Values over the maze, and for each start the data's futures beside the model's."""
    futures = futures or []
    columns = 1 + len(futures)
    height, width = maze.walls.shape
    size = (3.4 * columns + 0.8, 3.4 * height / width * (2 if futures else 1) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if futures else 1, columns, squeeze=False)
    image = show_squares(axes[0, 0], maze, square_means(maze, xy, values, squares))
    figure.colorbar(image, ax=axes[:, 0].tolist(), shrink=0.8, location="left")
    axes[0, 0].set_title("value", fontsize=10)
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    for column, (starts, real, drawn) in enumerate(futures, 1):
        title = f"model: {cell_distance(maze, real, drawn):.2f} elsewhere"
        for axis, points, name in zip(axes[:, column], (real, drawn), ("data", title), strict=True):
            draw_walls(axis, maze)
            axis.plot(*points[:2_000].T, ".", color="tab:blue", ms=2, alpha=0.4, zorder=2)
            axis.plot(*starts.mean(0), "o", color="tab:green", ms=9, mec="white", zorder=4)
            axis.set_title(f"futures, {name}", fontsize=10)
    return figure


def show_squares(axis: Axes, maze: Maze, squares: np.ma.MaskedArray) -> Any:
    """Squares (R, C) over the walls of a maze, their outermost half a percent cut off."""
    draw_walls(axis, maze)
    right, top = axis.get_xlim()[1], axis.get_ylim()[1]
    low, high = np.quantile(squares.compressed(), [0.005, 0.995])
    extent = (-right, right, -top, top)
    return axis.imshow(squares, cmap="viridis", vmin=low, vmax=high, extent=extent, zorder=1)
