"""How good synthetic transitions are, beside two controls, as a table and a figure.

``python -m diffrl_lightning.quality --help``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import TransitionData
from diffrl_lightning.envs.simulate import simulate
from diffrl_lightning.metrics import SampleQuality
from diffrl_lightning.types import InputError

Rows = dict[str, Tensor]
_PARTS = ("observations", "actions", "rewards", "next_observations")


def quality(
    real: str,
    synthetic: str,
    *,
    num_rows: int = 50_000,
    num_neighbours: int = 2_000,
    num_simulated: int = 2_000,
    seed: int = 0,
    output: str = "quality",
) -> dict[str, dict[str, float]]:
    """Hold synthetic transitions against real ones.

    Writes ``<output>.json`` and ``<output>.png``, histograms of every dimension, and prints a table in
    Markdown: of the synthetic rows; of real rows, which is the best that can be had; of a Gaussian of
    the real rows' mean and covariance; and of real rows with rewards and next states shuffled.

    Args:
        real: the real dataset.
        synthetic: the synthetic one.
        num_rows: rows of each, drawn at random.
        num_neighbours: rows whose nearest real ones are looked for.
        num_simulated: rows that are simulated, in MuJoCo's planar environments; 0 for none.
        seed: of the draws.
        output: path of the files, without ending.

    Raises:
        InputError: if the datasets have unequal dimensions.
    """
    data = _data(real)
    rng = np.random.default_rng(seed)
    first, second = _halves(data, num_rows, rng)
    other = _data(synthetic)
    if (other.observation_dim, other.action_dim) != (data.observation_dim, data.action_dim):
        raise InputError(f"{real!r} and {synthetic!r} have unequal dimensions: give like datasets.")
    drawn = _take(other, rng.permutation(len(_all(other)))[:num_rows])
    kinds = {
        "synthetic": drawn,
        "real": second,
        "Gaussian": _gaussian(first, rng),
        "shuffled": _shuffled(second, rng),
    }
    results: dict[str, dict[str, float]] = {}
    for name, rows in kinds.items():
        metric = SampleQuality(num_neighbours, seed)
        metric.update(_joined(first), real=True)
        metric.update(_joined(rows), real=False)
        results[name] = metric.compute() | {"terminal_rate": float(rows["terminations"].mean())}
        if num_simulated:
            results[name] |= _dynamics(data, rows, first, num_simulated)
        print(_line(name, results[name]), flush=True)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_marginals(first, drawn).savefig(f"{output}.png", dpi=110)
    return results


def draw_marginals(real: Rows, synthetic: Rows) -> Figure:
    """Histograms of every dimension, real and synthetic."""
    names = [
        f"{part} {i}" if real[part].ndim > 1 else part
        for part in _PARTS
        for i in range(real[part].shape[1] if real[part].ndim > 1 else 1)
    ]
    x, y = _joined(real).numpy(), _joined(synthetic).numpy()
    columns = 7
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * columns, 1.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, i + 1)
        low, high = np.quantile(x[:, i], [0.001, 0.999])
        bins = np.linspace(low, high if high > low else low + 1, 50).tolist()
        axis.hist(x[:, i], bins, density=True, color="0.75", label="real")
        axis.hist(y[:, i], bins, density=True, histtype="step", color="C3", label="synthetic")
        axis.set_title(name, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _data(dataset: str) -> TransitionData:
    data = TransitionData(dataset, val_fraction=0.0)
    data.prepare_data()
    data.setup("fit")
    return data


def _all(data: TransitionData) -> Any:
    assert data.train_data is not None
    return data.train_data


def _take(data: TransitionData, rows: np.ndarray) -> Rows:
    batch = _all(data)[torch.from_numpy(rows)]
    return {name: batch[name] for name in (*_PARTS, "terminations")}


def _halves(data: TransitionData, num_rows: int, rng: np.random.Generator) -> list[Rows]:
    """Two sets of rows that share none."""
    order = rng.permutation(len(_all(data)))
    half = min(num_rows, len(order) // 2)
    return [_take(data, order[:half]), _take(data, order[half : 2 * half])]


def _joined(rows: Rows) -> Tensor:
    return torch.cat(
        [rows[part].flatten(1) if rows[part].ndim > 1 else rows[part][:, None] for part in _PARTS],
        1,
    )


def _gaussian(rows: Rows, rng: np.random.Generator) -> Rows:
    x = _joined(rows).numpy().astype(np.float64)
    drawn = rng.multivariate_normal(x.mean(0), np.cov(x.T), len(x), method="eigh")
    widths = [rows[part][0].numel() for part in _PARTS]
    parts = torch.from_numpy(drawn).float().split(widths, 1)
    result = {name: part.view_as(rows[name]) for name, part in zip(_PARTS, parts, strict=True)}
    share = float(rows["terminations"].mean())
    return result | {"terminations": torch.from_numpy(rng.random(len(x)) < share).float()}


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    order = torch.from_numpy(rng.permutation(len(rows["rewards"])))
    return rows | {name: rows[name][order] for name in ("rewards", "next_observations")}


def _dynamics(data: TransitionData, rows: Rows, real: Rows, num_rows: int) -> dict[str, float]:
    """Errors of next states and rewards against the simulator, in standard deviations of real ones."""
    env = data.make_env()
    chosen = {name: rows[name][:num_rows].numpy() for name in _PARTS}
    following, rewards, known = simulate(env, chosen["observations"], chosen["actions"])
    env.close()
    state_error = (chosen["next_observations"] - following) / real["next_observations"].numpy().std(
        0
    )
    reward_error = (chosen["rewards"] - rewards) / real["rewards"].numpy().std()
    return {
        "dynamics_error": float(np.median(np.sqrt(np.square(state_error[known]).mean(1)))),
        "reward_error": float(np.median(np.abs(reward_error[known]))),
        "simulated": int(known.sum()),
    }


def _line(name: str, result: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{k} {v:.4g}" for k, v in result.items()) + " |"


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.quality"):
        auto_cli(quality)
