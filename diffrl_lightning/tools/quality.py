"""How good synthetic transitions are, beside controls, as a table and a figure.

``python -m diffrl_lightning.quality --help``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffrl_lightning.callbacks.sample_report import (
    PARTS,
    Rows,
    draw_marginals,
    joined_rows,
)
from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import TransitionData
from diffrl_lightning.envs.simulate import simulate
from diffrl_lightning.metrics import SampleQuality
from diffrl_lightning.types import InputError


def quality(
    real: str,
    synthetic: dict[str, str] | str,  # in this order, for a string is read as the first that fits
    *,
    num_rows: int = 40_000,
    num_neighbours: int = 2_000,
    num_simulated: int = 20_000,
    seed: int = 0,
    output: str = "quality",
) -> dict[str, dict[str, float]]:
    """Hold synthetic transitions against real ones.

    Writes ``<output>.json`` and ``<output>.png``, histograms of every dimension, and prints a table in
    Markdown: of the synthetic rows; of real rows, which is the best that can be had; of a Gaussian of
    the real rows' mean and covariance; and of real rows with rewards and next states shuffled. All are
    held against the rest of the real rows.

    Args:
        real: the real dataset.
        synthetic: the synthetic one, or a name and a dataset for each of several; the figure is of the
            first.
        num_rows: rows of each, drawn at random; at most a fifth of the real ones.
        num_neighbours: rows whose nearest real ones are looked for.
        num_simulated: rows that are simulated, in MuJoCo's planar environments; 0 for none.
        seed: of the draws.
        output: path of the files, without ending.

    Raises:
        InputError: if the datasets have unequal dimensions, or a name is that of a control.
    """
    synthetic = {"synthetic": synthetic} if isinstance(synthetic, str) else synthetic
    data = _data(real)
    rng = np.random.default_rng(seed)
    rest, held_out = _split(data, num_rows, rng)
    controls = {
        "real": held_out,
        "Gaussian": _gaussian(held_out, rng),
        "shuffled": _shuffled(held_out, rng),
    }
    if not synthetic or synthetic.keys() & controls.keys():
        raise InputError(f"Give synthetic datasets other names than {', '.join(controls)}.")
    drawn = {
        name: _drawn(dataset, data, len(held_out["rewards"]), rng)
        for name, dataset in synthetic.items()
    }
    results: dict[str, dict[str, float]] = {}
    for name, rows in (drawn | controls).items():
        metric = SampleQuality(num_neighbours, seed)
        metric.update(joined_rows(rest), real=True)
        metric.update(joined_rows(rows), real=False)
        results[name] = metric.compute() | {"terminal_rate": float(rows["terminations"].mean())}
        if num_simulated:
            results[name] |= _dynamics(data, rows, rest, num_simulated)
        if len(results) == 1:
            print(f"| | {' | '.join(results[name])} |\n|{'---|' * (1 + len(results[name]))}")
        print(f"| {name} | {' | '.join(f'{x:.4g}' for x in results[name].values())} |", flush=True)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_marginals(rest, next(iter(drawn.values()))).savefig(f"{output}.png", dpi=110)
    return results


def _data(dataset: str) -> TransitionData:
    data = TransitionData(dataset, val_fraction=0.0)
    data.prepare_data()
    data.setup("fit")
    return data


def _drawn(dataset: str, like: TransitionData, num_rows: int, rng: np.random.Generator) -> Rows:
    """So many rows of a dataset, or all, in random order."""
    data = _data(dataset)
    if (data.observation_dim, data.action_dim) != (like.observation_dim, like.action_dim):
        raise InputError(
            f"{like.datasets[0]!r} and {dataset!r} have unequal dimensions: give like datasets."
        )
    return _take(data, rng.permutation(len(_all(data)))[:num_rows])


def _all(data: TransitionData) -> Any:
    assert data.train_data is not None
    return data.train_data


def _take(data: TransitionData, rows: np.ndarray) -> Rows:
    batch = _all(data)[torch.from_numpy(rows)]
    return {name: batch[name] for name in (*PARTS, "terminations")}


def _split(data: TransitionData, num_rows: int, rng: np.random.Generator) -> list[Rows]:
    """All rows but some, and these."""
    order = rng.permutation(len(_all(data)))
    held_out = min(num_rows, len(order) // 5)
    return [_take(data, order[held_out:]), _take(data, order[:held_out])]


def _gaussian(rows: Rows, rng: np.random.Generator) -> Rows:
    x = joined_rows(rows).numpy().astype(np.float64)
    drawn = rng.multivariate_normal(x.mean(0), np.cov(x.T), len(x), method="eigh")
    widths = [rows[part][0].numel() for part in PARTS]
    parts = torch.from_numpy(drawn).float().split(widths, 1)
    result = {name: part.view_as(rows[name]) for name, part in zip(PARTS, parts, strict=True)}
    share = float(rows["terminations"].mean())
    return result | {"terminations": torch.from_numpy(rng.random(len(x)) < share).float()}


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    order = torch.from_numpy(rng.permutation(len(rows["rewards"])))
    return rows | {name: rows[name][order] for name in ("rewards", "next_observations")}


def _dynamics(data: TransitionData, rows: Rows, real: Rows, num_rows: int) -> dict[str, float]:
    """Against the simulator: errors of next states and rewards, in standard deviations of real ones.

    And the shares of rows that end in the simulator alone, and of those that are terminal here alone.
    """
    env = data.make_env()
    chosen = {name: x[:num_rows].numpy() for name, x in rows.items()}
    found = simulate(env, chosen["observations"], chosen["actions"])
    env.close()
    known = found.known
    state_error = chosen["next_observations"] - found.next_observations
    state_error /= real["next_observations"].numpy().std(0)
    reward_error = (chosen["rewards"] - found.rewards) / real["rewards"].numpy().std()
    ends, there = found.terminations[known], chosen["terminations"][known] > 0
    return {
        "dynamics_error": float(np.median(np.sqrt(np.square(state_error[known]).mean(1)))),
        "reward_error": float(np.median(np.abs(reward_error[known]))),
        "missed_terminals": float((ends & ~there).mean()),
        "false_terminals": float((there & ~ends).mean()),
        "simulated": int(known.sum()),
    }


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.quality"):
        auto_cli(quality)
