"""Controls for PointMaze: what one gets without any model.

``python -m diffrl_lightning.controls --dataset=pointmaze/umaze`` prints the table that a planner's
figures belong beside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import SequenceData
from diffrl_lightning.envs.evaluate import RandomPolicy
from diffrl_lightning.envs.pointmaze import Maze, WaypointPolicy
from diffrl_lightning.policies.planner import Plan, PlanFn, PlannerPolicy
from diffrl_lightning.types import Generators, InputError, Policy

_COLUMNS = ("return_mean", "return_sem", "normalized_score", "success_rate", "wall_free_rate")


def straight_line(horizon: int) -> PlanFn:
    """A planning function that ignores walls: the straight line, at an even pace."""

    def plan(
        observations: Tensor,
        goals: Tensor | None,
        *,
        generator: Generators,
        elapsed: Tensor,
        previous: Plan | None,
    ) -> Plan:
        assert goals is not None
        weight = torch.linspace(0, 1, horizon)[:, None]
        positions = torch.lerp(observations[:, None, :2], goals[:, None], weight)
        states = torch.cat([positions, torch.zeros_like(positions)], -1)
        return Plan(states, torch.zeros_like(positions))

    return plan


def controls(
    dataset: str = "pointmaze/umaze",
    *,
    num_episodes: int = 50,
    seed: int = 0,
    horizon: int = 24,
    stride: int = 8,
    lookahead: int = 12,
) -> None:
    """Print returns of the waypoint planner, of random actions, and of a straight line.

    Args:
        dataset: a PointMaze dataset, for its environment.
        num_episodes: episodes of each control.
        seed: of the first episode, as in ``rollout.seed``.
        horizon: steps of the straight line.
        stride: environment steps between its steps.
        lookahead: of the law that follows it.
    """
    data = SequenceData(dataset, horizon=horizon, stride=stride)
    maze = Maze.of(data.make_env())
    if maze is None:
        raise InputError(f"{dataset!r} has no maze: name a PointMaze dataset.")
    n = min(10, num_episodes)
    box = data.make_env().action_space
    policies: dict[str, Policy] = {
        "planner": WaypointPolicy(maze, n),
        "random": RandomPolicy(box.low, box.high, n),  # type: ignore[attr-defined]
        "straight line": PlannerPolicy(
            straight_line(horizon),
            observation_dim=data.observation_dim,
            stride=stride,
            execute="states",
            lookahead=lookahead,
        ),
    }
    print(f"{'control':14s}" + "".join(f"{name:>18s}" for name in _COLUMNS))
    for name, policy in policies.items():
        figures = roll_out(policy, data, range(seed, seed + num_episodes), num_envs=n)[1].compute()
        cells = [f"{figures[c]:18.3f}" if c in figures else f"{'-':>18s}" for c in _COLUMNS]
        print(f"{name:14s}" + "".join(cells))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    with exit_on_bad_input():
        auto_cli(controls, as_positional=False)
