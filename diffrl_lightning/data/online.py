"""Batches of steps that come while an agent learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffrl_lightning.data.buffer import ReplayBuffer
from diffrl_lightning.data.envs import MakesEnvs
from diffrl_lightning.data.sampler import BatchStream, ResumableLoader, batches_drawn
from diffrl_lightning.data.sources.base import SourceOptions
from diffrl_lightning.data.sources.scores import check_scores
from diffrl_lightning.envs.actions import continuous
from diffrl_lightning.envs.collect import Collector
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.inputs import RangeChecked
from diffrl_lightning.types import ChunkBatch, InputError, RowName, TrainingData, TransitionBatch


class GrowingData(RangeChecked, pl.LightningDataModule, TrainingData, ABC):
    """Batches from a buffer that grows: batch k depends on the seed, on k, and on what is held then.

    Args:
        batch_size: items of a batch.
        batches_per_epoch: after so many an epoch ends.
        pin_memory: copy batches to page-locked memory, for CUDA.
        seed: of the batches, and of what is done to fill the buffer.
    """

    buffer: ReplayBuffer  # of the environment's steps

    def __init__(
        self,
        *,
        batch_size: int = 256,
        batches_per_epoch: int = 1_000,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.pin_memory, self.seed = pin_memory, seed

    @abstractmethod
    def batch(self, k: int) -> Any:
        """Batch ``k`` of what there is now."""

    def train_dataloader(self) -> DataLoader:
        """Batches of what there is when each is drawn."""
        count = self.batches_per_epoch
        batches = BatchStream(self.batch, count, batches_drawn(self.trainer, count))
        return ResumableLoader(batches, batch_size=None, pin_memory=self.pin_memory)

    def training_rows(self, name: RowName) -> tuple[Tensor, None]:
        """All real values of a kind (M, D), which all count."""
        return self._begun().values(name), None

    def training_pairs(self) -> tuple[Tensor, Tensor, None]:
        """All real states and those after them (M, O), which all count."""
        buffer = self._begun()
        return buffer.values("observations"), buffer.values("next_observations"), None

    def training_returns(self) -> Tensor:
        """Returns to go are not known: 0 each (M,)."""
        return torch.zeros(len(self.buffer))

    def _begun(self) -> ReplayBuffer:
        if not len(self.buffer):
            raise InputError("There are no transitions yet: add some before training.")
        return self.buffer


class OnlineData(MakesEnvs, GrowingData):
    """Chunks of what an agent has done in its environment, which grows while it learns.

    ``setup`` takes the first steps, with random actions; the callback ``Collect`` the others, by the
    agent's policy. Steps and environments travel in checkpoints. In one process.

    Args:
        env_id: Gymnasium id of the environment.
        horizon: H, steps of a chunk; the model takes its horizon from here.
        env_kwargs: keywords of ``gymnasium.make``.
        num_envs: N, environments that step together.
        capacity: steps that are held; the oldest go.
        prefill_steps: steps with random actions before learning begins.
        ref_scores: random and expert return for the normalised score.
        shared: keywords of :class:`GrowingData`.
    """

    batch_type = ChunkBatch
    grows = True
    ref_scores: tuple[float, float] | None = None

    def __init__(
        self,
        env_id: str,
        *,
        horizon: int = 10,
        env_kwargs: dict[str, Any] | None = None,
        num_envs: int = 4,
        capacity: int = 1_000_000,
        prefill_steps: int = 5_000,
        ref_scores: tuple[float, float] | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        check_scores(ref_scores, "ref_scores")
        self.env_config = EnvConfig(env_id, {} if env_kwargs is None else env_kwargs)
        observations, actions = self.env_config.spaces
        self.observation_dim = sum(SourceOptions().dims(observations))  # with the goal
        space = continuous(actions, env_id)
        if not np.isfinite([space.low, space.high]).all():
            raise InputError(f"{env_id!r} needs actions that are bounded vectors, not {space}.")
        self.action_dim = space.shape[0]
        self.env_id, self.datasets, self.ref_scores = env_id, [env_id], ref_scores
        self.horizon, self.num_envs, self.prefill_steps = horizon, num_envs, prefill_steps
        self.buffer = ReplayBuffer(capacity, self.observation_dim, self.action_dim, num_envs)
        self._collector: Collector | None = None

    def setup(self, stage: str) -> None:
        """Take the first steps, once."""
        if stage != "fit" or self._collector is not None:
            return
        self._collector = Collector(self.make_vector_env(self.num_envs), self.seed)  # type: ignore[arg-type]
        space: Any = self.action_space()
        rng = np.random.default_rng([self.seed, 1])
        shape = (self.num_envs, self.action_dim)

        def random(observations: Tensor) -> Tensor:
            return torch.from_numpy(rng.uniform(space.low, space.high, shape)).float()

        for _ in range(-(-self.prefill_steps // self.num_envs)):
            self.collect(random)

    def collect(self, act: Callable[[Tensor], Tensor]) -> list[float]:
        """A step of each environment into the buffer; the returns of the episodes that it ended."""
        assert self._collector is not None
        steps, finished = self._collector.step(act)
        self.buffer.add(steps)
        return finished

    def batch(self, k: int) -> ChunkBatch:
        """Chunks that begin at any of the steps."""
        rng = np.random.default_rng([self.seed, 2, k])
        index = rng.integers(len(self.buffer), size=self.batch_size)
        return self.buffer.chunks(torch.from_numpy(index), self.horizon)

    def train_dataloader(self) -> DataLoader:
        """Batches of what there is when each is drawn, in one process where an agent acts."""
        assert self.trainer is not None
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(type(c).__name__ == "Collect" for c in callbacks):
            raise InputError("Nobody acts in the environment: add the callback Collect.")
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader:
        """One batch of what there is: validation is a rollout."""
        return DataLoader(BatchStream(self.batch, 1, lambda: 0), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """What there is, and where the environments are."""
        if self._collector is None:
            return {}
        return {"buffer": self.buffer.state_dict(), "collector": self._collector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """All as it was; a test needs none of it."""
        if self._collector is None:
            return
        self.buffer.load_state_dict(state_dict["buffer"])
        self._collector.load_state_dict(state_dict["collector"])


class ReplayData(GrowingData):
    """Transitions of an environment, and synthetic ones beside them.

    Whoever steps the environment calls ``buffer.add``, first before training, for the statistics;
    :class:`~diffrl_lightning.callbacks.Refill` fills ``synthetic``. Both travel in checkpoints, which
    replace what is there.

    Args:
        observation_dim: O.
        action_dim: A.
        capacity: of the real transitions.
        synthetic_capacity: of the synthetic ones.
        synthetic_share: of a batch, as soon as there are so many of them; the rest is real.
        shared: keywords of :class:`GrowingData`.
    """

    batch_type = TransitionBatch

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        capacity: int = 1_000_000,
        synthetic_capacity: int = 1_000_000,
        synthetic_share: float = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.observation_dim, self.action_dim, self.datasets = observation_dim, action_dim, []
        self.buffer = ReplayBuffer(capacity, observation_dim, action_dim)
        self.synthetic = ReplayBuffer(synthetic_capacity, observation_dim, action_dim)
        self.num_synthetic = round(synthetic_share * self.batch_size)

    def batch(self, k: int) -> TransitionBatch:
        """Real transitions, then synthetic ones; all real until there are enough of those."""
        self._begun()
        rng = np.random.default_rng([self.seed, k])
        n = self.num_synthetic if len(self.synthetic) >= self.num_synthetic else 0
        parts = [
            buffer.transitions(torch.from_numpy(rng.integers(len(buffer), size=size)))
            for buffer, size in ((self.buffer, self.batch_size - n), (self.synthetic, n))
        ]
        return TransitionBatch(**{k: torch.cat([p[k] for p in parts]) for k in parts[0]})  # type: ignore[literal-required, typeddict-item]

    def state_dict(self) -> dict[str, Any]:
        """Both buffers."""
        return {"real": self.buffer.state_dict(), "synthetic": self.synthetic.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both buffers as they were."""
        self.buffer.load_state_dict(state_dict["real"])
        self.synthetic.load_state_dict(state_dict["synthetic"])
