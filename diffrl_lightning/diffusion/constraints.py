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

    def repeat(self, times: int) -> Inpaint:
        """The same for samples (B * times, *S), each row so many times in a row."""
        mask = self.mask
        if mask.ndim == self.values.ndim and len(mask) > 1:
            mask = mask.repeat_interleave(times, 0)
        return Inpaint(self.values.repeat_interleave(times, 0), mask)


def inpaint(values: Tensor, mask: Tensor) -> Inpaint:
    """Constraint that sets the entries of a sample where ``mask`` is True to ``values``."""
    if mask.dtype != torch.bool:
        raise InputError(f"An in-painting mask must be bool, not {mask.dtype}.")
    try:
        torch.broadcast_to(mask, values.shape)
    except RuntimeError:
        given, wanted = tuple(mask.shape), tuple(values.shape)
        raise InputError(
            f"An in-painting mask {given} must broadcast to values {wanted}."
        ) from None
    return Inpaint(values, mask)


def known_states(
    horizon: int, action_dim: int, observation_dim: int, goal_entries: int = 0
) -> Tensor:
    """Mask (H, A + O) of trajectories whose first state is given, and the last one's first entries."""
    known = torch.zeros(horizon, action_dim + observation_dim, dtype=torch.bool)
    known[0, action_dim:] = True
    known[-1, action_dim : action_dim + goal_entries] = True
    return known
