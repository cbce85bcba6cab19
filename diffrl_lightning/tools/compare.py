"""One checkpoint, many ways to act: returns and the time of a decision, as a table and a figure.

``python -m diffrl_lightning.compare --help``
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import SequenceData
from diffrl_lightning.modules import DiffusionModule
from diffrl_lightning.types import EnvSource, InputError, Policy

_CALLS = 10  # decisions that are timed


def compare(
    rows: str,
    ckpt_path: str,
    dataset: str,
    *,
    value_ckpt: str | None = None,
    train_seeds: list[int] | None = None,
    only: list[str] | None = None,
    num_episodes: int = 10,
    seed: int = 0,
    num_envs: int = 10,
    timing_envs: list[int] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    goal_key: str | None = None,
    output: str = "compare",
) -> None:
    """Evaluate checkpoints under several choices of sampling.

    Writes ``<output>.json`` after every row, ``<output>.png`` with returns against milliseconds, and
    prints a table in Markdown. Runs on one thread.

    Args:
        rows: a YAML file of names, each with keywords of the role's ``make_policy``.
        ckpt_path: the checkpoint; ``{seed}`` in it stands for each training seed.
        dataset: what it was trained on, for its environment.
        value_ckpt: given to the rows that leave ``value_ckpt`` empty; ``{seed}`` as above.
        train_seeds: training seeds; default one checkpoint without a seed.
        only: names of the rows to evaluate; default all.
        num_episodes: episodes for each row and training seed.
        seed: of the first episode, as in ``rollout.seed``.
        num_envs: environments that run at once.
        timing_envs: numbers of environments at which a decision is timed; default none.
        env_kwargs: keywords of ``gymnasium.make``.
        goal_key: entry of a dictionary observation that is the goal, as in the training's data; "none"
            for models that are not told.
        output: path of the files, without ending.
    """
    variants = _read_rows(rows, only)
    source = SequenceData(dataset, env_kwargs=env_kwargs, goal_key=goal_key)
    seeds: Sequence[int | None] = train_seeds or [None]
    models = {s: DiffusionModule.load_from_checkpoint(ckpt_path.format(seed=s)) for s in seeds}
    results: dict[str, dict[str, Any]] = {}
    for name, kwargs in variants.items():
        returns: list[float] = []
        successes: list[bool] = []
        result: dict[str, Any] = {"policy_kwargs": kwargs, "seed_means": []}
        for s, model in models.items():
            chosen = dict(kwargs)
            if value_ckpt is not None and kwargs.get("value_ckpt", "") is None:
                chosen["value_ckpt"] = value_ckpt.format(seed=s)
            with torch.no_grad():
                evaluation, _ = roll_out(
                    model.make_policy(**chosen),
                    source,
                    range(seed, seed + num_episodes),
                    num_envs=num_envs,
                )
                for n in timing_envs or [] if s == seeds[0] else []:
                    result[f"ms_{n}"] = decision_ms(model.make_policy(**chosen), source, n)
            of_seed = [episode.episode_return for episode in evaluation.episodes]
            result["seed_means"].append(float(np.mean(of_seed)))
            returns += of_seed
            successes += [e.success for e in evaluation.episodes if e.success is not None]
        spread = np.std(returns, ddof=1) if len(returns) > 1 else 0.0
        result |= {
            "return_mean": float(np.mean(returns)),
            "return_sem": float(spread / len(returns) ** 0.5),
            "returns": returns,
        }
        if successes:
            result["success_rate"] = float(np.mean(successes))
        if source.ref_scores is not None:
            low, high = source.ref_scores
            result["normalized_score"] = 100 * (result["return_mean"] - low) / (high - low)
        results[name] = result
        print(_line(name, result), flush=True)
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    if timing_envs:
        draw_trade(results, timing_envs).savefig(f"{output}.png", dpi=120)


def decision_ms(policy: Policy, source: EnvSource, num_envs: int) -> float:
    """Median milliseconds of a call that plans in ``num_envs`` environments, by wall time."""
    envs = source.make_vector_env(num_envs)
    observations = torch.as_tensor(envs.reset(seed=0)[0], dtype=torch.float32)
    envs.close()
    everyone = torch.ones(num_envs, dtype=torch.bool)
    times = []
    policy.reset(everyone, range(num_envs))
    for call in range(_CALLS + 2):
        begin = time.perf_counter()
        policy.act(observations)
        if call >= 2:  # the first two warm up
            times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times))


def draw_trade(results: dict[str, dict[str, Any]], timing_envs: list[int]) -> Figure:
    """Return against the time of a decision, one panel for each number of environments."""
    figure = Figure(figsize=(5.2 * len(timing_envs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(timing_envs), squeeze=False, sharey=True)[0]
    for axis, n in zip(axes, timing_envs, strict=True):
        for index, (name, result) in enumerate(results.items()):
            x, y = result[f"ms_{n}"], result["return_mean"]
            axis.errorbar(
                x, y, result["return_sem"], fmt="o", ms=7, capsize=3, color=f"C{index}", label=name
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"milliseconds a decision, {n} environment{'s' if n > 1 else ''}")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("return (mean and standard error)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _read_rows(path: str, only: list[str] | None) -> dict[str, dict[str, Any]]:
    if not Path(path).is_file():
        raise InputError(
            f"There is no file {path!r} of rows: give a YAML file of names and keywords."
        )
    rows = yaml.safe_load(Path(path).read_text())
    unknown = set(only or []) - set(rows)
    if unknown:
        raise InputError(
            f"{path!r} has no row {', '.join(sorted(unknown))}: choose among {', '.join(rows)}."
        )
    return {name: kwargs or {} for name, kwargs in rows.items() if not only or name in only}


def _line(name: str, result: dict[str, Any]) -> str:
    seeds = " / ".join(f"{mean:.0f}" for mean in result["seed_means"])
    score = result.get("normalized_score")
    cells = [
        name,
        f"{result['return_mean']:.0f} +- {result['return_sem']:.0f}",
        "-" if score is None else f"{score:.1f}",
        seeds,
        *([f"success {result['success_rate']:.2f}"] if "success_rate" in result else []),
        *(f"{ms:.1f} ms" for key, ms in result.items() if key.startswith("ms_")),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.compare"):
        auto_cli(compare)
