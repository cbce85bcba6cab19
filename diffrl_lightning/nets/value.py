"""Values of noised trajectories: the contracting half of a temporal U-Net, or an MLP of windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffrl_lightning.nets.activations import Mish, chain
from diffrl_lightning.nets.embeddings import embed_step
from diffrl_lightning.nets.temporal_unet import ResidualBlock
from diffrl_lightning.types import InputError


class TemporalValue(nn.Module):
    """The value of a noised trajectory (B, H, D) at a diffusion step (Janner et al. 2022).

    Every level halves the horizon, which is therefore fixed; it need not be a power of two.

    Args:
        transition_dim: D, channels of a trajectory.
        horizon: H.
        dim: width of the first level, a multiple of 8.
        dim_mults: width of each level in multiples of ``dim``.
    """

    def __init__(
        self,
        transition_dim: int,
        *,
        horizon: int,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        if dim % 8 or dim_mults[-1] * dim % 32:
            raise InputError(
                f"{dim=} must be a multiple of 8, and of 32 with the last of {dim_mults=}: the levels "
                "and a quarter of the last are normalised in 8 groups."
            )
        self.embed = embed_step(dim)

        def level(in_dim: int, out_dim: int, blocks: int) -> nn.ModuleList:
            dims = [in_dim, *[out_dim] * blocks]
            residuals = (ResidualBlock(i, o, embed_dim=dim) for i, o in pairwise(dims))
            return nn.ModuleList([*residuals, nn.Conv1d(out_dim, out_dim, 3, 2, 1)])

        dims = [transition_dim, *(dim * m for m in dim_mults)]
        last = dims[-1]
        levels = [level(i, o, blocks=2) for i, o in pairwise(dims)]
        levels += [level(last, last // 2, blocks=1), level(last // 2, last // 4, blocks=1)]
        self.levels = nn.ModuleList(levels)
        for _ in levels:
            horizon = (horizon + 1) // 2
        features = last // 4 * horizon
        self.head = chain(features + dim, features // 2, 1, activation=Mish)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Trajectories (B, H, D) at steps (B,) -> values (B,)."""
        embedding = self.embed(t)
        h = x.transpose(1, 2)
        levels: Any = self.levels  # of ModuleLists, which type checkers do not see
        for *blocks, downsample in levels:
            for block in blocks:
                h = block(h, embedding)
            h = downsample(h)
        return self.head(torch.cat([h.flatten(1), embedding], -1))[:, 0]


class WindowValue(nn.Module):
    """The value of a noised trajectory as the mean of an MLP over its windows.

    Windows are contiguous and do not overlap, so that values can be attributed to places.

    Args:
        transition_dim: D, channels of a trajectory.
        horizon: H.
        window: W, steps of a window, which divide H.
        hidden_dim: width of its three hidden layers.
    """

    def __init__(
        self, transition_dim: int, *, horizon: int, window: int, hidden_dim: int = 128
    ) -> None:
        super().__init__()
        if window < 1 or horizon % window:
            raise InputError(f"{window=} must divide {horizon=}: windows lie side by side.")
        self.window = window
        self.embed = embed_step(32)
        dims = (window * transition_dim + 32, hidden_dim, hidden_dim, hidden_dim, 1)
        self.net = chain(*dims, activation=Mish)

    def windows(self, x: Tensor, t: Tensor) -> Tensor:
        """Trajectories (B, H, D) at steps (B,) -> values of their windows (B, H / W)."""
        parts = x.unflatten(1, (-1, self.window)).flatten(2)
        embedding = self.embed(t)[:, None].expand(-1, parts.shape[1], -1)
        return self.net(torch.cat([parts, embedding], -1))[..., 0]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Trajectories (B, H, D) at steps (B,) -> values (B,)."""
        return self.windows(x, t).mean(1)
