"""How far what an agent imagines is from what would come of it, over denoising steps.

``python -m diffrl_lightning.imagination_error --help``
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import OnlineData
from diffrl_lightning.envs.collect import Collector
from diffrl_lightning.envs.simulate import play
from diffrl_lightning.modules import DiffusionModule, DynamicsAgent
from diffrl_lightning.types import Imagined, InputError

_MOST_PLOTS = 4  # dimensions of the state
_MOST_LINES = 6  # trajectories


def imagination_error(
    env_id: str,
    checkpoint: str,
    *,
    steps: list[int] | None = None,
    num_states: int = 400,
    num_envs: int = 20,
    most_steps: int = 200,
    seed: int = 0,
    output: str = "imagination_error",
) -> dict[str, dict[str, Any]]:
    """Play imagined actions in the simulator, and hold the imagined states against what comes of them.

    States to begin with are some that the agent comes to in the environment, with its noise. From each
    it imagines a trajectory, whose actions are then played in the simulator. An error is the root mean
    square, over the state's dimensions, of the difference in standard deviations of the data, after
    the last step; over trajectories that have not ended by then (NaN if all have). Beside it stand the
    share of trajectories that end, imagined and real, the spread of the actions in the policy's
    standard deviations, which should be 1, and trajectories a second.

    Writes ``<output>.json`` and ``<output>.png``, imagined and real trajectories side by side at the
    most steps, and prints a table in Markdown.

    Args:
        env_id: Gymnasium id of the environment: planar MuJoCo, or one whose observation is its state.
        checkpoint: of a ``DynamicsAgent``.
        steps: network evaluations to look at; default 1, 2, 4 and so on up to the model's T.
        num_states: to begin with.
        num_envs: environments that they are gathered in.
        most_steps: states are of this many first steps of the environments.
        seed: of the episodes and the noise.
        output: path of the files, without ending.

    Raises:
        InputError: if the checkpoint is of another role, or of another environment.
    """
    agent: Any = DiffusionModule.load_from_checkpoint(checkpoint)
    if not isinstance(agent, DynamicsAgent):
        raise InputError(
            f"{checkpoint!r} holds a {type(agent).__name__}: give the checkpoint of a DynamicsAgent."
        )
    data = OnlineData(env_id, horizon=agent.horizon, num_envs=num_envs)
    if data.observation_dim != agent.observation_dim:
        raise InputError(
            f"{env_id!r} has {data.observation_dim} observations, the agent {agent.observation_dim}: "
            "give the environment that it learned in."
        )
    trained = agent.diffusion.num_train_timesteps
    steps = sorted(steps or [2**k for k in range(trained.bit_length()) if 2**k <= trained])
    torch.manual_seed(seed)
    states = _visited(agent, data, num_states, most_steps, seed)
    scale: Any = agent.trajectory.observations.std
    env, results = data.make_env(), {}
    for count in steps:
        begin = time.perf_counter()
        found, spread = agent.imagine(states, agent.policy, num_inference_steps=count)
        seconds = time.perf_counter() - begin
        real = _played(env, states, found.actions)
        results[str(count)] = _compared(found, real, scale) | {
            "spread": spread.item(),
            "trajectories_a_second": len(states) / seconds,
        }
    env.close()
    names = ["error", "error_sem", "ended", "really_ended", "spread", "trajectories_a_second"]
    print(f"| steps | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    for label, result in results.items():
        print(f"| {label} | {' | '.join(f'{result[name]:.3g}' for name in names)} |")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    _draw(found, real).savefig(f"{output}.png", dpi=120)
    return results


@torch.no_grad()
def _visited(agent: Any, data: OnlineData, count: int, most_steps: int, seed: int) -> Tensor:
    """States (N, O) that the agent comes to."""
    collector = Collector(data.make_vector_env(data.num_envs), seed)  # type: ignore[arg-type]

    def act(observations: Tensor) -> Tensor:
        mean, std = agent.policy(observations)
        return mean + std * torch.randn_like(mean)

    rows = [collector.step(act)[0]["observations"] for _ in range(most_steps)]
    collector.envs.close()
    seen = torch.cat(rows)
    return seen[torch.randperm(len(seen))[:count]]


def _played(env: gym.Env, states: Tensor, actions: Tensor) -> Imagined:
    """What really comes of actions (N, H, A) from states (N, O)."""
    given = actions.numpy()
    after = play(env, states.numpy(), given.shape[1], lambda _, k: given[:, k], show_progress=False)
    following = torch.from_numpy(after.next_observations)
    return Imagined(
        torch.cat([states[:, None], following[:, :-1]], 1),
        actions,
        torch.from_numpy(after.rewards),
        torch.from_numpy(after.terminations).float().cummax(1).values,
    )


def _compared(found: Imagined, real: Imagined, std: Tensor) -> dict[str, float]:
    errors = ((found.observations - real.observations) / std).square().mean(-1).sqrt()[:, -1]
    going = (real.terminations[:, -2] == 0) & (found.terminations[:, -2] == 0)
    left = errors[going].double()
    return {
        "error": left.mean().item(),
        "error_sem": (left.std() / len(left) ** 0.5).item(),
        "ended": found.terminations[:, -1].mean().item(),
        "really_ended": real.terminations[:, -1].mean().item(),
    }


def _draw(found: Imagined, real: Imagined) -> Figure:
    """Some trajectories: the state's dimensions over steps, imagined and real."""
    dims = min(found.observations.shape[-1], _MOST_PLOTS)
    figure = Figure(figsize=(3.2 * dims, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for dim, axis in enumerate(figure.subplots(1, dims, squeeze=False)[0]):
        for row in range(min(len(found.observations), _MOST_LINES)):
            for told, style, name in ((real, "-", "real"), (found, "--", "imagined")):
                last = int((told.terminations[row] == 0).sum()) + 1
                path = told.observations[row, :last, dim]
                axis.plot(path, style, color=f"C{row}", label=name if row == 0 else None)
        axis.set_xlabel("step")
        axis.set_title(f"observation {dim}")
        axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.imagination_error"):
        auto_cli(imagination_error)
