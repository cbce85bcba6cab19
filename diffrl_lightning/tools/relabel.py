"""A dataset with the rewards of a RelativeReward, for agents that learn from rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffrl_lightning.data import SequenceData
from diffrl_lightning.data.sources.base import SourceOptions
from diffrl_lightning.data.writers import check_output, write_episodes
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.tools.sources import load_role, read
from diffrl_lightning.types import InputError


def relabel(
    dataset: str,
    checkpoint: str,
    output: str,
    *,
    batch_size: int = 1024,
    **source: Any,
) -> None:
    """Write a dataset again, each step's reward rho of the trajectory that begins there.

    Trajectories are of the reward's horizon, their last step repeated beyond an episode's end. The
    environment keeps its own reward, by which an agent trained on the result is evaluated.

    Args:
        dataset: what a datamodule takes.
        checkpoint: of a ``RelativeReward``.
        output: a file to write, which ends in .hdf5.
        batch_size: steps at a time.
        source: the dataset's environment.
    """
    check_ranges(locals())
    if Path(output).suffix.lower() not in (".hdf5", ".h5"):
        raise InputError(f"{output=} must end in .hdf5.")
    check_output(output, 0)
    model = load_role(checkpoint, "a RelativeReward", "value", "rewards_of").eval()
    windows: Any = {name: model.hparams[name] for name in ("horizon", "stride")}
    windows |= {"padding": "edge", "val_fraction": 0}
    data = SequenceData(dataset, **windows, **vars(SourceOptions(**source)))
    for name in ("observation_dim", "action_dim", "goal_dim"):
        if getattr(data, name) != model.hparams[name]:
            raise InputError(
                f"{dataset!r} has {name}={getattr(data, name)}, the reward {model.hparams[name]}: "
                "label data like those that it was trained on."
            )
    episodes, windows = read(data).episodes, data.train_data
    assert episodes is not None
    steps = torch.arange(episodes.num_steps).split(batch_size)
    with torch.no_grad():
        rewards = torch.cat([model.rewards_of(windows[rows]) for rows in steps])  # type: ignore[index]
    provenance = {"role": "RelativeReward", "dataset": dataset, "checkpoint": checkpoint}
    write_episodes(output, replace(episodes, rewards=rewards.numpy()), provenance, data)
