"""The base of models of the environment: synthesizers and models of dynamics."""

from __future__ import annotations

import torch

from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.checks import check_raw_rewards
from diffrl_lightning.normalizers import Normalizer
from diffrl_lightning.types import Imagined, TrainingData


class EnvironmentModel(DiffusionModule):
    """A model of states, actions and the environment's rewards."""

    needs_rewards = True
    rewards: Normalizer

    def fit_normalizers(self, data: TrainingData) -> None:
        """Take the statistics of the training episodes' states, actions and rewards.

        Raises:
            InputError: if the data's rewards are not those of the environment.
        """
        check_raw_rewards(data)
        super().fit_normalizers(data)
        self.rewards.fit(*data.training_rows("rewards"))


def absorb(found: Imagined) -> Imagined:
    """Trajectories whose terminations are absorbing: the last state stays, and no reward follows."""
    ended = found.terminations.cummax(1).values
    before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
    # The state behind the step that ended it is the last one.
    last = (1 - before).sum(1).long().clamp(max=ended.shape[1] - 1)
    final = found.observations.take_along_dim(last[:, None, None], 1)
    observations = torch.where(before[..., None] > 0, final, found.observations)
    return Imagined(observations, found.actions, found.rewards * (1 - before), ended)
