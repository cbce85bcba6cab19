"""One checkpoint, many ways to act: returns and the time of a decision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.data import SequenceData
from diffrl_lightning.data.sources.base import SourceOptions
from diffrl_lightning.figures.charts import draw_trade_offs
from diffrl_lightning.inputs import DEVELOPMENT_SEED, check_ranges
from diffrl_lightning.tools import outputs
from diffrl_lightning.tools.benchmarks.statistics import mean_and_error
from diffrl_lightning.tools.configs import check_yaml, find_config
from diffrl_lightning.tools.sources import load_role
from diffrl_lightning.types import EnvSource, Episode, InputError, Policy

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
    seed: int | None = None,
    num_envs: int = 10,
    timing_envs: list[int] | None = None,
    output: str = "compare",
    **source: Any,
) -> None:
    """Evaluate checkpoints under several ways to act, and choose one.

    Writes ``<output>.json`` after every row, ``<output>.png`` with returns against milliseconds, and
    prints a table in Markdown; its errors are over training seeds, those of a single one over
    episodes. On development episodes it says which row has the highest return, by which to act in
    tests; given a ``seed`` it chooses nothing, since test episodes only judge.

    Args:
        rows: a YAML file, or a shipped one (``compare/idql``), of names, each with the fields of the
            role's ``acting`` that it sets.
        ckpt_path: the checkpoint; ``{seed}`` in it stands for each training seed.
        dataset: what it was trained on, for its environment.
        value_ckpt: given to the rows that leave ``value_ckpt`` empty; ``{seed}`` as above.
        train_seeds: training seeds; default one checkpoint without a seed.
        only: names of the rows to evaluate; default all.
        num_episodes: episodes for each row and training seed.
        seed: of the first episode, as in ``rollout.seed``; default development episodes, those of
            validations, from 1,000,000 on.
        num_envs: environments that run at once.
        timing_envs: numbers of environments at which a decision is timed; default none.
        output: path of the files, without ending.
        source: the dataset's environment.
    """
    check_ranges(locals())
    variants = _read_rows(rows, only)
    data = SequenceData(dataset, **vars(SourceOptions(**source)))
    seeds: Sequence[int | None] = train_seeds or [None]
    models = {s: load_role(ckpt_path.format(seed=s), "a role") for s in seeds}
    first_seed = DEVELOPMENT_SEED if seed is None else seed
    results: dict[str, dict[str, Any]] = {}
    record: dict[str, Any] = {"first_seed": first_seed, "chosen": None, "rows": results}
    for name, row in variants.items():
        result: dict[str, Any] = {"acting": row, "seed_means": []}
        episodes: list[Episode] = []
        for s, model in models.items():
            chosen = dict(row)
            if value_ckpt is not None and row.get("value_ckpt", "") is None:
                chosen["value_ckpt"] = value_ckpt.format(seed=s)
            defaults = model.acting and model.acting()  # rather than as it was tested
            make = partial(model.make_policy, defaults, **chosen)
            tests = range(first_seed, first_seed + num_episodes)
            with torch.no_grad():
                of_seed = roll_out(make(), data, tests, num_envs=num_envs)[0].episodes
                for n in timing_envs or [] if s == seeds[0] else []:
                    result[f"ms_{n}"] = decision_ms(make(), data, n)
            result["seed_means"].append(float(np.mean([e.episode_return for e in of_seed])))
            episodes += of_seed
        results[name] = result | _statistics(episodes, data.ref_scores)
        if len(seeds) > 1:
            results[name]["return_sem"] = mean_and_error(result["seed_means"])[1]
        if len(results) == 1:
            outputs.print_header("", *_cells(results[name]))
        outputs.print_row(name, *_cells(results[name]).values())
        if seed is None:
            record["chosen"] = max(results, key=lambda n: results[n]["return_mean"])
        outputs.write(output, record)
    if timing_envs:
        outputs.write(output, record, draw_trade_offs(results, timing_envs))
    if seed is None:
        print(f"Chosen on development episodes: {record['chosen']}")


def _statistics(
    episodes: Sequence[Episode], ref_scores: tuple[float, float] | None
) -> dict[str, Any]:
    returns = [episode.episode_return for episode in episodes]
    spread = np.std(returns, ddof=1) if len(returns) > 1 else 0.0
    result: dict[str, Any] = {
        "return_mean": float(np.mean(returns)),
        "return_sem": float(spread / len(returns) ** 0.5),
        "returns": returns,
    }
    if any(
        episode.success is not None for episode in episodes
    ):  # those that are silent have failed
        result["success_rate"] = float(np.mean([bool(episode.success) for episode in episodes]))
    if ref_scores is not None:
        low, high = ref_scores
        result["normalized_score"] = 100 * (result["return_mean"] - low) / (high - low)
    return result


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


def _read_rows(path: str, only: list[str] | None) -> dict[str, dict[str, Any]]:
    rows = check_yaml(find_config(path), repr(path))
    for name, row in rows.items():
        if not isinstance(row, dict | None):
            raise InputError(
                f"{path!r}: the row {name!r} must hold fields and their values, not {row!r}."
            )
    unknown = set(only or []) - set(rows)
    if unknown:
        raise InputError(
            f"{path!r} has no row {', '.join(sorted(unknown))}: choose among {', '.join(rows)}."
        )
    return {name: row or {} for name, row in rows.items() if not only or name in only}


def _cells(result: dict[str, Any]) -> dict[str, str]:
    """A row of the table, by column."""
    score = result.get("normalized_score")
    cells = {
        "return": f"{result['return_mean']:.0f} +- {result['return_sem']:.0f}",
        "normalized score": "-" if score is None else f"{score:.1f}",
        "of each seed": " / ".join(f"{mean:.0f}" for mean in result["seed_means"]),
    }
    if "success_rate" in result:
        cells["success"] = f"success {result['success_rate']:.2f}"
    timed = {key: f"{ms:.1f} ms" for key, ms in result.items() if key.startswith("ms_")}
    return cells | timed
