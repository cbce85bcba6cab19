"""Controls for PointMaze: what is reached without any model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.data import SequenceData
from diffrl_lightning.data.sources.base import SourceOptions
from diffrl_lightning.envs.evaluate import RandomPolicy
from diffrl_lightning.envs.pointmaze import Maze, WaypointPolicy
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.policies.planner import Plan, PlannerPolicy
from diffrl_lightning.tools import outputs
from diffrl_lightning.types import InputError, Policy

_COLUMNS = ("return_mean", "return_sem", "normalized_score", "success_rate", "wall_free_rate")


def controls(
    dataset: str = "pointmaze/umaze",
    *,
    num_episodes: int = 50,
    seed: int = 0,
    horizon: int = 24,
    stride: int = 8,
    lookahead: int = 12,
    **source: Any,
) -> None:
    """Print returns of the waypoint planner, of random actions, and of a straight line.

    Args:
        dataset: a PointMaze dataset, for its environment.
        num_episodes: episodes of each control.
        seed: of the first episode, as in ``rollout.seed``.
        horizon: steps of the straight line.
        stride: environment steps between its steps.
        lookahead: of the law that follows it.
        source: the dataset's environment.
    """
    check_ranges(locals())
    data = SequenceData(dataset, **vars(SourceOptions(**source)))
    n = min(10, num_episodes)
    policies: dict[str, Policy] = {
        "planner": control_policy("planner", data, n),
        "random": control_policy("random", data, n),
        "straight line": PlannerPolicy(
            partial(_straight_line, horizon=horizon),
            observation_dim=data.observation_dim,
            stride=stride,
            execute="states",
            lookahead=lookahead,
        ),
    }
    outputs.print_header("control", *_COLUMNS)
    for name, policy in policies.items():
        row = roll_out(policy, data, range(seed, seed + num_episodes), num_envs=n)[1].compute()
        outputs.print_row(name, *(f"{row[c]:.3f}" if c in row else "-" for c in _COLUMNS))


def control_policy(name: str, data: SequenceData, num_envs: int) -> Policy:
    """A policy without a model: PointMaze's waypoint ``planner``, or ``random`` actions.

    Raises:
        InputError: if the dataset's environment has no maze to plan in, or no box of actions.
    """
    box = data.action_space()
    if box is None:
        raise InputError(f"{data.datasets[0]!r} has no bounds of actions: name its environment.")
    if name == "random":
        return RandomPolicy(box.low, box.high, num_envs)
    maze = Maze.of_source(data)
    if maze is None:
        raise InputError(f"{data.datasets[0]!r} has no maze: name a PointMaze dataset.")
    return WaypointPolicy(maze, num_envs)


def _straight_line(observations: Tensor, goals: Tensor | None, *, horizon: int, **_: Any) -> Plan:
    """A plan that ignores walls: the straight line, at an even pace."""
    assert goals is not None
    weight = torch.linspace(0, 1, horizon)[:, None]
    positions = torch.lerp(observations[:, None, :2], goals[:, None], weight)
    zeros = torch.zeros_like(positions)
    return Plan(torch.cat([positions, zeros], -1), zeros)
