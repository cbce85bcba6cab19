"""How well a diffused value orders held-out states, as a table and a figure.

``python -m diffrl_lightning.value_ranks --help``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import FutureData
from diffrl_lightning.modules import DiffusionModule
from diffrl_lightning.nets import mlp
from diffrl_lightning.normalizers import GaussianNormalizer
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
    data: dict[str, Any] | None = None,
    seed: int = 0,
    output: str = "value_ranks",
) -> dict[str, dict[str, float]]:
    """Correlate the ranks of V with those of the returns that followed, in held-out episodes.

    Beside V stand a plain regression of the return on the state, an MLP trained on the same episodes,
    and the reward of the step itself. Episodes that were cut off count as going on as they ended, as in
    ``val/rank_correlation``. Standard errors are of a bootstrap over episodes. Writes ``<output>.json``
    and ``<output>.png``, and prints a table in Markdown.

    Args:
        dataset: what the value was trained on.
        checkpoint: of a ``DiffusedValue``.
        num_states: held-out steps, spread evenly over all of them.
        num_samples: futures of each.
        num_inference_steps: network evaluations of a future; default the role's.
        regression_steps: updates of the regression, of 256 steps each.
        data: keywords of ``FutureData`` that it was trained with, of which ``val_fraction`` and
            ``seed`` say which episodes are held out; the discount is the model's.
        seed: of the noise and of the regression.
        output: path of the files, without ending.

    Raises:
        InputError: if the checkpoint is of another role, or no episode is held out.
    """
    module: Any = DiffusionModule.load_from_checkpoint(checkpoint)
    if not hasattr(module, "sample_futures"):
        raise InputError(
            f"{checkpoint!r} holds a {type(module).__name__}, which has no values of states: give the "
            "checkpoint of a DiffusedValue."
        )
    source = FutureData(dataset, **(data or {}) | {"discount": module.discount})
    source.prepare_data()
    source.setup("fit")
    held_out: Any = source.val_data
    if not source.val_fraction:
        raise InputError("No episode is held out: give data.val_fraction above 0.")
    steps = len(held_out) // held_out.num_draws
    rows = torch.linspace(0, steps - 1, min(num_states, steps)).long()
    batch, episodes = held_out[rows], held_out.starts(rows)[1]
    torch.manual_seed(seed)
    found = {
        "V": module.values(
            batch["observations"], num_samples=num_samples, num_inference_steps=num_inference_steps
        )[0],
        "regression of the return": _regression(source, regression_steps)(batch["observations"]),
        "reward of the step": batch["rewards"],
    }
    returns = batch["returns"]
    results = {name: _ranked(x, returns, episodes) for name, x in found.items()}
    print("| | rank correlation | mean | mean of the returns |\n|---|---|---|---|")
    for name, result in results.items():
        print(
            f"| {name} | {result['rank_correlation']:.3f} +- {result['sem']:.3f} | "
            f"{result['mean']:.4g} | {returns.mean():.4g} |"
        )
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_ranks(found, returns).savefig(f"{output}.png", dpi=120)
    return results


def _regression(source: FutureData, steps: int) -> nn.Module:
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
    for _ in range(steps):
        batch = train[torch.randint(count, (256,))]
        wanted = (batch["returns"] - mean) / std
        loss = (net(states.normalize(batch["observations"]))[:, 0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return _Told(states, net, mean, std)


class _Told(nn.Module):
    """A network of normalised states, in environment units."""

    def __init__(
        self, states: GaussianNormalizer, net: nn.Module, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__()
        self.states, self.net, self.mean, self.std = states, net, mean, std

    @torch.no_grad()
    def forward(self, observations: Tensor) -> Tensor:
        """(N, O) -> (N,)."""
        return self.mean + self.std * self.net(self.states.normalize(observations))[:, 0]


def _ranked(found: Tensor, returns: Tensor, episodes: Tensor) -> dict[str, float]:
    """Spearman's correlation (N,) with (N,), its standard error over episodes, and the mean."""
    names = episodes.unique()
    rows = [(episodes == name).nonzero()[:, 0] for name in names]
    draws = []
    for _ in range(_BOOTSTRAPS):
        chosen = torch.cat([rows[i] for i in torch.randint(len(rows), (len(rows),))])
        draws.append(spearman_corrcoef(found[chosen], returns[chosen]))
    return {
        "rank_correlation": float(spearman_corrcoef(found, returns)),
        "sem": float(torch.stack(draws).nan_to_num().std()),
        "mean": float(found.mean()),
        "num_states": len(found),
        "num_episodes": len(names),
    }


def draw_ranks(found: dict[str, Tensor], returns: Tensor) -> Figure:
    """Each value over the return that followed."""
    figure = Figure(figsize=(4.0 * len(found), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, values) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        axis.plot(returns, values, ".", ms=2, alpha=0.3)
        axis.axline((float(returns.mean()),) * 2, slope=1, color="0.5", lw=1, ls="--")
        axis.set_title(f"{name}: {spearman_corrcoef(values, returns):.2f}", fontsize=10)
        axis.set_xlabel("return that followed")
    return figure


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.value_ranks"):
        auto_cli(value_ranks)
