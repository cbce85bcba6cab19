"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from diffrl_lightning.types import InputError


class EMA(nn.Module):
    """A frozen copy of a network that follows it slowly; it samples, the network trains.

    A sub-module, so that it travels in checkpoints and its state needs no callback.

    Args:
        net: the network to follow.
        decay: share of the average that an update keeps.
        update_every: optimiser steps from one update to the next.
        start: up to this optimiser step an update copies the network instead of averaging.
        power: above 0, the k-th step's decay is ``1 - k ** -power`` until that reaches ``decay``.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        decay: float = 0.995,
        update_every: int = 1,
        start: int = 0,
        power: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"{decay=} must lie in [0, 1).")
        self.decay, self.update_every = decay, update_every
        self.start, self.power = start, power
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.followed = (net,)  # in a tuple, so that it is no sub-module of this one

    def train(self, mode: bool = True) -> EMA:
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the averaged network."""
        return self.net(*args, **kwargs)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the network after optimiser step ``step``, counted from 1."""
        (net,) = self.followed
        if step % self.update_every:
            return
        averages: list[Tensor] = list(self.net.parameters())
        weights: list[Tensor] = list(net.parameters())
        if step <= self.start:
            torch._foreach_copy_(averages, weights)
        else:
            decay = min(self.decay, 1 - step**-self.power) if self.power else self.decay
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)
