"""Embeddings of the diffusion step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffrl_lightning.nets.activations import Mish, chain


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the step at geometric frequencies (Vaswani et al. 2017, sec. 3.5).

    Args:
        dim: width of the embedding, even.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Map steps (B,) to (B, dim)."""
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of the step at learned frequencies, N(0, 0.2^2) at first (Tancik et al. 2020).

    Args:
        dim: width of the embedding, even.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * torch.randn(dim // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Map steps (B,) to (B, dim)."""
        angles = 2 * math.pi * t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)


class NoiseLevelEmbedding(nn.Module):
    """A noise level with its sines and cosines at fixed random frequencies (Tancik et al. 2020).

    Args:
        num_frequencies: F.
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(num_frequencies))

    def forward(self, t: Tensor) -> Tensor:
        """Map levels (B,) to (B, 1 + 2 F)."""
        angles = 2 * math.pi * t[:, None] * self.frequencies
        return torch.cat([t[:, None], angles.sin(), angles.cos()], -1)


class StepEmbedding(nn.Sequential):
    """Layers that embed steps (B,) row by row; one step expanded to B rows is embedded once."""

    def forward(self, t: Tensor) -> Tensor:
        """Map steps (B,) to (B, dim)."""
        once = len(t) > 1 and t.stride(0) == 0
        return super().forward(t[:1]).expand(len(t), -1) if once else super().forward(t)


def embed_step(dim: int, ratio: int = 4) -> StepEmbedding:
    """Steps (B,) -> (B, dim): sines and cosines through two layers, ``ratio * dim`` wide between."""
    return StepEmbedding(SinusoidalEmbedding(dim), *chain(dim, ratio * dim, dim, activation=Mish))
