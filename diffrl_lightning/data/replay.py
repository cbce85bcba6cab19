"""Transitions that come while an agent learns, and synthetic ones beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from diffrl_lightning.data.sampler import ResumableLoader
from diffrl_lightning.types import InputError, RowName, TransitionBatch


class TransitionBuffer:
    """The last ``capacity`` transitions that were added.

    Args:
        capacity: transitions that it holds; when it is full, the oldest go.
        observation_dim: O.
        action_dim: A.

    Raises:
        InputError: if there is no room for one.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        if capacity < 1:
            raise InputError(f"{capacity=} must be at least 1.")
        self.capacity, self.added = capacity, 0
        shapes = {
            "observations": (observation_dim,),
            "actions": (action_dim,),
            "rewards": (),
            "next_observations": (observation_dim,),
            "terminations": (),
        }
        self.arrays = {name: torch.zeros(capacity, *shape) for name, shape in shapes.items()}

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def __getitem__(self, index: Tensor) -> TransitionBatch:
        """Transitions of these places, (B, ...); returns to go are not known and 0."""
        rows = {name: array[index] for name, array in self.arrays.items()}
        zero = torch.zeros_like(rows["rewards"])
        return TransitionBatch(**rows, steps=zero + 1, returns=zero, origins=zero.long())  # type: ignore[typeddict-item]

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Take in transitions (N, ...).

        Raises:
            InputError: if they are not finite; then none is taken in.
        """
        bad = [name for name in self.arrays if not bool(rows[name].isfinite().all())]
        if bad:
            raise InputError(
                f"The {', '.join(bad)} of new transitions hold NaN or infinite values."
            )
        n = len(rows["rewards"])
        places = (self.added + torch.arange(n))[-self.capacity :] % self.capacity
        for name, array in self.arrays.items():
            array[places] = rows[name][-self.capacity :].to(array)
        self.added += n

    def clear(self) -> None:
        """Forget all."""
        self.added = 0

    def state_dict(self) -> dict[str, Any]:
        """What is held, for a checkpoint."""
        # Copies: of a part of a tensor, all of its memory would be written.
        held = {name: array[: len(self)].clone() for name, array in self.arrays.items()}
        return {"capacity": self.capacity, "added": self.added} | held

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another buffer of the same capacity held.

        Raises:
            InputError: if it had another capacity.
        """
        if state["capacity"] != self.capacity:
            raise InputError(
                f"The checkpoint's buffer held {state['capacity']} transitions, this one holds "
                f"{self.capacity}: give it the same capacity."
            )
        self.added = state["added"]
        for name, array in self.arrays.items():
            array[: len(self)] = state[name]


class ReplayData(pl.LightningDataModule):
    """Batches from a buffer of real transitions that grows, and from one of synthetic ones.

    Whoever steps the environment calls ``real.add``, first before training begins, for the statistics;
    :class:`~diffrl_lightning.callbacks.Refill` fills ``synthetic``. Batch k depends on the seed, on k
    and on what the buffers then hold. Both travel in checkpoints, which replace what is there.

    Args:
        observation_dim: O.
        action_dim: A.
        capacity: of the real transitions.
        synthetic_capacity: of the synthetic ones.
        synthetic_share: of a batch, as soon as there are so many of them; the rest is real.
        batch_size: transitions of a batch.
        batches_per_epoch: after so many an epoch ends.
        seed: of the batches.

    Raises:
        InputError: if an argument is out of range.
    """

    makes: Literal["transitions"] = "transitions"
    goal_dim, num_origins = 0, 1

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        capacity: int = 1_000_000,
        synthetic_capacity: int = 1_000_000,
        synthetic_share: float = 0.5,
        batch_size: int = 256,
        batches_per_epoch: int = 1_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= synthetic_share <= 1:
            raise InputError(f"{synthetic_share=} must lie in [0, 1].")
        if batch_size < 1 or batches_per_epoch < 1:
            raise InputError(f"{batch_size=} and {batches_per_epoch=} must be at least 1.")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.real = TransitionBuffer(capacity, observation_dim, action_dim)
        self.synthetic = TransitionBuffer(synthetic_capacity, observation_dim, action_dim)
        self.num_synthetic = round(synthetic_share * batch_size)
        self.batch_size, self.batches_per_epoch, self.seed = batch_size, batches_per_epoch, seed

    def batch(self, k: int) -> TransitionBatch:
        """Batch ``k`` of what there is now.

        Raises:
            InputError: if there are no real transitions yet.
        """
        self._check_begun()
        rng = np.random.default_rng([self.seed, k])
        num_synthetic = self.num_synthetic if len(self.synthetic) >= self.num_synthetic else 0
        parts = [
            buffer[torch.from_numpy(rng.integers(len(buffer), size=n))]
            for buffer, n in (
                (self.real, self.batch_size - num_synthetic),
                (self.synthetic, num_synthetic),
            )
            if n
        ]
        return TransitionBatch(**{k: torch.cat([p[k] for p in parts]) for k in parts[0]})  # type: ignore[literal-required, typeddict-item]

    def train_dataloader(self) -> DataLoader:
        """Batches of what there is when each is drawn."""
        progress = None if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress
        position = (lambda: 0) if progress is None else (lambda: progress.total.ready)
        return ResumableLoader(_Batches(self, position), batch_size=None)

    def training_rows(self, name: RowName) -> tuple[Tensor, Tensor | None]:
        """All real values of a kind (M, D), which all count."""
        self._check_begun()
        array = self.real.arrays[name][: len(self.real)]
        return array.reshape(len(array), -1), None

    def training_pairs(self) -> tuple[Tensor, Tensor, None]:
        """All real states and those after them (M, O), which all count."""
        states, _ = self.training_rows("observations")
        return states, self.real.arrays["next_observations"][: len(states)], None

    def training_returns(self) -> Tensor:
        """Returns to go are not known: 0 each (M,)."""
        return torch.zeros(len(self.real))

    def action_space(self) -> None:
        """No bounds are known."""

    def state_dict(self) -> dict[str, Any]:
        """Both buffers."""
        return {"real": self.real.state_dict(), "synthetic": self.synthetic.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both buffers as they were."""
        self.real.load_state_dict(state_dict["real"])
        self.synthetic.load_state_dict(state_dict["synthetic"])

    def _check_begun(self) -> None:
        if not len(self.real):
            raise InputError("There are no transitions yet: add some before training.")


class _Batches(IterableDataset):
    def __init__(self, data: ReplayData, position: Callable[[], int]) -> None:
        self.data, self.position = data, position

    def __len__(self) -> int:
        return self.data.batches_per_epoch

    def __iter__(self) -> Iterator[TransitionBatch]:
        first = self.position()
        for k in range(first, first + len(self)):
            yield self.data.batch(k)
