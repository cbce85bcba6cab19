"""A dataset with the rewards of a RelativeReward, for agents that learn from rewards.

``python -m diffrl_lightning.relabel --help``
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data import SequenceData
from diffrl_lightning.data.writers import check_output, write_episodes
from diffrl_lightning.modules import DiffusionModule, RelativeReward
from diffrl_lightning.types import InputError


def relabel(
    dataset: str,
    checkpoint: str,
    output: str,
    *,
    goal_key: str | None = None,
    batch_size: int = 1024,
) -> None:
    """Write a dataset again, each step's reward rho of the trajectory that begins there.

    Trajectories are of the reward's horizon, their last step repeated beyond an episode's end. The
    environment still gives its own reward: what an agent of these rewards returns is measured by that.

    Args:
        dataset: what a datamodule takes.
        checkpoint: of a ``RelativeReward``.
        output: a file to write, which ends in .hdf5.
        goal_key: entry of a dictionary observation that is the goal; "none" for no goal.
        batch_size: steps at a time.

    Raises:
        InputError: if the checkpoint is of another role, the data do not fit it, or the file is there.
    """
    if Path(output).suffix not in (".hdf5", ".h5"):
        raise InputError(f"{output=} must end in .hdf5.")
    check_output(output, 0)
    model = DiffusionModule.load_from_checkpoint(checkpoint).eval()
    if not isinstance(model, RelativeReward):
        raise InputError(f"{checkpoint!r} holds a {type(model).__name__}, not a RelativeReward.")
    data = SequenceData(
        dataset,
        horizon=model.hparams["horizon"],
        stride=model.hparams["stride"],
        padding="edge",
        goal_key=goal_key,
        val_fraction=0,
    )
    for name in ("observation_dim", "action_dim", "goal_dim"):
        if getattr(data, name) != model.hparams[name]:
            raise InputError(
                f"{dataset!r} has {name}={getattr(data, name)}, the reward {model.hparams[name]}: "
                "label data like those that it was trained on."
            )
    data.prepare_data()
    data.setup("fit")
    assert data.episodes is not None
    steps = torch.arange(data.episodes.num_steps).split(batch_size)
    with torch.no_grad():
        rewards = torch.cat([model.rewards_of(data.train_data[rows]) for rows in steps])  # type: ignore[index]
    provenance = {"role": "RelativeReward", "dataset": dataset, "checkpoint": checkpoint}
    write_episodes(output, replace(data.episodes, rewards=rewards.numpy()), provenance, data)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    torch.set_num_threads(1)
    with exit_on_bad_input("diffrl_lightning.relabel"):
        auto_cli(relabel)
