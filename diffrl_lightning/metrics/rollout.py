"""Statistics of rollouts, summed over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

_QUANTITIES = ("return", "length", "success", "plan", "decision_seconds")


class RolloutMetrics(Metric):
    """Mean return, its standard error, success and the like, over all episodes of all processes.

    Args:
        ref_scores: random and expert return, for the normalised score in percent (D4RL).
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, ref_scores: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.ref_scores = ref_scores
        for name in ("counts", "sums", "squares"):
            zeros = torch.zeros(len(_QUANTITIES), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, quantity: str, values: Tensor, repeats: int = 1) -> None:
        """Take in values (n,) of a quantity: return, length, success, plan or decision_seconds.

        ``success`` is of the episodes that tell it: as soon as one does, the others count as failures.
        ``plan`` is 1 for a plan that crosses no wall; ``decision_seconds`` is the time of ``repeats``
        decisions.
        """
        i = _QUANTITIES.index(quantity)
        values = values.to(self.sums)
        self.counts[i] += values.numel() * repeats
        self.sums[i] += values.sum()
        self.squares[i] += values.square().sum()

    def compute(self) -> dict[str, float]:
        """All statistics that have values."""
        counts, sums = self.counts.tolist(), self.sums.tolist()
        mean = {q: s / n for q, s, n in zip(_QUANTITIES, sums, counts, strict=True) if n}
        n = counts[0]
        if not n:
            return {}
        variance = max(float(self.squares[0]) / n - mean["return"] ** 2, 0.0)
        result = {
            "return_mean": mean["return"],
            "return_sem": (variance / max(n - 1, 1)) ** 0.5,
            "episode_length": mean["length"],
            "num_episodes": n,
            "decision_ms": 1e3 * mean.get("decision_seconds", 0.0),
        }
        if self.ref_scores is not None:
            low, high = self.ref_scores
            result["normalized_score"] = 100 * (mean["return"] - low) / (high - low)
        if "success" in mean:
            result["success_rate"] = sums[_QUANTITIES.index("success")] / n
        if "plan" in mean:
            result["wall_free_rate"] = mean["plan"]
        return result
