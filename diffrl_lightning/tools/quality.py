"""How good synthetic transitions are, beside controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffrl_lightning.data import TransitionData
from diffrl_lightning.data.sources.base import SourceOptions
from diffrl_lightning.envs.simulate import simulate
from diffrl_lightning.figures.charts import draw_marginals
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.metrics.synthesis import (
    PARTS,
    Rows,
    SampleQuality,
    column_names,
    joined_rows,
)
from diffrl_lightning.tools import outputs
from diffrl_lightning.tools.sources import read
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
    **source: Any,
) -> dict[str, dict[str, float]]:
    """Measure how close synthetic transitions are to real ones.

    Writes ``<output>.json`` and ``<output>.png``, histograms of every dimension, and prints a table in
    Markdown: of the synthetic rows; of held-out real rows, an upper bound; of a Gaussian of the real
    rows' mean and covariance; and of real rows with rewards and next states shuffled. All are compared
    with the rest of the real rows.

    Args:
        real: the real dataset.
        synthetic: the synthetic one, or a name and a dataset for each of several; the figure is of the
            first.
        num_rows: rows of each, drawn at random; at most a fifth of the real ones.
        num_neighbours: rows whose nearest real neighbours are searched.
        num_simulated: rows that are simulated, in MuJoCo's planar environments; 0 for none.
        seed: of the draws.
        output: path of the files, without ending.
        source: the environment of all datasets.
    """
    check_ranges(locals())
    synthetic = {"synthetic": synthetic} if isinstance(synthetic, str) else synthetic
    data = _data(real, **source)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.train_data))  # type: ignore[arg-type]
    count = min(num_rows, len(order) // 5)
    rest, held_out = _rows(data, order[count:]), _rows(data, order[:count])
    controls = {
        "real": held_out,
        "Gaussian": _gaussian(held_out, rng),
        "shuffled": _shuffled(held_out, rng),
    }
    if not synthetic or synthetic.keys() & controls.keys():
        raise InputError(f"Give synthetic datasets other names than {', '.join(controls)}.")
    drawn = {}
    for name, dataset in synthetic.items():
        other = _data(dataset, **source)
        if (other.observation_dim, other.action_dim) != (data.observation_dim, data.action_dim):
            raise InputError(
                f"{real!r} and {dataset!r} have unequal dimensions: give like datasets."
            )
        order = rng.permutation(len(other.train_data))  # type: ignore[arg-type]
        drawn[name] = _rows(other, order[:count])
    results: dict[str, dict[str, float]] = {}
    for name, rows in (drawn | controls).items():
        metric = SampleQuality(num_neighbours, seed)
        metric.update(joined_rows(rest), real=True)
        metric.update(joined_rows(rows), real=False)
        results[name] = metric.compute() | {"terminal_rate": float(rows["terminations"].mean())}
        if num_simulated:
            results[name] |= _dynamics(data, rows, rest, num_simulated)
        if len(results) == 1:
            outputs.print_header("", *results[name])
        outputs.print_row(name, *(f"{x:.4g}" for x in results[name].values()))
    first = joined_rows(next(iter(drawn.values())))
    figure = draw_marginals(column_names(rest), joined_rows(rest).numpy(), first.numpy())
    outputs.write(output, results, figure)
    return results


def _data(dataset: str, **source: Any) -> TransitionData:
    return read(TransitionData(dataset, val_fraction=0.0, **vars(SourceOptions(**source))))


def _rows(data: TransitionData, index: np.ndarray) -> Rows:
    batch: Any = data.train_data[torch.from_numpy(index)]  # type: ignore[index]
    return {name: batch[name] for name in (*PARTS, "terminations")}


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
    """Errors against the simulator.

    Of next states and rewards the median, in standard deviations of the real ones; of terminations the
    shares of rows that are terminal in the simulator alone, and in the data alone.
    """
    env = data.make_env()
    chosen = {name: x[:num_rows].numpy() for name, x in rows.items()}
    truth = simulate(env, chosen["observations"], chosen["actions"])
    env.close()
    known = truth.known
    state_error = chosen["next_observations"] - truth.next_observations
    state_error /= real["next_observations"].numpy().std(0)
    reward_error = (chosen["rewards"] - truth.rewards) / real["rewards"].numpy().std()
    real_ends, ends = truth.terminations[known], chosen["terminations"][known] > 0
    return {
        "dynamics_error": float(np.median(np.sqrt(np.square(state_error[known]).mean(1)))),
        "reward_error": float(np.median(np.abs(reward_error[known]))),
        "missed_terminals": float((real_ends & ~ends).mean()),
        "false_terminals": float((ends & ~real_ends).mean()),
        "simulated": int(known.sum()),
    }
