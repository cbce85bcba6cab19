"""Errors of skills that are decoded in the simulator, against held-out chunks."""

from __future__ import annotations

from typing import Any

import torch

from diffrl_lightning.callbacks.skill_figure import play_skills
from diffrl_lightning.data import ChunkData
from diffrl_lightning.envs.simulate import play
from diffrl_lightning.figures.charts import draw_errors
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.tools import outputs
from diffrl_lightning.tools.dynamics_error import errors_at, held_out
from diffrl_lightning.tools.sources import load_role
from diffrl_lightning.types import InputError


def skill_error(
    dataset: str,
    checkpoint: str,
    *,
    horizons: list[int] | None = None,
    num_chunks: int = 300,
    output: str = "skill_error",
    **data: Any,
) -> dict[str, dict[str, Any]]:
    """Decode the skills of held-out chunks in the simulator, from the chunks' first states.

    The decoder acts closed-loop: by the posterior's mean of the chunk (``skill``) and, to compare, by
    the prior's (``prior's mean``). Controls are the recorded actions (``recorded actions``: the
    simulator's own error) and the first state (``no change``). An error is the root mean square over
    the state's dimensions, in standard deviations of the data; shown are its mean over chunks, the
    standard error, and the ratio of the skill's to the prior's. Writes ``<output>.json`` and
    ``<output>.png``, and prints a table in Markdown.

    Args:
        dataset: what the skills were trained on, of planar MuJoCo or PointMaze.
        checkpoint: of a ``LatentSkills``.
        horizons: steps ahead; default 1, 2, 5, 10 and so on up to the skills' length.
        num_chunks: held-out chunks, spread evenly over all of them.
        output: path of the files, without ending.
        data: keywords of ``ChunkData`` that it was trained with; ``val_fraction`` and ``seed`` say
            which episodes are held out.
    """
    check_ranges(locals())
    model = load_role(checkpoint, "a LatentSkills", "skill_prior", "encode", "decode")
    length = model.horizon
    horizons = sorted(horizons or [h for h in (1, 2, 5, 10, 20, 50) if h < length] + [length])
    if not 1 <= horizons[0] <= horizons[-1] <= length:
        raise InputError(f"{horizons=} must lie in [1, {length}], the steps of a skill.")
    source = ChunkData(dataset, horizon=length, **data)
    batch, scale = held_out(source, num_chunks)
    start, actions = batch["observations"][:, 0], batch["actions"]
    real = torch.cat([batch["observations"], batch["next_observations"][:, None]], 1)
    env = source.make_env()
    played = play(env, start.numpy(), length, lambda _, k: actions[:, k].numpy()).next_observations
    paths = {
        "no change": start[:, None].expand_as(real),
        "recorded actions": torch.cat([start[:, None], torch.from_numpy(played)], 1),
    }
    with torch.no_grad():
        skills = {"skill": model.encode(batch).mean, "prior's mean": model.skill_prior(start).mean}
        for name, z in skills.items():
            paths[name] = play_skills(env, model, start, z, length, show_progress=True)
    env.close()
    results = {name: errors_at(horizons, path, real, scale) for name, path in paths.items()}
    ours, prior = (results[name]["mean"] for name in skills)
    results["skill"]["of_the_priors"] = [s / p for s, p in zip(ours, prior, strict=True)]

    outputs.print_header("", *(f"{h} steps" for h in horizons))
    for name, row in results.items():
        outputs.print_row(name, *outputs.with_errors(row["mean"], row["sem"]))
    ratios = results["skill"]["of_the_priors"]
    outputs.print_row("skill / prior's mean", *(f"{ratio:.2f}" for ratio in ratios))
    outputs.write(output, results, draw_errors(results))
    return results
