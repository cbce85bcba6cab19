"""Rank correlation of a diffused value with held-out returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from diffrl_lightning.data import FutureData
from diffrl_lightning.figures.charts import draw_ranks
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.nets import mlp
from diffrl_lightning.normalizers import GaussianNormalizer
from diffrl_lightning.tools import outputs
from diffrl_lightning.tools.sources import load_role, read
from diffrl_lightning.types import InputError

_BOOTSTRAPS = 200


def value_ranks(
    dataset: str,
    checkpoint: str,
    *,
    num_states: int = 4_000,
    num_samples: int = 64,
    num_inference_steps: int | None = None,
    regression_steps: int = 10_000,
    noise_seed: int = 0,
    output: str = "value_ranks",
    **data: Any,
) -> dict[str, dict[str, float]]:
    """Spearman's correlation of V with the returns that followed, in held-out episodes.

    Baselines are a regression of the return on the state, an MLP trained on the same episodes, and the
    reward of the step itself. Episodes that were cut off count as going on as they ended, as in
    ``val/rank_correlation``. Standard errors are of a bootstrap over episodes. Writes ``<output>.json``
    and ``<output>.png``, and prints a table in Markdown.

    Args:
        dataset: what the value was trained on.
        checkpoint: of a ``DiffusedValue``.
        num_states: held-out steps, spread evenly over all of them.
        num_samples: futures of each.
        num_inference_steps: network evaluations of a future; default the role's.
        regression_steps: updates of the regression, of 256 steps each.
        noise_seed: of the noise and of the regression.
        output: path of the files, without ending.
        data: keywords of ``FutureData`` that it was trained with; ``val_fraction`` and ``seed`` say
            which episodes are held out.
    """
    check_ranges(locals())
    module = load_role(checkpoint, "a DiffusedValue", "sample_futures", "values")
    source = FutureData(dataset, discount=module.discount, **data)
    if not source.val_fraction:
        raise InputError("No episode is held out: give val_fraction above 0.")
    held_out: Any = read(source).val_data
    steps = len(held_out) // held_out.num_draws
    rows = torch.linspace(0, steps - 1, min(num_states, steps)).long()
    batch, episodes = held_out[rows], held_out.starts(rows)[1]
    states, returns = batch["observations"], batch["returns"]
    torch.manual_seed(noise_seed)
    how = module.sampling(num_samples=num_samples, num_inference_steps=num_inference_steps)
    values = {
        "V": module.values(states, how=how)[0],
        "regression of the return": _regression(source, regression_steps)(states),
        "reward of the step": batch["rewards"],
    }
    results = {name: _ranks(x, returns, episodes) for name, x in values.items()}
    outputs.print_header("", "rank correlation", "mean", "mean of the returns")
    for name, row in results.items():
        correlation = outputs.with_errors([row["rank_correlation"]], [row["sem"]])
        outputs.print_row(name, *correlation, f"{row['mean']:.4g}", f"{returns.mean():.4g}")
    titled = {f"{x}: {results[x]['rank_correlation']:.2f}": v.numpy() for x, v in values.items()}
    outputs.write(output, results, draw_ranks(titled, returns.numpy()))
    return results


def _regression(source: FutureData, steps: int) -> Callable[[Tensor], Tensor]:
    """An MLP from states (N, O) to the returns (N,) that followed in the training episodes."""
    train: Any = source.train_data
    count = len(train) // train.num_draws
    states = GaussianNormalizer(source.observation_dim)
    states.fit(*source.training_rows("observations"))
    sample = train[torch.randint(count, (min(count, 20_000),))]["returns"]
    mean, std = sample.mean(), sample.std() + 1e-8
    net = mlp(source.observation_dim, 256, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))

    def predict(observations: Tensor) -> Tensor:
        return net(states.normalize(observations))[:, 0]

    for _ in range(steps):
        batch = train[torch.randint(count, (256,))]
        target = (batch["returns"] - mean) / std
        loss = (predict(batch["observations"]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return lambda observations: mean + std * predict(observations).detach()


def _ranks(values: Tensor, returns: Tensor, episodes: Tensor) -> dict[str, float]:
    """Spearman's correlation of (N,) with (N,), its standard error over episodes, and the mean."""
    names = episodes.unique()
    rows = [(episodes == name).nonzero()[:, 0] for name in names]
    draws = []
    for _ in range(_BOOTSTRAPS):
        chosen = torch.cat([rows[i] for i in torch.randint(len(rows), (len(rows),))])
        draws.append(spearman_corrcoef(values[chosen], returns[chosen]))
    return {
        "rank_correlation": float(spearman_corrcoef(values, returns)),
        "sem": float(torch.stack(draws).nan_to_num().std()),
        "mean": float(values.mean()),
        "num_states": len(values),
        "num_episodes": len(names),
    }
