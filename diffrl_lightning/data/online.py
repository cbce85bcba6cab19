"""Chunks of episodes that an agent makes while it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import gymnasium as gym
import lightning.pytorch as pl
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from diffrl_lightning.data.sampler import ResumableLoader
from diffrl_lightning.envs.collect import Collector
from diffrl_lightning.envs.make import EnvConfig, layout, layout_dims
from diffrl_lightning.types import ChunkBatch, InputError, RowName


class ChunkBuffer:
    """The last steps of N environments that step together, and chunks of them.

    Args:
        capacity: steps that it holds, of all environments together; the oldest go.
        num_envs: N.
        observation_dim: O.
        action_dim: A.

    Raises:
        InputError: if there is no room for a step of each.
    """

    def __init__(self, capacity: int, num_envs: int, observation_dim: int, action_dim: int) -> None:
        if num_envs < 1 or capacity < num_envs:
            raise InputError(f"{num_envs=} must be at least 1, and {capacity=} at least that.")
        self.rows, self.num_envs, self.added = capacity // num_envs, num_envs, 0
        shapes = {
            "observations": (observation_dim,),
            "actions": (action_dim,),
            "rewards": (),
            "next_observations": (observation_dim,),
            "terminations": (),
        }
        size = (self.rows, num_envs)
        self.arrays = {name: torch.zeros(*size, *shape) for name, shape in shapes.items()}
        self.arrays["episodes"] = torch.zeros(size, dtype=torch.long)

    def __len__(self) -> int:
        """Steps that it holds."""
        return min(self.added, self.rows) * self.num_envs

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Take in a step of each environment, (N, ...).

        Raises:
            InputError: if a value is not finite.
        """
        bad = [name for name in self.arrays if not bool(rows[name].isfinite().all())]
        if bad:
            raise InputError(f"The {', '.join(bad)} of new steps hold NaN or infinite values.")
        for name, array in self.arrays.items():
            array[self.added % self.rows] = rows[name].to(array)
        self.added += 1

    def chunks(self, index: Tensor, horizon: int) -> ChunkBatch:
        """Chunks that begin at these steps (B,), counted from the oldest, environment by environment.

        One that reaches its episode's end, or the last step that there is, has fewer steps, with the
        last one repeated behind them.
        """
        held = len(self) // self.num_envs
        env, first = index // held, index % held
        ahead = first[:, None] + torch.arange(horizon)
        rows = (self.added - held + ahead.clamp(max=held - 1)) % self.rows
        env = env[:, None]
        same = self.arrays["episodes"][rows, env] == self.arrays["episodes"][rows[:, :1], env]
        mask = same & (ahead < held)
        steps = mask.sum(1)
        rows = rows.gather(1, torch.arange(horizon).minimum(steps[:, None] - 1))
        last, env_ = rows[:, -1], env[:, 0]
        following = self.arrays["next_observations"][last, env_]
        zero = torch.zeros_like(steps, dtype=torch.float32)
        return ChunkBatch(
            observations=self.arrays["observations"][rows, env],
            actions=self.arrays["actions"][rows, env],
            rewards=self.arrays["rewards"][rows, env] * mask,
            returns=zero,
            origins=zero.long(),
            mask=mask,
            next_observations=following,
            terminations=self.arrays["terminations"][last, env_],
            steps=steps.float(),
            goal_observations=following,
            chunks=index,
        )

    def state_dict(self) -> dict[str, Any]:
        """What is held, for a checkpoint."""
        held = min(self.added, self.rows)
        # Copies: of a part of a tensor, all of its memory would be written.
        return {"added": self.added, "rows": self.rows} | {
            name: array[:held].clone() for name, array in self.arrays.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another buffer of the same size held.

        Raises:
            InputError: if it had another size.
        """
        theirs, ours = (state["rows"], state["rewards"].shape[1]), (self.rows, self.num_envs)
        if theirs != ours:
            raise InputError(
                f"The checkpoint's buffer held {theirs[0]} steps of {theirs[1]} environments, this one "
                f"holds {ours[0]} of {ours[1]}: give the same capacity and num_envs."
            )
        self.added = state["added"]
        held = min(self.added, self.rows)
        for name, array in self.arrays.items():
            array[:held] = state[name]


class OnlineData(pl.LightningDataModule):
    """Chunks of what an agent has done in its environment, which grows while it learns.

    ``setup`` takes the first steps, with random actions; the callback ``Collect`` the others, by the
    agent's policy. Batch k depends on the seed, on k, and on what there is by then. Steps and
    environments travel in checkpoints. In one process.

    Args:
        env_id: Gymnasium id of the environment.
        horizon: H, steps of a chunk; the model takes its horizon from here.
        env_kwargs: keywords of ``gymnasium.make``.
        num_envs: N, environments that step together.
        capacity: steps that are held; the oldest go.
        prefill_steps: steps with random actions before learning begins.
        batch_size: chunks of a batch.
        batches_per_epoch: after so many an epoch ends.
        ref_scores: random and expert return for the normalised score.
        pin_memory: copy batches to page-locked memory, for CUDA.
        seed: of the episodes and the batches.

    Raises:
        InputError: if an argument is out of range, or the environment has a goal.
    """

    makes: Literal["chunks"] = "chunks"
    grows = True
    goal_dim, num_origins, stride = 0, 1, 1

    def __init__(
        self,
        env_id: str,
        horizon: int = 10,
        env_kwargs: dict[str, Any] | None = None,
        num_envs: int = 4,
        capacity: int = 1_000_000,
        prefill_steps: int = 5_000,
        batch_size: int = 256,
        batches_per_epoch: int = 1_000,
        ref_scores: tuple[float, float] | None = None,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or batches_per_epoch < 1 or prefill_steps < 1:
            raise InputError(
                f"{batch_size=}, {batches_per_epoch=} and {prefill_steps=} must be at least 1."
            )
        self.env_config = EnvConfig(env_id, env_kwargs or {})
        env = self.make_env()
        keys, goal_key = layout(env.observation_space)
        self.observation_dim, goal_dim = layout_dims(env.observation_space, keys, goal_key)
        space = env.action_space
        env.close()
        flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
        if not flat or not np.isfinite([space.low, space.high]).all():  # type: ignore[attr-defined]
            raise InputError(f"{env_id!r} needs actions that are bounded vectors, not {space}.")
        self.action_dim = int(space.shape[0])  # type: ignore[index]
        if goal_dim:
            raise InputError(
                f"{env_id!r} has a goal, which is not pursued online: use another one."
            )
        self.env_id, self.datasets, self.ref_scores = env_id, [env_id], ref_scores
        self.horizon, self.num_envs, self.prefill_steps = horizon, num_envs, prefill_steps
        self.batch_size, self.batches_per_epoch, self.seed = batch_size, batches_per_epoch, seed
        self.buffer = ChunkBuffer(capacity, num_envs, self.observation_dim, self.action_dim)
        self.pin_memory = pin_memory
        self._collector: Collector | None = None

    def setup(self, stage: str) -> None:
        """Take the first steps, once."""
        if stage != "fit" or self._collector is not None:
            return
        self._collector = Collector(self.make_vector_env(self.num_envs), self.seed)  # type: ignore[arg-type]
        space = self.action_space()
        rng = np.random.default_rng([self.seed, 1])
        shape = (self.num_envs, self.action_dim)

        def random(observations: Tensor) -> Tensor:
            return torch.from_numpy(rng.uniform(space.low, space.high, shape)).float()

        for _ in range(-(-self.prefill_steps // self.num_envs)):
            self.collect(random)

    def collect(self, act: Callable[[Tensor], Tensor]) -> list[float]:
        """A step of each environment into the buffer; the returns of the episodes that it ended."""
        assert self._collector is not None
        rows, finished = self._collector.step(act)
        self.buffer.add(rows)
        return finished

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        """One environment with flat observations."""
        return self.env_config.make(render_mode)

    def make_vector_env(self, num_envs: int, asynchronous: bool = False) -> VectorEnv:
        """Several environments, which are not reset automatically."""
        return self.env_config.make_vector(num_envs, asynchronous)

    def action_space(self) -> gym.spaces.Box:
        """The environment's bounds of actions."""
        env = self.make_env()
        env.close()
        return env.action_space  # type: ignore[return-value]

    def training_rows(self, name: RowName) -> tuple[Tensor, None]:
        """All values of a kind (M, D), which all count."""
        held = len(self.buffer) // self.num_envs
        array = self.buffer.arrays[name][:held].flatten(0, 1)
        return array.reshape(len(array), -1), None

    def batch(self, k: int) -> ChunkBatch:
        """Batch ``k`` of what there is now."""
        rng = np.random.default_rng([self.seed, 2, k])
        index = rng.integers(len(self.buffer), size=self.batch_size)
        return self.buffer.chunks(torch.from_numpy(index), self.horizon)

    def train_dataloader(self) -> DataLoader:
        """Batches of what there is when each is drawn.

        Raises:
            InputError: if there are several processes, or nobody acts.
        """
        assert self.trainer is not None
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if self.trainer.world_size > 1:
            raise InputError("OnlineData lives in a single process: set devices to 1.")
        if not any(type(c).__name__ == "Collect" for c in callbacks):
            raise InputError("Nobody acts in the environment: add the callback Collect.")
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        batches = _Batches(self, self.batches_per_epoch, lambda: progress.total.ready)
        return ResumableLoader(batches, batch_size=None, pin_memory=self.pin_memory)

    def val_dataloader(self) -> DataLoader:
        """One batch of what there is: validation is a rollout."""
        return DataLoader(_Batches(self, 1, lambda: 0), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """A single token: tests are rollouts."""
        return DataLoader([0])  # type: ignore[arg-type]

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


class _Batches(IterableDataset):
    def __init__(self, data: OnlineData, count: int, position: Callable[[], int]) -> None:
        self.data, self.count, self.position = data, count, position

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ChunkBatch]:
        first = self.position()
        for k in range(first, first + len(self)):
            yield self.data.batch(k)
