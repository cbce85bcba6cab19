"""How close synthetic data are to real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Rows = dict[str, Tensor]
PARTS = ("observations", "actions", "rewards", "next_observations")  # a trajectory has no next ones


class SampleQuality(Metric):
    """Marginals, correlations and nearest neighbours of synthetic rows against real ones.

    * ``marginal``: 1 - the Kolmogorov-Smirnov statistic, mean over dimensions; 1 is best.
    * ``correlation``: 1 - half the distance of Pearson's correlations, mean over pairs; 1 is best.
    * ``nearest``: median distance of a synthetic row to the nearest real one, in standard deviations of
      the real ones, and ``nearest_low``, the distance that only 5 % of rows are below; ``nearest_real``
      and ``nearest_real_low`` are those of real rows to the nearest other one. A synthesizer that
      copies is far below in the first, one that copies a part in the second.

    Dimensions that are constant in the real data are left out.

    Args:
        num_neighbours: rows of each kind whose nearest ones are looked for; 0 for none.
        seed: of their choice.
        kwargs: those of every metric.
    """

    full_state_update = False
    real: list[Tensor]
    synthetic: list[Tensor]

    def __init__(self, num_neighbours: int = 2_000, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_neighbours, self.seed = num_neighbours, seed
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("synthetic", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor, real: bool) -> None:
        """Take in rows (N, D), real or synthetic ones."""
        (self.real if real else self.synthetic).append(rows)

    def compute(self) -> dict[str, float]:
        """All measures; correlations only of several dimensions."""
        real, synthetic = dim_zero_cat(self.real), dim_zero_cat(self.synthetic)
        varies = real.std(0) > 1e-6 * (1 + real.mean(0).abs())
        real, synthetic = real[:, varies].double(), synthetic[:, varies].double()
        result = {"marginal": float(1 - kolmogorov_smirnov(real, synthetic).mean())}
        d = real.shape[1]
        if d > 1:
            ours, theirs = real.T.corrcoef(), synthetic.T.corrcoef().nan_to_num()
            rows, columns = torch.triu_indices(d, d, 1)
            distance = (ours - theirs)[rows, columns].abs().mean()
            result["correlation"] = float(1 - distance / 2)
        if self.num_neighbours:
            result |= self._nearest(real, synthetic)
        return result

    def _nearest(self, real: Tensor, synthetic: Tensor) -> dict[str, float]:
        """Distances of synthetic rows, and of held-out real ones, to the other real rows."""
        generator = torch.Generator(real.device).manual_seed(self.seed)
        scale = real.std(0)

        def shuffled(x: Tensor) -> Tensor:
            order = torch.randperm(len(x), generator=generator, device=x.device)
            return (x[order] / scale).float()

        real, synthetic = shuffled(real), shuffled(synthetic)[: self.num_neighbours]
        n = min(self.num_neighbours, len(real) // 2)
        held_out, others = real[:n], real[n:]
        result = {}
        for name, rows in (("nearest", synthetic), ("nearest_real", held_out)):
            distance = _nearest_distance(rows, others)
            result[name] = float(distance.median())
            result[f"{name}_low"] = float(distance.quantile(0.05))
        return result


def steps_of(batch: Any) -> Rows:
    """Transitions as they are, and the steps of trajectories (B, H, ...) as rows."""
    rows = {name: batch[name] for name in PARTS if name in batch}
    if rows["rewards"].ndim > 1:
        rows = {name: value.flatten(0, 1) for name, value in rows.items()}
    return rows


def joined_rows(rows: Rows) -> Tensor:
    """Rows of several arrays as one matrix (N, D)."""
    return torch.cat([rows[name].reshape(len(rows[name]), -1) for name in PARTS if name in rows], 1)


def column_names(rows: Rows) -> list[str]:
    """A name for each column of :func:`joined_rows`."""
    names = []
    for part in (part for part in PARTS if part in rows):
        columns = [f"{part} {i}" for i in range(rows[part].shape[-1])]
        names += columns if rows[part].ndim > 1 else [part]
    return names


def kolmogorov_smirnov(first: Tensor, second: Tensor) -> Tensor:
    """Largest distance of the columns' empirical distributions, (N, D) and (M, D) -> (D,) in [0, 1]."""
    first, second = (x.T.contiguous().sort().values for x in (first, second))
    points = torch.cat([first, second], 1)
    shares = [
        torch.searchsorted(x, points, right=True).double() / x.shape[1] for x in (first, second)
    ]
    return (shares[0] - shares[1]).abs().amax(1)


def _nearest_distance(rows: Tensor, others: Tensor, chunk: int = 256) -> Tensor:
    """Euclidean distance of each row (N, D) to the nearest of the others (M, D)."""
    return torch.cat([torch.cdist(part, others).amin(1) for part in rows.split(chunk)])
