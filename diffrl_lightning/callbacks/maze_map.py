"""Values and sampled futures over a maze."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.callbacks.pictures import ValidationPicture
from diffrl_lightning.envs.pointmaze import Maze
from diffrl_lightning.figures.mazes import draw_map
from diffrl_lightning.types import InputError


class MazeMap(ValidationPicture):
    """After each validation, maps values over the maze, and compares sampled futures with the data's.

    The values are the role's ``place_values`` of held-out data, averaged over squares. Where the role
    has ``sample_futures`` too, futures from a few cells are drawn beside the data's own from the same
    states, and ``val/occupancy_distance`` is logged: the mean total variation between their occupancies
    of cells. By sampling error a perfect model's is not 0: about 0.13 with some hundred futures of a
    cell, 0.07 with a thousand, and more where they are of one walk of the held-out data. The picture
    goes to TensorBoard and to ``maze_val.png``.

    Args:
        num_points: held-out windows or steps whose values are mapped.
        squares: along a cell's side.
        num_starts: cells whose futures are drawn.
        num_futures: held-out steps, of which those in the cells are used.
    """

    picture = "maze"
    val_metrics = ("occupancy_distance",)

    def __init__(
        self,
        num_points: int = 2_048,
        squares: int = 2,
        num_starts: int = 3,
        num_futures: int = 16_384,
    ) -> None:
        self.num_points, self.squares = num_points, squares
        self.num_starts, self.num_futures = num_starts, num_futures

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a role without values of places, and an environment without a maze."""
        if not hasattr(pl_module, "place_values"):
            raise InputError(
                f"{type(pl_module).__name__} has no values of places: leave out the callback MazeMap."
            )
        if Maze.of_source(trainer.datamodule) is None:  # type: ignore[attr-defined]
            raise InputError(
                "The dataset's environment has no maze: leave out the callback MazeMap."
            )

    def draw(self, trainer: pl.Trainer, pl_module: Any) -> Figure:
        """Values over the maze and futures beside those of the data; logs their distance."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        maze, data = Maze.of_source(datamodule), datamodule.val_data
        assert maze is not None
        order = torch.randperm(len(data))
        batch = move_data_to_device(data[order[: self.num_points]], pl_module.device)
        states, values = pl_module.place_values(batch)
        starts, futures = [], []
        if hasattr(pl_module, "sample_futures"):
            batch = move_data_to_device(data[order[: self.num_futures]], pl_module.device)
            how = pl_module.sampling(num_samples=4)
            for cell in maze.busy_cells(_xy(batch["observations"]), self.num_starts):
                rows = torch.from_numpy(cell).to(pl_module.device)
                first, real = batch["observations"][rows], batch["future_observations"][rows]
                drawn = pl_module.sample_futures(first, how=how).flatten(0, 1)
                pair = (_xy(real), _xy(drawn))
                starts.append(_xy(first).mean(0))
                futures.append((*pair, maze.total_variation(*pair)))
        if futures:
            distance = float(np.mean([distance for *_, distance in futures]))
            pl_module.log("val/occupancy_distance", distance, rank_zero_only=True)
        means = maze.square_means(_xy(states), values.cpu().numpy(), self.squares)
        return draw_map(maze.walls, maze.cell_size, means, starts, futures)


def _xy(states: Tensor) -> np.ndarray:
    """Positions (N, 2) of states (N, O)."""
    return states[:, :2].float().cpu().numpy()
