"""Conditions for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffrl_lightning.nets.activations import Mish, chain
from diffrl_lightning.nets.mlp import mlp
from diffrl_lightning.types import DenoiseFn


class ConditionEmbedding(nn.Module):
    """Conditions by name -> (B, C), the sum of an MLP's embedding of each kind.

    In training each kind is dropped at random; a condition that is dropped or missing contributes 0.
    Kinds in ``always`` are embedded together, and are inputs of the other kinds' MLPs too, since a sum
    of embeddings models interactions of conditions poorly. A condition that may be dropped may be a
    set of vectors (B, K, width), whose embeddings are averaged.

    Args:
        condition_dims: name and width of each kind of condition.
        embed_dim: C.
        drop_prob: chance that a sample's condition is dropped, for each kind by itself.
        always: kinds that are always given, and never dropped.
    """

    def __init__(
        self,
        condition_dims: Mapping[str, int],
        *,
        embed_dim: int,
        drop_prob: float,
        always: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.embed_dim, self.drop_prob = embed_dim, drop_prob
        self.always = [name for name in condition_dims if name in always]
        shared = sum(condition_dims[name] for name in self.always)
        widths = {name: d + shared for name, d in condition_dims.items() if name not in always}
        if shared:
            widths["always"] = shared
        inner = (embed_dim, 4 * embed_dim, embed_dim)  # as Decision Diffuser's released code has it
        self.encoders = nn.ModuleDict(
            {name: chain(d, *inner, activation=Mish) for name, d in widths.items()}
        )

    def forward(self, conditions: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Conditions (B, width) or (B, K, width) by name -> (B, C); B and the dtype are of ``like``."""
        embedding = like.new_zeros(len(like), self.embed_dim)
        shared = None
        if self.always:
            shared = torch.cat([conditions[name] for name in self.always], -1)
            embedding = self.encoders["always"](shared)
        for name, condition in conditions.items():
            if name in self.always:
                continue
            if shared is not None:
                rows = shared if condition.ndim == 2 else shared[:, None]
                condition = torch.cat([condition, rows.expand(*condition.shape[:-1], -1)], -1)
            encoded = self.encoders[name](condition)
            if encoded.ndim == 3:
                encoded = encoded.mean(1)
            if self.training:
                keep = torch.rand(len(like), 1, device=like.device) >= self.drop_prob
                encoded = encoded * keep
            embedding = embedding + encoded
        return embedding


class ConditionalDenoiser(nn.Module):
    """A denoiser with conditions that are dropped at random in training (Ho & Salimans 2022).

    The network sees their embedding only, and can not look past the mask.

    Args:
        net: (x (B, *S), t (B,), cond (B, C)) -> prediction (B, *S).
        embedding: keywords of :class:`ConditionEmbedding`.
    """

    def __init__(self, net: nn.Module, **embedding: Any) -> None:
        super().__init__()
        self.net = net
        self.embed = ConditionEmbedding(**embedding)

    def forward(self, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """(B, *S) at steps (B,), with conditions by name; {} is unconditional."""
        return self.net(x, t, self.embed(conditions, x))

    def bind(self, conditions: Mapping[str, Tensor], like: Tensor) -> DenoiseFn:
        """The network under conditions that are embedded once, not at every step of a sampler.

        ``like`` has the batch size and the dtype of what is denoised.
        """
        embedding = self.embed(conditions, like)
        return lambda x, t: self.net(x, t, embedding)


class ConditionalMLP(nn.Module):
    """A scalar function of conditions, each of which may be missing.

    Args:
        condition_dims: as for :class:`ConditionEmbedding`.
        hidden_dim: width of the MLP behind the embedding.
        embedding: the other keywords of it.
    """

    def __init__(
        self, condition_dims: Mapping[str, int], *, hidden_dim: int, **embedding: Any
    ) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(condition_dims, **embedding)
        self.net = mlp(self.embed.embed_dim, hidden_dim, 1, activation=Mish)

    def forward(self, conditions: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Conditions by name -> (B,); B and the dtype are those of ``like``."""
        return self.net(self.embed(conditions, like))[:, 0]
