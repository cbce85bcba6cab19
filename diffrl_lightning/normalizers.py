"""Normalisers: statistics per dimension, as buffers, so that they travel in the checkpoint."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from diffrl_lightning.inputs import check_ranges, one_of
from diffrl_lightning.types import InputError, TrainingData

NormalizerKind = Literal["gaussian", "limits", "cdf", "none"]
BOUNDED = ("limits", "cdf")  # these map the data to [-1, 1]
_LEAST_SHARE = 0.005  # of the rows that are equal, from which on they pile up
_LEAST_ROWS = 10


class Normalizer(nn.Module):
    """Maps data (..., D) in environment units to the scale a network works on, and back.

    This one leaves them as they are.

    Args:
        dim: D.
    """

    fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, data: Tensor, rows: Tensor | None = None) -> None:
        """Take the statistics of data (N, D), or of the rows where ``rows`` (N,) is True.

        They are taken a dimension at a time, so that data are not copied whole.

        Raises:
            InputError: if the data have another width, or are not finite.
        """
        if data.ndim != 2 or data.shape[1] != self.dim:
            raise InputError(f"A normaliser of {self.dim} dimensions got data {tuple(data.shape)}.")
        for dim in range(self.dim):
            column = data[:, dim] if rows is None else data[rows, dim]
            if not bool(torch.isfinite(column).all()):
                raise InputError("The data hold NaN or infinite values: remove them.")
            self._fit(dim, column)
        self.fitted.fill_(True)
        self._check_range(data)

    def _check_range(self, data: Tensor) -> None:
        """Refuse data that are too large for the precision of the statistics."""
        ends = self.normalize(torch.stack([data.amin(0), data.amax(0)]))
        bad = ~ends.isfinite().all(0)
        if bool(bad.any()):
            raise InputError(
                f"Dimension {int(bad.int().argmax())} of the data spans more than float32 can scale: "
                "give it in other units."
            )

    def _fit(self, dim: int, column: Tensor) -> None:
        """Take the statistics of one dimension's values (N,)."""

    def normalize(self, x: Tensor) -> Tensor:
        """(..., D) in environment units -> (..., D) normalised."""
        return x

    def unnormalize(self, x: Tensor) -> Tensor:
        """(..., D) normalised -> (..., D) in environment units."""
        return x


class GaussianNormalizer(Normalizer):
    """Zero mean and unit variance; a constant dimension is only shifted."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def _fit(self, dim: int, column: Tensor) -> None:
        std, mean = torch.std_mean(column.double(), correction=0)
        self.mean[dim] = mean
        self.std[dim] = torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0)

    def normalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (x - self.mean) / self.std

    def unnormalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.std + self.mean


class LimitsNormalizer(Normalizer):
    """Smallest and largest value to -1 and 1.

    A dimension whose values differ by less than 1e-4, or by less than a millionth of their size, is
    only shifted, so that what lies beside them does not explode.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("low", -torch.ones(dim))
        self.register_buffer("high", torch.ones(dim))

    def _fit(self, dim: int, column: Tensor) -> None:
        low, high = column.aminmax()
        if high - low < max(1e-4, 1e-6 * float(low.abs())):
            middle = low / 2 + high / 2
            margin = max(1.0, 1e-6 * float(middle.abs()))  # within the precision of large values
            low, high = middle - margin, middle + margin
        self.low[dim], self.high[dim] = low, high

    def normalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); values outside the data's limits go beyond [-1, 1]."""
        return 2 * (x - self.low) / (self.high - self.low) - 1

    def unnormalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (x + 1) / 2 * (self.high - self.low) + self.low


class CDFNormalizer(Normalizer):
    """The empirical distribution function of each dimension, mapped to [-1, 1].

    The function is kept as 1025 quantiles and interpolated between them. Values outside the data go to
    -1 and 1; a constant dimension goes to 0 and comes back as its constant.
    """

    quantiles: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("quantiles", torch.linspace(-1, 1, 1025).repeat(dim, 1))

    def _fit(self, dim: int, column: Tensor) -> None:
        n, k = len(column), self.quantiles.shape[1]
        position = torch.linspace(0, n - 1, k, dtype=torch.float64)
        low = position.long()
        ordered = column.sort().values
        high = ordered[(low + 1).clamp_max(n - 1)]
        self.quantiles[dim] = torch.lerp(ordered[low], high, (position - low).float())

    def normalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D) in [-1, 1]; a value that repeats goes to the middle of its run."""
        flat = x.reshape(-1, self.dim).T.contiguous()
        last = self.quantiles.shape[1] - 1
        left = torch.searchsorted(self.quantiles, flat)
        right = torch.searchsorted(self.quantiles, flat, right=True)
        below, above = (left - 1).clamp(0, last), right.clamp(0, last)
        q_below, q_above = self.quantiles.gather(1, below), self.quantiles.gather(1, above)
        gap = q_above - q_below
        between = below + (flat - q_below) / torch.where(gap > 0, gap, 1.0) * (above - below)
        position = torch.where(right > left, (left + right - 1) / 2, between).clamp(0, last)
        return (2 * position / last - 1).T.reshape(x.shape)

    def unnormalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D) within the data's limits."""
        last = self.quantiles.shape[1] - 1
        x = x.to(self.quantiles.dtype)  # autocast may have lowered it
        position = ((x.reshape(-1, self.dim).T + 1) / 2 * last).clamp(0, last)
        low = position.long()
        knots = self.quantiles
        low_values, high_values = knots.gather(1, low), knots.gather(1, (low + 1).clamp_max(last))
        return torch.lerp(low_values, high_values, position - low).T.reshape(x.shape)


