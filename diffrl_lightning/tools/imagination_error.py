"""Errors of imagined trajectories against the simulator, over network evaluations."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from diffrl_lightning.envs.collect import Collector
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.envs.simulate import play
from diffrl_lightning.figures.charts import draw_model_rollouts
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.tools import outputs
from diffrl_lightning.tools.sources import load_role
from diffrl_lightning.types import Imagined, InputError

_COLUMNS = ("error", "error_sem", "ended", "really_ended", "spread", "trajectories_a_second")
_DRAWN = 6  # trajectories


def imagination_error(
    env_id: str,
    checkpoint: str,
    *,
    env_kwargs: dict[str, Any] | None = None,
    steps: list[int] | None = None,
    num_states: int = 400,
    num_envs: int = 20,
    most_steps: int = 200,
    seed: int = 0,
    output: str = "imagination_error",
) -> dict[str, dict[str, Any]]:
    """Play imagined actions in the simulator, and compare the states.

    Imagination begins in states that the agent visits in the environment, with its noise. An error is
    the root mean square over the state's dimensions, in standard deviations of the data, after the
    last step, over trajectories that have not ended by then (NaN if all have). Beside it stand the
    shares of trajectories that end, imagined and real, the spread of the actions in the policy's
    standard deviations, which should be 1, and trajectories a second. Writes ``<output>.json`` and
    ``<output>.png``, imagined and real trajectories at the most steps, and prints a table in Markdown.

    Args:
        env_id: Gymnasium id of the environment: planar MuJoCo, or one whose observation is its state.
        checkpoint: of a ``DynamicsAgent``.
        env_kwargs: keywords of ``gymnasium.make``.
        steps: network evaluations; default 1, 2, 4 and so on up to the model's T.
        num_states: to begin with.
        num_envs: environments that they are gathered in.
        most_steps: states are of this many first steps of the environments.
        seed: of the episodes and the noise.
        output: path of the files, without ending.
    """
    check_ranges(locals())
    agent = load_role(checkpoint, "a DynamicsAgent", "imagine", "policy")
    config = EnvConfig(env_id, env_kwargs or {})
    env = config.make()
    (dim,) = env.observation_space.shape or ()
    if dim != agent.observation_dim:
        raise InputError(
            f"{env_id!r} has {dim} observations, the agent {agent.observation_dim}: give the "
            "environment that it learned in."
        )
    trained = agent.diffusion.num_train_timesteps
    steps = sorted(steps or [2**k for k in range(trained.bit_length()) if 2**k <= trained])
    torch.manual_seed(seed)
    collector = Collector(config.make_vector(num_envs), seed)  # type: ignore[arg-type]
    states = _visited(agent, collector, num_states, most_steps)
    scale: Tensor = agent.trajectory.observations.std
    results = {}
    for count in steps:
        begin = time.perf_counter()
        imagined, spread = agent.imagine(states, agent.policy, num_inference_steps=count)
        seconds = time.perf_counter() - begin
        real = played(env, states, imagined.actions)
        results[str(count)] = _errors(imagined, real, scale) | {
            "spread": spread.item(),
            "trajectories_a_second": len(states) / seconds,
        }
    env.close()
    outputs.print_header("steps", *_COLUMNS)
    for label, row in results.items():
        outputs.print_row(label, *(f"{row[name]:.3g}" for name in _COLUMNS))
    outputs.write(output, results, draw_model_rollouts(_until_end(real), _until_end(imagined)))
    return results


@torch.no_grad()
def _visited(agent: Any, collector: Collector, count: int, most_steps: int) -> Tensor:
    """Some of the states (N, O) that the agent visits."""

    def act(observations: Tensor) -> Tensor:
        mean, std = agent.policy(observations)
        return mean + std * torch.randn_like(mean)

    rows = [collector.step(act)[0]["observations"] for _ in range(most_steps)]
    collector.envs.close()
    seen = torch.cat(rows)
    return seen[torch.randperm(len(seen))[:count]]


def played(env: gym.Env, states: Tensor, actions: Tensor) -> Imagined:
    """Trajectories of the simulator, by actions (N, H, A) from states (N, O)."""
    given = actions.numpy()
    after = play(env, states.numpy(), given.shape[1], lambda _, k: given[:, k], show_progress=False)
    following = torch.from_numpy(after.next_observations)
    return Imagined(
        torch.cat([states[:, None], following[:, :-1]], 1),
        actions,
        torch.from_numpy(after.rewards),
        torch.from_numpy(after.terminations).float().cummax(1).values,
    )


def _errors(imagined: Imagined, real: Imagined, scale: Tensor) -> dict[str, float]:
    difference = (imagined.observations - real.observations) / scale
    going = (real.terminations[:, -2] == 0) & (imagined.terminations[:, -2] == 0)
    rmse = difference[:, -1].square().mean(-1).sqrt()[going].double()
    return {
        "error": rmse.mean().item(),
        "error_sem": (rmse.std() / len(rmse) ** 0.5).item(),
        "ended": imagined.terminations[:, -1].mean().item(),
        "really_ended": real.terminations[:, -1].mean().item(),
    }


def _until_end(trajectories: Imagined) -> list[Any]:
    """States of a few trajectories, each up to its end."""
    pairs = zip(trajectories.observations[:_DRAWN], trajectories.terminations, strict=False)
    return [path[: int((ended == 0).sum()) + 1].numpy() for path, ended in pairs]
