"""Random numbers from one generator, or from one for each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffrl_lightning.types import Generators, InputError


def randn(shape: Sequence[int], *, generator: Generators = None, like: Tensor) -> Tensor:
    """Standard normal noise of a shape (B, *S) on the device and in the dtype of ``like``.

    With one generator for each row, a row's noise does not depend on which rows it shares the
    batch with: an episode then unfolds alike however environments are grouped.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator, device=like.device, dtype=like.dtype)
    if len(generator) != shape[0]:
        raise InputError(f"{len(generator)} generators for a batch of {shape[0]}: give one a row.")
    rows = [torch.randn(*shape[1:], generator=g, device=g.device) for g in generator]
    return torch.stack(rows).to(like)


def randint(high: int, like: Tensor, generator: Generators) -> Tensor:
    """Uniform integers (B,) below ``high`` on the device of ``like`` (B, *S)."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randint(high, like.shape[:1], device=like.device, generator=generator)
    rows = [torch.randint(high, (), device=g.device, generator=g) for g in generator]
    return torch.stack(rows).to(like.device)