class BoundNormalizer(Normalizer):
    """Moves values that pile up at the ends of their dimension outwards, and takes them back exactly.

    Actions that were clipped, and states at a limit, are many equal values, which a model of continuous
    densities smears: half of them fall short of the bound. Seen as values at some distance beyond it
    they may be smeared by half of that, and come back as the bound itself. What lies within the other
    half of the gap is taken for a smeared value from inside, and reflected.

    Args:
        inner: the normaliser of the values so moved.
        gap: how far, in standard deviations of the data.
    """

    low: Tensor
    high: Tensor
    offset: Tensor

    def __init__(self, inner: Normalizer, gap: float) -> None:
        super().__init__(inner.dim)
        self.inner, self.gap = inner, gap
        self.register_buffer("low", torch.full((self.dim,), -torch.inf))
        self.register_buffer("high", torch.full((self.dim,), torch.inf))
        self.register_buffer("offset", torch.zeros(self.dim))

    def fit(self, data: Tensor, rows: Tensor | None = None) -> None:
        """As :meth:`Normalizer.fit`; a bound has at least 10 rows, and 0.5 % of all."""
        super().fit(data, rows)
        self.inner.fitted.fill_(True)

    def _fit(self, dim: int, column: Tensor) -> None:
        enough = max(_LEAST_ROWS, _LEAST_SHARE * len(column))
        low, high = column.aminmax()
        self.low[dim] = low if (column == low).sum() >= enough else -torch.inf
        self.high[dim] = high if (column == high).sum() >= enough else torch.inf
        self.offset[dim] = self.gap * column.double().std(correction=0)
        self.inner._fit(dim, _moved(column, self.low[dim], self.high[dim], self.offset[dim]))

    def normalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.inner.normalize(_moved(x, self.low, self.high, self.offset))

    def unnormalize(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), within the ends at which values pile up."""
        x = self.inner.unnormalize(x)
        for bound, beyond in ((self.high, x - self.high), (self.low, self.low - x)):
            outside = beyond > 0
            reflected = torch.where(outside, 2 * bound - x, x)
            x = torch.where(outside & (beyond > self.offset / 2), bound, reflected)
        return x


def _moved(x: Tensor, low: Tensor, high: Tensor, offset: Tensor) -> Tensor:
    return x + offset * ((x >= high).to(x) - (x <= low).to(x))


def make_normalizer(kind: NormalizerKind, dim: int, bound_gap: float = 0.0) -> Normalizer:
    """A normaliser by name, in a :class:`BoundNormalizer` where there is to be a gap."""
    kinds: dict[str, type[Normalizer]] = {
        "gaussian": GaussianNormalizer,
        "limits": LimitsNormalizer,
        "cdf": CDFNormalizer,
        "none": Normalizer,
    }
    one_of([*kinds], normalizer=kind)
    check_ranges({"bound_gap": bound_gap})
    normalizer = kinds[kind](dim)
    return BoundNormalizer(normalizer, bound_gap) if bound_gap else normalizer


class TrajectoryNormalizer(nn.Module):
    """Trajectories (B, H, A + O), actions first, made of actions and states and split again.

    Args:
        kind: of the normalisers.
        observation_dim: O.
        action_dim: A.
        action_kind: of the actions' normaliser, where it is another.
        bound_gap: as in :func:`make_normalizer`.
    """

    def __init__(
        self,
        kind: NormalizerKind,
        observation_dim: int,
        action_dim: int,
        action_kind: NormalizerKind | None = None,
        bound_gap: float = 0.0,
    ) -> None:
        super().__init__()
        self.actions = make_normalizer(action_kind or kind, action_dim, bound_gap)
        self.observations = make_normalizer(kind, observation_dim, bound_gap)

    def fit(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes."""
        self.actions.fit(*data.training_rows("actions"))
        self.observations.fit(*data.training_rows("observations"))

    def join(self, actions: Tensor, observations: Tensor) -> Tensor:
        """(..., A) and (..., O) in environment units -> (..., A + O) normalised."""
        parts = self.actions.normalize(actions), self.observations.normalize(observations)
        return torch.cat(parts, -1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., A + O) normalised -> (..., A) and (..., O) in environment units."""
        actions, observations = x.split([self.actions.dim, self.observations.dim], -1)
        return self.actions.unnormalize(actions), self.observations.unnormalize(observations)
