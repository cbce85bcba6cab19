"""Random numbers from one generator, or from one for each row of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffrl_lightning.types import Generators, InputError


def randn(shape: Sequence[int], *, generator: Generators = None, like: Tensor) -> Tensor:
    """Standard normal noise of a shape (B, *S) on the device and in the dtype of ``like``.

    With a sequence of G generators each draws B / G rows in a row. A row's noise then does not depend
    on which rows it shares the batch with: an episode unfolds alike however environments are grouped.

    Raises:
        InputError: if the generators do not divide the rows.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator, device=like.device, dtype=like.dtype)
    size = (_rows_each(shape[0], generator), *shape[1:])
    return torch.cat([torch.randn(*size, generator=g, device=g.device) for g in generator]).to(like)


def rand(shape: Sequence[int], *, generator: Generators = None, like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), in float32 at least; as :func:`randn`."""
    like = like.to(torch.promote_types(like.dtype, torch.float32))  # a lower one has a 1 in it
    uniform = torch.special.ndtr(randn(shape, generator=generator, like=like))
    return uniform.clamp(1e-6, 1 - 1e-6)


def randint(high: int, like: Tensor, generator: Generators = None) -> Tensor:
    """Uniform integers (B,) below ``high`` on the device of ``like`` (B, *S); as :func:`randn`."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randint(high, like.shape[:1], device=like.device, generator=generator)
    size = (_rows_each(len(like), generator),)
    rows = [torch.randint(high, size, device=g.device, generator=g) for g in generator]
    return torch.cat(rows).to(like.device)


def geometric(
    shape: Sequence[int],
    discount: float,
    *,
    stratified: bool = False,
    generator: Generators = None,
    like: Tensor,
) -> Tensor:
    """Offsets k >= 1 with probability (1 - discount) discount^(k - 1), (B, *S); as :func:`rand`.

    Args:
        shape: (B, *S).
        discount: in (0, 1).
        stratified: draw one from each of S equal parts of the distribution, along the last axis.
        generator: source of noise.
        like: a tensor whose device and dtype they take.
    """
    uniform = rand(shape, generator=generator, like=like)
    if stratified:
        stratum = torch.arange(shape[-1], device=like.device).to(like)
        uniform = (stratum + uniform) / shape[-1]
    return (torch.log1p(-uniform) / math.log(discount)).ceil().clamp(min=1)


def choose(scores: Tensor, temperature: float = 0.0, generator: Generators = None) -> Tensor:
    """One of K candidates (N,) by their scores (N, K).

    Args:
        scores: the higher the better.
        temperature: 0 takes the best; above 0 each is drawn with probability proportional to
            exp(score / temperature).
        generator: source of the draw.
    """
    if temperature == 0:
        return scores.argmax(1)
    # The largest of logits with Gumbel noise is a draw from their softmax.
    uniform = rand(scores.shape, generator=generator, like=scores)
    return (scores / temperature - (-uniform.log()).log()).argmax(1)


def _rows_each(rows: int, generators: Sequence[torch.Generator]) -> int:
    if not generators or rows % len(generators):
        raise InputError(
            f"{len(generators)} generators for a batch of {rows}: give one a row, or one for each "
            "of several equal groups of rows."
        )
    return rows // len(generators)
