"""MLPs: plain ones, and ones that denoise a vector given a condition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from diffrl_lightning.nets.activations import Mish, chain, mish
from diffrl_lightning.nets.embeddings import (
    FourierEmbedding,
    NoiseLevelEmbedding,
    StepEmbedding,
    embed_step,
)


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    num_layers: int = 2,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """``num_layers`` hidden layers of one width; (..., in_dim) -> (..., out_dim)."""
    return chain(in_dim, *[hidden_dim] * num_layers, out_dim, activation=activation)


class InverseDynamics(nn.Sequential):
    """An MLP (s, s') -> a: the action that leads from one state to the next (Ajay et al. 2023).

    Args:
        observation_dim: O.
        action_dim: A.
        hidden_dim: width of its two hidden layers.
    """

    def __init__(self, observation_dim: int, action_dim: int, *, hidden_dim: int = 256) -> None:
        super().__init__(*chain(2 * observation_dim, hidden_dim, hidden_dim, action_dim))

    def forward(self, states: Tensor) -> Tensor:
        """Normalised states in a row (..., H, O) -> the actions between them (..., H - 1, A)."""
        return super().forward(torch.cat([states[..., :-1, :], states[..., 1:, :]], -1))


class DenoisingMLP(nn.Module):
    """The actor of Diffusion-QL: an MLP of the noised vector, the step and the condition.

    Args:
        dim: D, entries of the denoised vector.
        cond_dim: C, entries of the condition.
        hidden_dim: width.
        num_layers: hidden layers.
    """

    def __init__(
        self, dim: int, *, cond_dim: int, hidden_dim: int = 256, num_layers: int = 3
    ) -> None:
        super().__init__()
        self.embed = embed_step(16, ratio=2)
        self.net = chain(dim + 16 + cond_dim, *[hidden_dim] * num_layers, dim, activation=Mish)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, *S) of D entries at steps (B,), conditions (B, C) -> (B, *S)."""
        return self.net(torch.cat([x.flatten(1), self.embed(t), cond], -1)).view_as(x)


class ResidualMLP(nn.Module):
    """The actor of IDQL: an MLP of pre-normalised residual blocks ("LN-ResNet").

    Args:
        dim: D, entries of the denoised vector.
        cond_dim: C, entries of the condition.
        hidden_dim: width of the residual stream; blocks are four times as wide inside.
        num_blocks: residual blocks.
        dropout: chance that an entry is dropped before each block.
    """

    def __init__(
        self,
        dim: int,
        *,
        cond_dim: int,
        hidden_dim: int = 256,
        num_blocks: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = StepEmbedding(FourierEmbedding(64), *chain(64, 128, 128, activation=Mish))
        self.first = nn.Linear(dim + cond_dim + 128, hidden_dim)
        wide = (hidden_dim, 4 * hidden_dim, hidden_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(dropout), nn.LayerNorm(hidden_dim), *chain(*wide, activation=Mish)
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Linear(hidden_dim, dim)
        for layer in (self.first, self.last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, *S) of D entries at steps (B,), conditions (B, C) -> (B, *S)."""
        h = self.first(torch.cat([x.flatten(1), cond, self.embed(t)], -1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(mish(h)).view_as(x)


class TransitionMLP(nn.Module):
    """The network of SynthER (Lu et al. 2023): wide residual layers over a vector and a noise level.

    Args:
        dim: D, entries of the denoised vector.
        cond_dim: C, entries of the condition; 0 for none.
        hidden_dim: width of the residual stream.
        num_blocks: residual layers.
        embed_dim: width of the first layer and of the level's embedding.
        layer_norm: normalise before each residual layer, and before the last one.
    """

    def __init__(
        self,
        dim: int,
        *,
        cond_dim: int = 0,
        hidden_dim: int = 1024,
        num_blocks: int = 6,
        embed_dim: int = 128,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        frequencies = 8
        self.embed = StepEmbedding(
            NoiseLevelEmbedding(frequencies),
            *chain(1 + 2 * frequencies, embed_dim, embed_dim, activation=nn.SiLU),
        )
        self.first = nn.Linear(dim + cond_dim, embed_dim)
        self.widen = nn.Linear(embed_dim, hidden_dim)
        norm = nn.LayerNorm if layer_norm else nn.Identity
        self.blocks = nn.ModuleList(
            nn.Sequential(norm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim))
            for _ in range(num_blocks)
        )
        self.norm = norm(hidden_dim)
        self.last = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, *S) of D entries at levels (B,), conditions (B, C) -> (B, *S)."""
        flat = x.flatten(1) if cond is None else torch.cat([x.flatten(1), cond], -1)
        h = self.widen(self.first(flat) + self.embed(t))
        for block in self.blocks:
            h = h + block(h)
        return self.last(relu(self.norm(h))).view_as(x)
