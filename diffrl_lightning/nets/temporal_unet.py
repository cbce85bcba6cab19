"""The temporal U-Net of Diffuser (Janner et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffrl_lightning.nets.activations import Mish
from diffrl_lightning.nets.embeddings import embed_step
from diffrl_lightning.types import InputError


def conv_block(in_dim: int, out_dim: int) -> nn.Sequential:
    """Convolution over time, group normalisation, Mish; (B, C, H) -> (B, C', H)."""
    conv = nn.Conv1d(in_dim, out_dim, 5, padding=2)
    return nn.Sequential(conv, nn.GroupNorm(8, out_dim), Mish())


class ResidualBlock(nn.Module):
    """Two convolution blocks with the embedding between them, and a skip.

    The embedding is added, or, with ``film``, scales and shifts (Perez et al. 2018).
    """

    def __init__(self, in_dim: int, out_dim: int, *, embed_dim: int, film: bool = False) -> None:
        super().__init__()
        self.film = film
        self.conv_in = conv_block(in_dim, out_dim)
        self.embed = nn.Sequential(Mish(), nn.Linear(embed_dim, 2 * out_dim if film else out_dim))
        self.conv_out = conv_block(out_dim, out_dim)
        self.skip = nn.Conv1d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H), (B, E) -> (B, C', H)."""
        h, embedded = self.conv_in(x), self.embed(embedding)[:, :, None]
        if self.film:
            scale, shift = embedded.chunk(2, 1)
            h = scale * h + shift
        else:
            h = h + embedded
        return self.conv_out(h) + self.skip(x)


class LinearAttention(nn.Module):
    """Attention over time at linear cost (Katharopoulos et al. 2020), pre-normed, with a skip.

    Args:
        dim: channels C.
        num_heads: heads.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, head_dim: int = 32) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Conv1d(dim, 3 * num_heads * head_dim, 1, bias=False)
        self.out = nn.Conv1d(num_heads * head_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H) -> (B, C, H)."""
        h = self.norm(x.transpose(1, 2)).transpose(1, 2)
        heads = (self.num_heads, self.head_dim)
        q, k, v = (part.unflatten(1, heads) for part in self.qkv(h).chunk(3, dim=1))  # (B, h, d, H)
        context = k.softmax(-1) @ v.transpose(2, 3)  # (B, h, d, d)
        attended = context.transpose(2, 3) @ (q * self.head_dim**-0.5)
        return x + self.out(attended.flatten(1, 2))


class TemporalUnet(nn.Module):
    """A U-Net that convolves over the horizon, for trajectories (B, H, D).

    It is fully convolutional: the horizon may differ between training and use as long as it divides
    by ``2 ** (len(dim_mults) - 1)``.

    Args:
        transition_dim: D, channels of a trajectory.
        dim: width of the first level, a multiple of 8.
        dim_mults: width of each level in multiples of ``dim``; each level but the last halves H.
        attention: linear attention at every level and in the middle.
        cond_dim: width of a condition, or of its embedding, which joins the step's; 0 for none.
        film: they scale and shift the features instead of being added to them.
    """

    def __init__(
        self,
        transition_dim: int,
        *,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        attention: bool = False,
        cond_dim: int = 0,
        film: bool = False,
    ) -> None:
        super().__init__()
        if dim % 8:
            raise InputError(f"{dim=} must be a multiple of 8, the number of normalised groups.")
        self.embed = embed_step(dim)

        def block(in_dim: int, out_dim: int) -> ResidualBlock:
            return ResidualBlock(in_dim, out_dim, embed_dim=dim + cond_dim, film=film)

        def attend(dim: int) -> nn.Module:
            return LinearAttention(dim) if attention else nn.Identity()

        def halve(dim: int, *, last: bool) -> nn.Module:
            return nn.Identity() if last else nn.Conv1d(dim, dim, 3, 2, 1)

        dims = [transition_dim, *(dim * m for m in dim_mults)]
        levels = list(pairwise(dims))
        self.down = nn.ModuleList(
            nn.ModuleList(
                [block(i, o), block(o, o), attend(o), halve(o, last=index == len(levels))]
            )
            for index, (i, o) in enumerate(levels, 1)
        )
        first, last = dims[1], dims[-1]
        self.middle = nn.ModuleList([block(last, last), attend(last), block(last, last)])
        self.up = nn.ModuleList(
            nn.ModuleList(
                [block(2 * o, i), block(i, i), attend(i), nn.ConvTranspose1d(i, i, 4, 2, 1)]
            )
            for i, o in reversed(levels[1:])
        )
        self.head = nn.Sequential(conv_block(first, first), nn.Conv1d(first, transition_dim, 1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Trajectories (B, H, D) at steps (B,), conditions (B, cond_dim) -> prediction (B, H, D)."""
        embedding = self.embed(t) if cond is None else torch.cat([self.embed(t), cond], -1)
        h = x.transpose(1, 2)
        skips = []
        down: Any = self.down  # a ModuleList of ModuleLists, which type checkers do not see
        up: Any = self.up
        for first, second, attend, downsample in down:
            h = attend(second(first(h, embedding), embedding))
            skips.append(h)
            h = downsample(h)
        first, attend, second = self.middle
        h = second(attend(first(h, embedding)), embedding)
        for first, second, attend, upsample in up:
            h = torch.cat([h, skips.pop()], 1)
            h = upsample(attend(second(first(h, embedding), embedding)))
        return self.head(h).transpose(1, 2)


def check_horizon(horizon: int, dim_mults: Sequence[int]) -> None:
    """Refuse a horizon that a U-Net of these levels can not halve and double again.

    Raises:
        InputError: naming the nearest horizons that work.
    """
    factor = 2 ** (len(dim_mults) - 1)
    if horizon < factor or horizon % factor:
        below, above = horizon // factor * factor, -(-horizon // factor) * factor
        nearest = " or ".join(str(h) for h in (below, above) if h > 0)
        raise InputError(
            f"{horizon=} must divide by {factor} for a U-Net of {len(dim_mults)} levels: "
            f"use {nearest}."
        )
