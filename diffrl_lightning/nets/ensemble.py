"""Several networks of one shape, computed together."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class EnsembleMLP(nn.Module):
    """K MLPs of the same input, each with weights of its own.

    Args:
        in_dim: entries of the input.
        out_dim: entries of the output.
        hidden_dim: width.
        num_layers: hidden layers.
        num_members: K.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, hidden_dim: int, num_layers: int, num_members: int
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, o in pairwise([in_dim, *[hidden_dim] * num_layers, out_dim]):
            bound = 1 / math.sqrt(i)  # as nn.Linear begins
            self.weights.append(torch.empty(num_members, i, o).uniform_(-bound, bound))
            self.biases.append(torch.empty(num_members, 1, o).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (K, B, out_dim)."""
        *inner, (weight, bias) = zip(self.weights, self.biases, strict=True)
        h = x.expand(len(bias), -1, -1)
        for w, b in inner:
            h = silu(torch.baddbmm(b, h, w))
        return torch.baddbmm(bias, h, weight)
