"""Geometry of PointMaze, its waypoint controller, and its evaluation environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.types import EnvSource, InputError

MazeMap = Sequence[Sequence[int | str]]

ENV_IDS = {
    "open": "PointMaze_Open-v3",
    "umaze": "PointMaze_UMaze-v3",
    "medium": "PointMaze_Medium-v3",
    "large": "PointMaze_Large-v3",
}
# Goal cells of D4RL's evaluation environments (Minari's PointMaze generation script).
GOAL_CELLS = {"open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
GOAL_RADIUS = 0.45


_CELLS = (0, 1, "r", "g", "c")


class Maze:
    """A map of cells, 1 is a wall; positions are the simulator's, centred on 0, cells of size 1.

    Args:
        maze_map: rows of cells, 1 a wall, 0, "r", "g" or "c" free.
        cell_size: side of a cell.
    """

    def __init__(self, maze_map: MazeMap, cell_size: float = 1.0) -> None:
        self.maze_map = [list(row) for row in maze_map]
        if len({len(row) for row in self.maze_map}) != 1:
            raise InputError("maze_map needs rows of equal lengths.")
        self.walls = np.array([[cell == 1 for cell in row] for row in self.maze_map])
        odd = {repr(cell) for row in self.maze_map for cell in row if cell not in _CELLS}
        if odd:
            raise InputError(
                f"maze_map has the cells {', '.join(sorted(odd))}: write 1 for a wall, 0 where it is "
                "free, and r, g or c where episodes begin, end, or do either."
            )
        if self.walls.all():
            raise InputError("maze_map has no free cell: write 0 where the agent may go.")
        self.cell_size = cell_size
        self._distances: dict[tuple[int, int], np.ndarray] = {}  # by goal, as they are asked for

    @classmethod
    def of(cls, env: Any) -> Maze | None:
        """The maze of an environment, or None where it has none."""
        maze = getattr(env.unwrapped, "maze", None)
        return None if maze is None else cls(maze.maze_map, maze.maze_size_scaling)

    @classmethod
    def of_source(cls, source: EnvSource) -> Maze | None:
        """The maze of a datamodule's environment, or None where it has none."""
        env = source.make_env()
        maze = cls.of(env)
        env.close()
        return maze

    @property
    def free_cells(self) -> list[tuple[int, int]]:
        """All cells (row, column) without a wall."""
        return [(int(r), int(c)) for r, c in np.argwhere(~self.walls)]

    def to_xy(self, cells: Any) -> np.ndarray:
        """Centres (..., 2) of cells (..., 2), which may be fractional."""
        cells = np.asarray(cells, float)
        rows, columns = self.walls.shape
        x = (cells[..., 1] + 0.5 - columns / 2) * self.cell_size
        y = (rows / 2 - cells[..., 0] - 0.5) * self.cell_size
        return np.stack([x, y], -1)

    def to_cells(self, xy: Any) -> np.ndarray:
        """Cells (..., 2) int that hold positions (..., 2); clipped to the map."""
        xy = np.asarray(xy, float) / self.cell_size
        rows, columns = self.walls.shape
        cells = np.stack([rows / 2 - xy[..., 1], xy[..., 0] + columns / 2], -1)
        return np.clip(np.floor(cells).astype(int), 0, [rows - 1, columns - 1])

    def in_wall(self, xy: Any) -> np.ndarray:
        """Whether positions (..., 2) lie in a wall (...)."""
        cells = self.to_cells(xy)
        return self.walls[cells[..., 0], cells[..., 1]]

    def crosses_wall(self, paths: Any) -> np.ndarray:
        """Whether paths (..., H, 2) touch a wall (...), at 10 points of each segment."""
        paths = np.asarray(paths, float)
        weights = np.linspace(0, 1, 10)[:, None, None]
        between = paths[..., None, :-1, :] * (1 - weights) + paths[..., None, 1:, :] * weights
        return np.asarray(self.in_wall(between).any((-1, -2)))

    def _cell_numbers(self, xy: Any) -> np.ndarray:
        """Flat indices (N,) of the cells that hold positions (N, 2)."""
        return np.ravel_multi_index(tuple(self.to_cells(xy).T), self.walls.shape)

    def busy_cells(self, xy: np.ndarray, count: int) -> list[np.ndarray]:
        """Rows of positions (N, 2) by cell, for ``count`` of the more visited half of the cells.

        The cells are evenly spread over that half, from the most visited one on.
        """
        index = self._cell_numbers(xy)
        numbers, counts = np.unique(index, return_counts=True)
        often = numbers[np.argsort(-counts, kind="stable")]
        middle = max(1, len(often) // 2)
        step = max(1, middle // max(1, count))
        return [np.flatnonzero(index == number) for number in often[:middle][::step][:count]]

    def total_variation(self, first: np.ndarray, second: np.ndarray) -> float:
        """Total variation between shares of cells, of positions (N, 2) and (M, 2), in [0, 1]."""
        shares = [
            np.bincount(self._cell_numbers(xy), minlength=self.walls.size) / len(xy)
            for xy in (first, second)
        ]
        return float(np.abs(shares[0] - shares[1]).sum() / 2)

    def square_means(
        self, xy: np.ndarray, values: np.ndarray, squares: int = 1
    ) -> np.ma.MaskedArray:
        """Mean of values (N,) at positions (N, 2) in each square, masked where there is none.

        With S squares along a cell's side it is (R * S, C * S), the first row at the top.
        """
        shape = np.array(self.walls.shape)
        limits = [(-side, side) for side in shape / 2 * self.cell_size]
        options: Any = {"bins": shape * squares, "range": limits}
        sums, counts = (
            np.histogram2d(-xy[:, 1], xy[:, 0], weights=weights, **options)[0]
            for weights in (values, None)
        )
        return np.ma.masked_array(sums / np.maximum(counts, 1), counts == 0)

    def _distances_to(self, goal: tuple[int, int]) -> np.ndarray:
        """Breadth-first number of steps from every cell to ``goal``; -1 where there is no way."""
        if goal in self._distances:
            return self._distances[goal]
        distances = self._distances[goal] = np.full(self.walls.shape, -1)
        distances[goal] = 0
        queue = deque([goal])
        while queue:
            cell = queue.popleft()
            for neighbour in self._neighbours(cell):
                if distances[neighbour] < 0:
                    distances[neighbour] = distances[cell] + 1
                    queue.append(neighbour)
        return distances

    def _neighbours(self, cell: tuple[int, int]) -> list[tuple[int, int]]:
        r, c = cell
        rows, columns = self.walls.shape
        around = ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
        inside = ((i, j) for i, j in around if 0 <= i < rows and 0 <= j < columns)
        return [neighbour for neighbour in inside if not self.walls[neighbour]]

    def shortest_path(self, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
        """Cells from ``start`` to ``goal``, both included; refused where there is no way."""
        distances = self._distances_to(goal)
        if distances[start] < 0:
            raise InputError(
                f"Cell {goal} can not be reached from {start}: open a way in maze_map."
            )
        path = [start]
        while path[-1] != goal:
            path.append(min(self._neighbours(path[-1]), key=lambda cell: distances[cell]))
        return path


class WaypointController:
    """D4RL's expert: follows the cells of the shortest path with a PD law.

    The gains, the threshold and the jitter are those of D4RL's ``waypoint_controller.py``.

    Args:
        maze: the map.
        rng: source of the waypoints' jitter.
    """

    kp, kd = 10.0, -1.0  # gains of the position's error and of the velocity
    threshold = 0.1  # distance at which a waypoint counts as reached
    jitter = 0.2  # waypoints move by up to this much of a cell

    def __init__(self, maze: Maze, rng: np.random.Generator) -> None:
        self.maze, self.rng = maze, rng
        self.goal: np.ndarray | None = None
        self.waypoints: list[np.ndarray] = []

    def act(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Force (2,) in [-1, 1] for a state (x, y, vx, vy) and a goal (x, y)."""
        if self.goal is None or not np.array_equal(goal, self.goal):
            self._plan(state[:2], goal)
        distance = np.linalg.norm(self.waypoints[0] - state[:2])
        if len(self.waypoints) > 1 and distance < self.threshold:
            self.waypoints.pop(0)
        force = self.kp * (self.waypoints[0] - state[:2]) + self.kd * state[2:4]
        return np.clip(force, -1, 1)

    def _plan(self, xy: np.ndarray, goal: np.ndarray) -> None:
        (start, end) = self.maze.to_cells([xy, goal]).tolist()
        between = self.maze.shortest_path(tuple(start), tuple(end))[1:-1]
        cells = np.reshape(between, (-1, 2)) - self.rng.uniform(0, self.jitter, (len(between), 2))
        self.goal = goal.copy()
        self.waypoints = [*self.maze.to_xy(cells), goal.copy()]


class WaypointPolicy:
    """The waypoint controller in N environments; the upper reference of a normalised score."""

    def __init__(self, maze: Maze, num_envs: int) -> None:
        self.maze = maze
        self.controllers = [WaypointController(maze, np.random.default_rng(0))] * num_envs

    def reset(self, mask: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Forget the waypoints where an episode begins."""
        for i in np.flatnonzero(mask).tolist():
            rng = np.random.default_rng(None if seeds is None else seeds[i])
            self.controllers[i] = WaypointController(self.maze, rng)

    def act(self, observations: Tensor) -> Tensor:
        """(N, 4 + 2) -> (N, 2)."""
        rows = observations.double().numpy()
        pairs = zip(self.controllers, rows, strict=True)
        forces = [controller.act(row[:4], row[4:6]) for controller, row in pairs]
        return torch.as_tensor(np.stack(forces), dtype=torch.float32)


def evaluation_kwargs(maze_map: MazeMap, goal_cell: tuple[int, int] | None = None) -> dict:
    """Keywords of an evaluation environment: one goal cell, any start, no reset at the goal.

    The goal is the map's cell "g", else ``goal_cell``, else the map's last free cell.
    """
    cells = [list(row) for row in maze_map]
    if not any(cell == "g" for row in cells for cell in row):
        free = Maze(maze_map).free_cells
        row, column = goal_cell if goal_cell in free else free[-1]
        cells[row][column] = "g"
    return {"maze_map": cells, "continuing_task": True, "reset_target": False}
