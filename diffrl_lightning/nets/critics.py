"""Networks of one shape computed together, critics among them, and networks with constant weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm as normalized
from torch.nn.functional import relu, silu

from diffrl_lightning.nets.activations import mish

Activation = Literal["mish", "relu"]


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
        dims = [in_dim, *[hidden_dim] * num_layers, out_dim]
        self.weights, self.biases = _stacked_layers(dims, num_members, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (K, B, out_dim)."""
        *inner, (weight, bias) = zip(self.weights, self.biases, strict=True)
        h = x.expand(len(bias), -1, -1)
        for w, b in inner:
            h = silu(torch.baddbmm(b, h, w))
        return torch.baddbmm(bias, h, weight)


class TwinQ(nn.Module):
    """Several critics Q(s, a) of one shape, computed together; two by default.

    Args:
        observation_dim: O.
        action_dim: A.
        hidden_dim: width.
        num_layers: hidden layers.
        activation: between the layers.
        num_heads: K, critics.
        layer_norm: normalise each hidden layer before its activation, which bounds how far values can
            grow beyond the data (Ball et al. 2023, section 4.2).
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden_dim: int = 256,
        num_layers: int = 2,
        activation: Activation = "mish",
        num_heads: int = 2,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        activations: dict[str, Callable[[Tensor], Tensor]] = {"mish": mish, "relu": relu}
        self.activation = activations[activation]
        dims = [observation_dim + action_dim, *[hidden_dim] * num_layers, 1]
        self.weights, self.biases = _stacked_layers(dims, num_heads)

    def forward(self, observations: Tensor, actions: Tensor, heads: Tensor | None = None) -> Tensor:
        """(B, O) and (B, A) -> (K, B), or of these ``heads`` (k,) alone, (k, B)."""
        layers = list(zip(self.weights, self.biases, strict=True))
        if heads is not None:
            layers = [(weight[heads], bias[heads]) for weight, bias in layers]
        *inner, last = layers
        h = torch.cat([observations, actions], -1).expand(len(last[1]), -1, -1)
        for weight, bias in inner:
            h = torch.baddbmm(bias[:, None], h, weight)
            h = self.activation(normalized(h, h.shape[-1:]) if self.layer_norm else h)
        weight, bias = last
        # A matrix product with one column is slower.
        return (h * weight[:, None, :, 0]).sum(-1) + bias


def frozen(net: nn.Module) -> Callable[..., Tensor]:
    """A network with constant weights: gradients reach its inputs only."""
    weights = {name: p.detach() for name, p in net.named_parameters()}
    return lambda *args: functional_call(net, weights, args)


def _stacked_layers(
    dims: Sequence[int], members: int, *bias_dims: int
) -> tuple[nn.ParameterList, nn.ParameterList]:
    """Weights (K, i, o) and biases (K, *bias_dims, o) of K MLPs, drawn as nn.Linear's."""
    weights, biases = nn.ParameterList(), nn.ParameterList()
    for i, o in pairwise(dims):
        bound = 1 / math.sqrt(i)
        weights.append(torch.empty(members, i, o).uniform_(-bound, bound))
        biases.append(torch.empty(members, *bias_dims, o).uniform_(-bound, bound))
    return weights, biases
