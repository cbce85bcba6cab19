"""Skills: where they lie in the latent space, and what they do in a maze."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.callbacks.pictures import ValidationPicture
from diffrl_lightning.envs.pointmaze import Maze
from diffrl_lightning.envs.simulate import play, simulate
from diffrl_lightning.figures.mazes import draw_skills
from diffrl_lightning.inputs import at_least
from diffrl_lightning.types import InputError


class SkillFigure(ValidationPicture):
    """After each validation, draws the skills of held-out chunks, and in a maze what they do there.

    The first panel is the latent space along its two principal components, coloured by the direction
    in which a chunk moves, outside mazes by its reward a step. In a maze the others begin in a few
    cells: paths of the data's chunks, above those of as many skills that the model draws there, decoded
    in the simulator; ``val/end_distance`` is the mean total variation between the occupancies of cells
    by their ends. The picture goes to TensorBoard and to ``skills_val.png``.

    Args:
        num_points: held-out chunks.
        num_starts: cells in which skills begin.
        num_skills: skills that are decoded in each.
    """

    picture = "skills"
    val_metrics = ("end_distance",)

    def __init__(self, num_points: int = 4_096, num_starts: int = 3, num_skills: int = 100) -> None:
        at_least(3, num_points=num_points)
        self.num_points, self.num_starts, self.num_skills = num_points, num_starts, num_skills

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a role without skills of its own, and a maze that can not be set to a state."""
        if not all(hasattr(pl_module, name) for name in ("encode", "sample_skills", "decode")):
            raise InputError(
                f"{type(pl_module).__name__} draws no skills: leave out the callback SkillFigure."
            )
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.num_starts and datamodule.env_id and Maze.of_source(datamodule) is not None:
            env = datamodule.make_env()
            dims = (datamodule.observation_dim, datamodule.action_dim)
            simulate(env, *(np.zeros((0, dim)) for dim in dims), show_progress=False)
            env.close()

    def draw(self, trainer: pl.Trainer, pl_module: Any) -> Figure:
        """The latent space, and in a maze paths of skills; logs the distance of their ends."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        maze = Maze.of_source(datamodule) if datamodule.env_id else None
        data = datamodule.val_data
        chosen = torch.randperm(len(data))[: self.num_points]
        batch = move_data_to_device(data[chosen], pl_module.device)
        encoded = pl_module.encode(batch)
        latents = encoded if isinstance(encoded, Tensor) else encoded.mean  # of a Gaussian
        latents = latents.float().cpu().numpy()
        if maze is None:
            rewards = (batch["rewards"].sum(1) / batch["steps"]).float().cpu().numpy()
            return draw_skills(latents, rewards, directions=False)
        paths = self._paths(datamodule, maze, batch, pl_module)
        if paths:
            distance = float(np.mean([distance for *_, distance in paths]))
            pl_module.log("val/end_distance", distance, rank_zero_only=True)
        x, y = (batch["next_observations"] - batch["observations"][:, 0]).T[:2].float().cpu()
        options: Any = {"walls": maze.walls, "cell_size": maze.cell_size, "paths": paths}
        return draw_skills(latents, torch.atan2(y, x).numpy(), directions=True, **options)

    def _paths(
        self, datamodule: Any, maze: Maze, batch: dict[str, Tensor], module: Any
    ) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """Of some cells: paths of full chunks, of skills, and the total variation of their ends."""
        env = datamodule.make_env()
        full = batch["mask"].all(1)
        states, ends = batch["observations"][full], batch["next_observations"][full]
        recorded = torch.cat([states, ends[:, None]], 1)[..., :2].float().cpu().numpy()
        found = []
        for rows in maze.busy_cells(recorded[:, 0], self.num_starts):
            chosen = torch.from_numpy(np.resize(rows, self.num_skills)).to(states.device)
            start = states[chosen, 0]
            skills = module.sample_skills(start)[:, 0]
            decoded = play_skills(env, module, start, skills, states.shape[1])[..., :2].numpy()
            real = recorded[rows]
            found.append((real, decoded, maze.total_variation(real[:, -1], decoded[:, -1])))
        env.close()
        return found


def play_skills(
    env: gym.Env, module: Any, start: Tensor, skills: Tensor, length: int, **options: Any
) -> Tensor:
    """States (N, length + 1, O) of the simulator where a decoder acts by skills (N, D)."""

    def act(states: np.ndarray, k: int) -> np.ndarray:
        steps = torch.full((len(states),), k, device=start.device)
        return (
            module.decode(torch.from_numpy(states).to(start), skills, steps).float().cpu().numpy()
        )

    first = start.float().cpu()
    after = play(env, first.numpy(), length, act, **{"show_progress": False} | options)
    return torch.cat([first[:, None], torch.from_numpy(after.next_observations)], 1)
