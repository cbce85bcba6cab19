"""Conditions for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffrl_lightning.nets.activations import Mish
from diffrl_lightning.types import InputError


class ConditionalDenoiser(nn.Module):
    """A denoiser with conditions that are dropped at random in training (Ho & Salimans 2022).

    Each kind of condition is embedded by an MLP; embeddings are summed, and a condition that is
    dropped or not given counts 0: the network sees embeddings only, and can not look past the mask.

    Args:
        net: (x (B, H, D), t (B,), cond (B, C)) -> prediction (B, H, D).
        condition_dims: name and width of each kind of condition.
        embed_dim: C.
        drop_prob: chance that a sample's condition is dropped, for each kind by itself.

    Raises:
        InputError: if that is no probability.
    """

    def __init__(
        self, net: nn.Module, *, condition_dims: Mapping[str, int], embed_dim: int, drop_prob: float
    ) -> None:
        super().__init__()
        if not 0 <= drop_prob <= 1:
            raise InputError(f"The chance to drop a condition must lie in [0, 1], not {drop_prob}.")
        self.net, self.embed_dim, self.drop_prob = net, embed_dim, drop_prob
        self.encoders = nn.ModuleDict(
            {name: _encoder(width, embed_dim) for name, width in condition_dims.items()}
        )

    def forward(self, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """(B, H, D) at steps (B,), with conditions (B, width) by name; {} is unconditional."""
        embedding = x.new_zeros(len(x), self.embed_dim)
        for name, condition in conditions.items():
            encoded = self.encoders[name](condition)
            if self.training:
                keep = torch.rand(len(x), 1, device=x.device) >= self.drop_prob
                encoded = encoded * keep
            embedding = embedding + encoded
        return self.net(x, t, embedding)


def _encoder(width: int, dim: int) -> nn.Sequential:
    """The MLP of Decision Diffuser's released code."""
    return nn.Sequential(
        nn.Linear(width, dim),
        Mish(),
        nn.Linear(dim, 4 * dim),
        Mish(),
        nn.Linear(4 * dim, dim),
    )
