"""How closely skills, decoded from their first states, repeat chunks that were held out.

``python -m diffrl_lightning.skill_error --help``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import ChunkData
from diffrl_lightning.tools.dynamics_error import draw_errors, held_out, measured
from diffrl_lightning.envs.simulate import play
from diffrl_lightning.modules import DiffusionModule, LatentSkills
from diffrl_lightning.types import InputError


def skill_error(
    dataset: str,
    checkpoint: str,
    *,
    horizons: list[int] | None = None,
    num_chunks: int = 300,
    data: dict[str, Any] | None = None,
    output: str = "skill_error",
) -> dict[str, dict[str, Any]]:
    """Play skills of held-out chunks in the simulator, and hold the states against those recorded.

    From a chunk's first state the decoder of actions acts by itself, in the states that it comes to:
    by the skill that the encoder sees in the chunk (``skill``) and, to compare, by the mean of the
    Gaussian prior (``prior's mean``). As controls the recorded actions are played (``recorded
    actions``: nothing but the simulator), and the state stays as it was (``no change``). An error is
    the root mean square, over the state's dimensions, of the difference in standard deviations of the
    data; shown are its mean over chunks and the standard error of that, and what the skill's error is
    of the prior's.

    Writes ``<output>.json`` and ``<output>.png``, and prints a table in Markdown.

    Args:
        dataset: what the skills were trained on, of planar MuJoCo or PointMaze.
        checkpoint: of a ``LatentSkills``.
        horizons: steps after which to look; default 1, 2, 5, 10 and so on up to the skills' length.
        num_chunks: held-out chunks, spread evenly over all of them.
        data: keywords of ``ChunkData`` that it was trained with, of which ``val_fraction`` and ``seed``
            say which episodes are held out; the horizon is the model's.
        output: path of the files, without ending.

    Raises:
        InputError: if the checkpoint is of another role, a horizon is beyond its skills, or no chunk is
            held out.
    """
    model: Any = DiffusionModule.load_from_checkpoint(checkpoint)
    if not isinstance(model, LatentSkills):
        raise InputError(
            f"{checkpoint!r} holds a {type(model).__name__}: give the checkpoint of a LatentSkills."
        )
    length = model.horizon
    horizons = sorted(horizons or [h for h in (1, 2, 5, 10, 20, 50) if h < length] + [length])
    if not 1 <= horizons[0] <= horizons[-1] <= length:
        raise InputError(f"{horizons=} must lie in [1, {length}], the steps of a skill.")
    source = ChunkData(dataset, **(data or {}) | {"horizon": length})
    batch, scale = held_out(source, num_chunks)
    start, actions = batch["observations"][:, 0], batch["actions"]
    real = torch.cat([batch["observations"], batch["next_observations"][:, None]], 1)
    with torch.no_grad():
        skills = {"skill": model.encode(batch).mean, "prior's mean": model.skill_prior(start).mean}
    env = source.make_env()
    found = {"no change": start[:, None].expand_as(real)}
    found["recorded actions"] = _path(env, start, length, lambda states, k: actions[:, k])
    for name, z in skills.items():
        found[name] = _path(
            env,
            start,
            length,
            lambda states, k, z=z: model.decode(states, z, torch.full((len(z),), k)),
        )
    env.close()
    results = {name: measured(path, real, scale, horizons) for name, path in found.items()}
    ours, prior = (results[name]["mean"] for name in skills)
    results["skill"]["of_the_priors"] = [s / p for s, p in zip(ours, prior, strict=True)]

    print(f"| | {' | '.join(f'{h} steps' for h in horizons)} |\n|{'---|' * (1 + len(horizons))}")
    for name, result in results.items():
        cells = [f"{m:.3f} +- {s:.3f}" for m, s in zip(result["mean"], result["sem"], strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    ratios = [f"{ratio:.2f}" for ratio in results["skill"]["of_the_priors"]]
    print(f"| skill / prior's mean | {' | '.join(ratios)} |")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_errors(results).savefig(f"{output}.png", dpi=120)
    return results


@torch.no_grad()
def _path(env: gym.Env, start: Tensor, length: int, act: Any) -> Tensor:
    """States (N, length + 1, O) from the first ones (N, O), by actions of (states, step)."""

    def play_by(states: np.ndarray, k: int) -> np.ndarray:
        return act(torch.from_numpy(states), k).numpy()

    after = play(env, start.numpy(), length, play_by)
    return torch.cat([start[:, None], torch.from_numpy(after.next_observations)], 1)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.skill_error"):
        auto_cli(skill_error)
