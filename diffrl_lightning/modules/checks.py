"""Whether a role and the data that it is to learn from go together."""

from __future__ import annotations

from typing import Any

from diffrl_lightning.types import FutureBatch, InputError, TrainingData


def check_data(role: Any, data: type) -> None:
    """Refuse a datamodule whose batches a role does not learn from.

    Args:
        role: its class.
        data: the datamodule's class.

    Raises:
        InputError: naming the datamodule that would do.
    """
    wanted = role.batch_type.__name__.replace("Batch", "Data")
    found = getattr(data, "batch_type", None)
    if found is None:
        raise InputError(
            f"{data.__name__} does not say what its batches are: derive it from "
            f"diffrl_lightning.types.TrainingData, or use {wanted}."
        )
    if found is not role.batch_type:
        raise InputError(
            f"{role.__name__} learns from a {role.batch_type.__name__}, {data.__name__} makes a "
            f"{found.__name__}: use {wanted}."
        )
    if data.grows and not role.learns_online:  # type: ignore[attr-defined]
        raise InputError(
            f"{role.__name__} does not learn online, from {data.__name__}: use {wanted}."
        )


def check_discount(module: Any, data: TrainingData) -> None:
    """Refuse data whose rewards or futures are discounted otherwise than the model is.

    Raises:
        InputError: naming both discounts.
    """
    ours = module.hparams.get("discount")
    discounted = data.n_steps > 1 or module.batch_type is FutureBatch
    if discounted and data.discount != ours:
        raise InputError(
            f"The data are discounted at {data.discount}, the model at {ours}: give data.discount "
            "and model.discount the same value."
        )


def check_rewards(module: Any, data: TrainingData) -> None:
    """Refuse data without rewards where a model learns from them.

    Raises:
        InputError: naming the datasets.
    """
    if module.needs_rewards and not data.has_rewards:
        raise InputError(
            f"{type(module).__name__} learns from rewards, which {', '.join(data.datasets)} do not "
            "have: add an array 'rewards', or train a role that does without."
        )


def check_raw_rewards(data: TrainingData) -> None:
    """For models of the environment's rewards.

    Raises:
        InputError: if the data's are others.
    """
    if data.rewards != "raw":
        raise InputError(
            f"rewards={data.rewards!r} would be modelled as the environment's: use rewards=raw, "
            "and change them where an agent learns from the result."
        )
