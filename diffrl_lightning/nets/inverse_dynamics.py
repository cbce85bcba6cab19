"""Inverse dynamics: the action that leads from one state to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InverseDynamics(nn.Sequential):
    """An MLP (s, s') -> a (Ajay et al. 2023).

    Args:
        observation_dim: O.
        action_dim: A.
        hidden_dim: width of its two hidden layers.
    """

    def __init__(self, observation_dim: int, action_dim: int, *, hidden_dim: int = 256) -> None:
        super().__init__(
            nn.Linear(2 * observation_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, action_dim),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Normalised states in a row (..., H, O) -> the actions between them (..., H - 1, A)."""
        return super().forward(torch.cat([states[..., :-1, :], states[..., 1:, :]], -1))
