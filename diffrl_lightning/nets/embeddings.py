"""Embeddings of the diffusion step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the step at geometric frequencies (Vaswani et al. 2017, sec. 3.5).

    Args:
        dim: width of the embedding, even.
        max_period: the slowest wave has about this period, in steps over 2 pi.
    """

    frequencies: Tensor

    def __init__(self, dim: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(-math.log(max_period) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Map steps (B,) to (B, dim)."""
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


def embed_step(dim: int) -> nn.Sequential:
    """Steps (B,) -> (B, dim): sines and cosines through two layers."""
    return nn.Sequential(
        SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
    )
