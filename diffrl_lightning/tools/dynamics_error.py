"""Errors of models of dynamics over horizons."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffrl_lightning.data import ChunkData, Chunks
from diffrl_lightning.figures.charts import draw_errors
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.normalizers import GaussianNormalizer
from diffrl_lightning.tools import outputs
from diffrl_lightning.tools.sources import load_role, read
from diffrl_lightning.types import InputError


def dynamics_error(
    dataset: str,
    models: dict[str, str],
    *,
    sampling: dict[str, dict[str, Any]] | None = None,
    horizons: list[int] | None = None,
    num_windows: int = 500,
    noise_seed: int = 0,
    output: str = "dynamics_error",
    **data: Any,
) -> dict[str, dict[str, Any]]:
    """Predict the states of held-out episodes from their actions.

    An error is the root mean square over the state's dimensions, in standard deviations of the data;
    shown are its mean over windows and the standard error. The control predicts no change. Writes
    ``<output>.json`` and ``<output>.png``, errors over horizons, and prints a table in Markdown.

    Args:
        dataset: what the models were trained on.
        models: a name and a checkpoint for each.
        sampling: keywords of ``predict``, by name of the model.
        horizons: steps ahead; default 1, 2, 5, 10, 20 and 50.
        num_windows: held-out windows, spread evenly over all of them.
        noise_seed: of the models' noise.
        output: path of the files, without ending.
        data: keywords of ``ChunkData`` that they were trained with; ``val_fraction`` and ``seed`` say
            which episodes are held out.
    """
    check_ranges(locals())
    if not models:
        raise InputError("models is empty: give a name and a checkpoint for each model.")
    horizons = sorted(horizons or [1, 2, 5, 10, 20, 50])
    batch, scale = held_out(ChunkData(dataset, horizon=horizons[-1] + 1, **data), num_windows)
    states, actions = batch["observations"], batch["actions"]
    results = {"no change": errors_at(horizons, states[:, :1].expand_as(states), states, scale)}
    for name, path in models.items():
        model = load_role(path, "a model of dynamics", "predict")
        torch.manual_seed(noise_seed)
        begin = time.perf_counter()
        predicted = model.predict(states[:, 0], actions, **(sampling or {}).get(name, {}))
        seconds = time.perf_counter() - begin
        results[name] = errors_at(horizons, predicted.observations, states, scale)
        results[name]["ms_a_trajectory"] = 1e3 * seconds / len(states)
    outputs.print_header("", *(f"{h} steps" for h in horizons), "ms")
    for name, row in results.items():
        took = f"{row['ms_a_trajectory']:.2f}" if "ms_a_trajectory" in row else "-"
        outputs.print_row(name, *outputs.with_errors(row["mean"], row["sem"]), took)
    outputs.write(output, results, draw_errors(results))
    return results


def held_out(data: ChunkData, num_windows: int) -> tuple[Any, Tensor]:
    """Windows of full length from held-out episodes, and the standard deviations of states (O,).

    Args:
        data: which has not been set up yet.
        num_windows: spread evenly over all of them.
    """
    length, chunks = data.horizon, read(data).val_data
    assert isinstance(chunks, Chunks)
    starts, episodes = chunks.starts(torch.arange(chunks.num_starts))
    full = (chunks.ends[episodes] - starts >= length).nonzero()[:, 0]
    if not len(full):
        raise InputError(f"No held-out episode has {length} steps: look at shorter horizons.")
    chosen = torch.linspace(0, len(full) - 1, min(num_windows, len(full))).long()
    normalizer = GaussianNormalizer(data.observation_dim)
    normalizer.fit(*data.training_rows("observations"))
    return chunks[full[chosen]], normalizer.std


def errors_at(
    horizons: list[int], predicted: Tensor, real: Tensor, scale: Tensor
) -> dict[str, Any]:
    """Normalised RMSE of states (N, L, O) at each horizon: mean over windows and standard error."""
    rmse = ((predicted - real) / scale).square().mean(-1).sqrt()[:, horizons].double().numpy()
    return {
        "horizons": horizons,
        "mean": rmse.mean(0).tolist(),
        "sem": (rmse.std(0, ddof=1) / np.sqrt(len(rmse))).tolist(),
    }
