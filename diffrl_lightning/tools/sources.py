"""What tools read: datasets, their environments, and checkpoints."""

from __future__ import annotations

from typing import Any, TypeVar

from diffrl_lightning.data import OfflineData
from diffrl_lightning.modules import Role
from diffrl_lightning.types import InputError

Data = TypeVar("Data", bound=OfflineData)


def open_dataset(
    kind: type[Data],
    dataset: str,
    *,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    observation_keys: list[str] | None = None,
    goal_key: str | None = None,
    **options: Any,
) -> Data:
    """A dataset and its environment; the arrays are not read yet.

    Args:
        kind: of datamodule.
        dataset: what it takes.
        env_id: Gymnasium id of the environment, where the dataset does not name it.
        env_kwargs: keywords of ``gymnasium.make``.
        observation_keys: entries of a dictionary observation that make the state, in this order.
        goal_key: entry of a dictionary observation that is the goal; default ``desired_goal`` where
            there is one, "none" for no goal.
        options: the datamodule's other arguments.
    """
    return kind(
        dataset,
        env_id=env_id,
        env_kwargs=env_kwargs,
        observation_keys=observation_keys,
        goal_key=goal_key,
        **options,
    )


def read(data: Data) -> Data:
    """The datamodule with its arrays read and split."""
    data.prepare_data()
    data.setup("fit")
    return data


def load_role(checkpoint: str, kind: str, *methods: str) -> Any:
    """The role of a checkpoint; it must have these methods, by which its kind is known."""
    role = Role.load_from_checkpoint(checkpoint)
    if not all(hasattr(role, name) for name in methods):
        raise InputError(
            f"{checkpoint!r} holds a {type(role).__name__}: give the checkpoint of {kind}."
        )
    return role
