"""How far models of dynamics are off after a number of steps, as a table and a figure.

``python -m diffrl_lightning.dynamics_error --help``
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import ChunkData, Chunks
from diffrl_lightning.modules import DiffusionModule
from diffrl_lightning.normalizers import GaussianNormalizer
from diffrl_lightning.types import InputError

_LEAST_ERROR = 1e-3  # in the figure


def dynamics_error(
    dataset: str,
    models: dict[str, str],
    *,
    sampling: dict[str, dict[str, Any]] | None = None,
    horizons: list[int] | None = None,
    num_windows: int = 500,
    data: dict[str, Any] | None = None,
    seed: int = 0,
    output: str = "dynamics_error",
) -> dict[str, dict[str, Any]]:
    """Play the actions of held-out episodes in models, and hold the states against what was recorded.

    Writes ``<output>.json`` and ``<output>.png``, errors over horizons, and prints a table in Markdown.
    An error is the root mean square, over the state's dimensions, of the difference in standard
    deviations of the data; shown are its mean over windows and the standard error of that. As a control
    the state stays as it was.

    Args:
        dataset: what they were trained on.
        models: a name and a checkpoint for each.
        sampling: keywords of ``predict``, by name of the model.
        horizons: steps after which to look; default 1, 2, 5, 10, 20 and 50.
        num_windows: held-out windows, spread evenly over all of them.
        data: keywords of ``ChunkData`` that they were trained with, of which ``val_fraction`` and
            ``seed`` say which episodes are held out.
        seed: of the models' noise.
        output: path of the files, without ending.

    Raises:
        InputError: if a checkpoint predicts no states, or no held-out episode is long enough.
    """
    horizons = sorted(horizons or [1, 2, 5, 10, 20, 50])
    source = ChunkData(dataset, **(data or {}) | {"horizon": horizons[-1] + 1})
    batch, scale = held_out(source, num_windows)
    states, actions = batch["observations"], batch["actions"]
    results = {"no change": measured(states[:, :1].expand_as(states), states, scale, horizons)}
    for name, path in models.items():
        model: Any = DiffusionModule.load_from_checkpoint(path)
        if not hasattr(model, "predict"):
            raise InputError(
                f"{path!r} holds a {type(model).__name__}, which predicts no states: give the "
                "checkpoint of a model of dynamics."
            )
        torch.manual_seed(seed)
        begin = time.perf_counter()
        found = model.predict(states[:, 0], actions, **(sampling or {}).get(name, {}))
        seconds = time.perf_counter() - begin
        results[name] = measured(found.observations, states, scale, horizons)
        results[name]["ms_a_trajectory"] = 1e3 * seconds / len(states)
    print(
        f"| | {' | '.join(f'{h} steps' for h in horizons)} | ms |\n|{'---|' * (2 + len(horizons))}"
    )
    for name, result in results.items():
        cells = [f"{m:.3f} +- {s:.3f}" for m, s in zip(result["mean"], result["sem"], strict=True)]
        took = result.get("ms_a_trajectory")
        print(f"| {name} | {' | '.join(cells)} | {'-' if took is None else f'{took:.2f}'} |")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_errors(results).savefig(f"{output}.png", dpi=120)
    return results


def held_out(data: ChunkData, num_windows: int) -> tuple[Any, Tensor]:
    """Windows of full length from held-out episodes, and the standard deviations of states (O,).

    Args:
        data: which has not been set up yet.
        num_windows: spread evenly over all of them.

    Raises:
        InputError: if there are none.
    """
    data.prepare_data()
    data.setup("fit")
    length, chunks = data.horizon, data.val_data
    assert isinstance(chunks, Chunks)
    starts, episodes = chunks.starts(torch.arange(chunks.num_chunks))
    full = (chunks.ends[episodes] - starts >= length).nonzero()[:, 0]
    if not len(full):
        raise InputError(f"No held-out episode has {length} steps: look at shorter horizons.")
    chosen = torch.linspace(0, len(full) - 1, min(num_windows, len(full))).long()
    normalizer = GaussianNormalizer(data.observation_dim)
    normalizer.fit(*data.training_rows("observations"))
    return chunks[full[chosen]], normalizer.std


def measured(found: Tensor, real: Tensor, scale: Tensor, horizons: list[int]) -> dict[str, Any]:
    """Mean error over windows (N, L, O) after each horizon, and its standard error."""
    errors = ((found - real) / scale).square().mean(-1).sqrt()[:, horizons].double().numpy()
    return {
        "horizons": horizons,
        "mean": errors.mean(0).tolist(),
        "sem": (errors.std(0, ddof=1) / np.sqrt(len(errors))).tolist(),
    }


def draw_errors(results: dict[str, dict[str, Any]]) -> Figure:
    """Errors over horizons, a line with error bars for each model."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for index, (name, result) in enumerate(results.items()):
        style: dict[str, Any] = (
            {"color": "0.5", "ls": "--"} if index == 0 else {"color": f"C{index - 1}"}
        )
        axis.errorbar(
            result["horizons"],
            result["mean"],
            result["sem"],
            marker="o",
            capsize=3,
            label=name,
            **style,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=max(axis.get_ylim()[0], _LEAST_ERROR))
    axis.set_xticks(
        results["no change"]["horizons"], labels=map(str, results["no change"]["horizons"])
    )
    axis.set_xticks([], minor=True)
    axis.set_xlabel("steps ahead")
    axis.set_ylabel("error, in standard deviations of the data")
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.dynamics_error"):
        auto_cli(dynamics_error)
