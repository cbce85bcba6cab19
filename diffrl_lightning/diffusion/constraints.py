"""Conditioning by in-painting: entries of a sample that are known are overwritten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffrl_lightning.types import InputError


@dataclass(frozen=True)
class Inpaint:
    """Overwrites the entries of a sample where ``mask`` is True.

    It is applied to the noised sample before the network, to its estimate of x0 before the loss,
    to x_T, after every guidance step and after every denoising step (Janner et al. 2022).

    Args:
        values: (B, *S), of which only the masked entries are read.
        mask: broadcastable to (B, *S), bool.
    """

    values: Tensor
    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, *S) with the known entries in place."""
        return torch.where(self.mask, self.values, x)


def inpaint(values: Tensor, mask: Tensor) -> Inpaint:
    """Constraint that sets the entries of a sample where ``mask`` is True to ``values``.

    Raises:
        InputError: if the mask is not bool or does not broadcast to the values.
    """
    if mask.dtype != torch.bool:
        raise InputError(f"An in-painting mask must be bool, not {mask.dtype}.")
    try:
        torch.broadcast_to(mask, values.shape)
    except RuntimeError:
        raise InputError(
            f"The in-painting mask {tuple(mask.shape)} must broadcast to values "
            f"{tuple(values.shape)}."
        ) from None
    return Inpaint(values, mask)
