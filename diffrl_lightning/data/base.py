"""The base of every datamodule: a dataset, its environment and its loaders."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffrl_lightning.data.envs import MakesEnvs
from diffrl_lightning.data.episodes import Episodes, reward_map
from diffrl_lightning.data.sampler import (
    BatchSampler,
    FixedBatchSampler,
    PassSampler,
    ResumableLoader,
    StepDataset,
    batches_drawn,
)
from diffrl_lightning.data.sources import SourceOptions, load, reader
from diffrl_lightning.data.sources.environments import evaluation_env
from diffrl_lightning.data.sources.scores import check_scores
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.inputs import RangeChecked
from diffrl_lightning.types import InputError, RowName, TrainingData


class OfflineData(RangeChecked, MakesEnvs, pl.LightningDataModule, TrainingData, ABC):
    """What all datamodules of datasets share: reading, splitting, loading, and the environment.

    The constructor reads metadata only (a Minari dataset that is not on disk is downloaded for them);
    ``prepare_data`` generates, ``setup`` loads.

    Args:
        dataset: what to train on: a Minari id, a D4RL file (.hdf5), an OGBench file (.npz), a PointMaze
            to generate (``pointmaze/umaze``), or a list of these.
        ref_scores: random and expert return for the normalised score, where the dataset has none.
        batch_size: samples of a batch, on each device.
        val_fraction: share of the episodes held out for validation.
        train_fraction: share of the others to train on; less than 1 shows what becomes of a method
            where data are scarce.
        join_episodes: join episodes that continue physically into the next up to this many steps
            (PointMaze); 0 leaves them apart.
        discount: of a step: in the return to go, in what is summed over several steps, and in how far
            ahead goals and futures lie; the model's own.
        start_steps: items that begin within so many steps of an episode's start come
            ``start_repeats`` times in an epoch: rollouts begin there, where data are scarce.
        start_repeats: how often they come.
        seed: of the split and of the batches.
        pin_memory: copy batches to page-locked memory, for CUDA.
        source: keywords of :class:`SourceOptions`.
    """

    dataset_type: ClassVar[type[StepDataset]]  # that makes the batches
    prediction_jobs: DataLoader | None = None  # what ``predict`` draws in this process

    def __init__(
        self,
        dataset: str | list[str],
        *,
        ref_scores: tuple[float, float] | None = None,
        batch_size: int = 256,
        val_fraction: float = 0.05,
        train_fraction: float = 1.0,
        join_episodes: int = 0,
        discount: float = 0.99,
        start_steps: int = 0,
        start_repeats: int = 1,
        seed: int = 0,
        pin_memory: bool = False,
        **source: Any,
    ) -> None:
        super().__init__()
        check_scores(ref_scores, "ref_scores")
        self.datasets = [dataset] if isinstance(dataset, str) else list(dataset)
        if not self.datasets:
            raise InputError("dataset is an empty list: name at least one dataset.")
        self.batch_size, self.seed = batch_size, seed
        self.val_fraction, self.train_fraction = val_fraction, train_fraction
        self.join_episodes, self.pin_memory = join_episodes, pin_memory
        self._ref_scores = ref_scores
        self.dataset_kwargs: dict[str, Any] = {}
        self.keep(discount=discount, start_steps=start_steps, start_repeats=start_repeats)
        self.num_origins = len(self.datasets)
        self.options = SourceOptions(**source)
        infos = [reader(name).describe(name, self.options) for name in self.datasets]
        dims = {(info.observation_dim, info.action_dim, info.goal_dim) for info in infos}
        if len(dims) > 1:
            raise InputError(f"The datasets of a list need equal dimensions, not {sorted(dims)}.")
        self.observation_dim, self.action_dim, self.goal_dim = dims.pop()
        self.has_rewards = all(info.has_rewards for info in infos)
        if ref_scores is None:
            check_scores(
                infos[0].ref_scores, f"The reference scores of {self.datasets[0]!r}, stored"
            )
        self._env = evaluation_env(self.datasets[0], infos[0], self.options)
        self.env_id = None if isinstance(self._env, str) else self._env.env_id
        if self.env_id is not None:
            self.goal_dim = self.check_env(infos[0], self.options)
        self.episodes: Episodes | None = None

    @property
    def ref_scores(self) -> tuple[float, float] | None:
        """Random and expert return, or None where they are unknown."""
        if self._ref_scores is None:  # a dataset that is generated has them only then
            first = self.datasets[0]
            self._ref_scores = reader(first).describe(first, self.options).ref_scores
        return self._ref_scores

    @cached_property
    def env_config(self) -> EnvConfig:
        """How evaluation environments are built; refuses data of which none is known."""
        if isinstance(self._env, str):
            raise InputError(self._env)
        return self._env

    def keep(self, **keywords: Any) -> None:
        """Take keywords of the dataset, which are attributes of the datamodule too."""
        self.dataset_kwargs |= keywords
        vars(self).update(keywords)

    def prepare_data(self) -> None:
        """Generate or download what is not on disk."""
        for name in self.datasets:
            reader(name).prepare(name, self.options)

    def setup(self, stage: str) -> None:
        """Read the arrays, once, and split them by episode; predictions need none."""
        if self.train_data is not None or stage == "predict":
            return
        episodes = load(self.datasets, self.options)
        if self.join_episodes:
            episodes = episodes.joined(self.join_episodes)
        self.episodes = episodes
        self.check_actions(episodes.actions)
        self.train_indices, self.val_indices = self._split(self.usable(episodes))
        if self.rewards != "raw":
            mapped = reward_map(self.rewards, episodes, self.train_indices)
            self.dataset_kwargs["reward_map"] = mapped
        self.train_data = self.make_dataset(episodes, self.train_indices)
        self.val_data = self.make_dataset(episodes, self.val_indices)

    def usable(self, episodes: Episodes) -> np.ndarray:
        """Which episodes (E,) bool a dataset of them can draw from."""
        return np.ones(len(episodes), bool)

    def make_dataset(self, episodes: Episodes, which: np.ndarray) -> StepDataset:
        """The dataset whose items make batches, of these of the episodes."""
        return self.dataset_type(episodes, which, **self.dataset_kwargs)  # type: ignore[call-arg]

    def training_rows(self, name: RowName) -> tuple[Tensor, Tensor]:
        """An array of all episodes (M, D), and which of its rows (M,) are of training episodes."""
        assert self.episodes is not None
        counts = self.episodes.lengths + (name == "observations")
        train = np.isin(np.arange(len(self.episodes)), self.train_indices)
        rows = torch.from_numpy(np.repeat(train, counts))
        array = getattr(self.episodes, name)
        return torch.from_numpy(array.reshape(len(array), -1)), rows

    def training_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """States and those after them (M, O), and which pairs (M,) are steps of training episodes."""
        assert self.episodes is not None
        states, rows = self.training_rows("observations")
        last = self.episodes.offsets[1:] + np.arange(len(self.episodes))
        rows[last] = False
        return states[:-1], states[1:], rows[:-1]

    def training_returns(self) -> Tensor:
        """The return to go from each step of the training episodes (M,)."""
        _, rows = self.training_rows("actions")
        return self.train_data.returns[rows]

    def check_goal_leads_state(self) -> None:
        """Refuse an environment whose goal is not about the first entries of the state.

        Raises:
            InputError: naming the keys that would do.
        """
        env = self.make_env()
        flat, _ = env.reset(seed=0)
        stated, _ = env.unwrapped.reset(seed=0)
        env.close()
        if "achieved_goal" not in stated:  # the environment does not say what its goal is about
            return
        achieved = np.ravel(stated["achieved_goal"])
        if len(achieved) != self.goal_dim or not np.allclose(flat[: self.goal_dim], achieved):
            raise InputError(
                f"The goal of {self.env_id!r} is not about the first {self.goal_dim} entries of its "
                "state: put them there with observation_keys [achieved_goal, observation]."
            )

    def train_dataloader(self) -> DataLoader:
        """Batches that are a function of the seed and of their number.

        Without a trainer, passes over the data, each in another order.
        """
        if self.trainer is None:
            return self._loader(self.train_data, PassSampler)
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._loader(self.train_data, FixedBatchSampler)
        return self._loader(self.train_data, position=batches_drawn(self.trainer))

    def val_dataloader(self) -> DataLoader:
        """One pass over the held-out episodes, in a fixed random order."""
        return self._loader(self.val_data, FixedBatchSampler)

    def predict_dataloader(self) -> DataLoader:
        """What the callback :class:`~diffrl_lightning.SampleWriter` asks this process to draw."""
        if self.prediction_jobs is None:
            raise InputError("predict writes a dataset: say where with synthesis.output.")
        return self.prediction_jobs

    def _loader(
        self,
        dataset: Any,
        order: type[BatchSampler] = BatchSampler,
        position: Callable[[], int] = lambda: 0,
    ) -> DataLoader:
        sampler = order(
            len(dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            position=position,
        )
        # A generator of its own keeps the loader from drawing a seed out of torch's global one.
        return ResumableLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _split(self, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and of the validation episodes, the latter of the usable ones."""
        order = np.random.default_rng(self.seed).permutation(np.flatnonzero(usable))
        num_val = max(round(len(order) * self.val_fraction), int(self.val_fraction > 0))
        watched = not num_val or num_val >= len(order)  # validation watches the training data
        val = np.sort(order[: 0 if watched else num_val])
        train = np.setdiff1d(np.arange(len(usable)), val)
        if self.train_fraction < 1:
            kept = max(1, round(self.train_fraction * (len(order) - len(val))))
            train = np.sort(order[len(val) :][:kept])
        return train, train if watched else val
