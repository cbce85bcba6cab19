"""Linear layers with activations, and Mish by one sigmoid, which takes a third of the time on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def chain(*dims: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths, with an activation between each two."""
    layers = [m for i, o in pairwise(dims) for m in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers[:-1])


def mish(x: Tensor) -> Tensor:
    """``x tanh(softplus(x))`` (Misra 2020); (...) -> (...).

    With s = sigmoid(x) and q = 1 - s, tanh(softplus(x)) = s (1 + q) / (1 + q^2): no exponential and no
    logarithm more. Elsewhere than on a CPU, and in other precisions than the usual two, it is
    PyTorch's own, but for the second derivative, which there is not a number above 88.
    """
    return functional.mish(x) if torch.compiler.is_compiling() else _Mish.apply(x)


class Mish(nn.Module):
    """The function :func:`mish` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return mish(x)


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            ctx.save_for_backward(x)
            return functional.mish(x)
        s = x.sigmoid()
        q = 1 - s
        w = torch.addcmul(s, s, q).div_(q.mul_(q).add_(1))  # tanh(softplus(x))
        if not ctx.needs_input_grad[0]:
            return w.mul_(x)
        # The slope is w + x s (1 - w^2); made here, where s and w are at hand.
        s.addcmul_(s, torch.mul(w, w, out=q), value=-1)
        ctx.save_for_backward(x, torch.addcmul(w, s, x))
        return w.mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, *slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            q2 = (-y).sigmoid().square()
            # 1 - w^2 = 4 q^2 / (1 + q^2)^2
            fresh = (1 - q2) / (1 + q2) + y * y.sigmoid() * q2 * (2 / (1 + q2)).square()
            return grad * fresh.to(x.dtype)
        return grad * slope[0] if slope else torch.ops.aten.mish_backward(grad, x)
