"""The networks of latent skills (LDCQ, Venkatraman et al. 2024), at the sizes of its released code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffrl_lightning.nets.activations import chain


class Normal(NamedTuple):
    """A diagonal Gaussian."""

    mean: Tensor  # (..., D)
    std: Tensor  # (..., D)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (...) of x (..., D)."""
        return torch.distributions.Normal(*self, validate_args=False).log_prob(x).sum(-1)

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other) (...): zero where they are equal."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return 0.5 * (ratio.square() + shift.square() - 1 - 2 * ratio.log()).sum(-1)


class GaussianMLP(nn.Module):
    """A diagonal Gaussian given a vector: two hidden layers, and one more for either moment.

    Args:
        in_dim: entries of the vector.
        out_dim: D.
        hidden_dim: width.
        min_std: least standard deviation.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, hidden_dim: int, min_std: float = 1e-4
    ) -> None:
        super().__init__()
        self.trunk = _trunk(in_dim, hidden_dim)
        self.heads = _Heads(hidden_dim, out_dim, hidden_dim=hidden_dim, min_std=min_std)

    def forward(self, x: Tensor) -> Normal:
        """(..., in_dim) -> a Gaussian over (..., D)."""
        return self.heads(self.trunk(x))


class AutoregressivePolicy(nn.Module):
    """Actions given a state and a skill, one entry after the other, each by a network of its own.

    Args:
        in_dim: entries of state and skill.
        action_dim: A.
        sizes: ``hidden_dim`` and ``min_std`` of each :class:`GaussianMLP`.
    """

    def __init__(self, in_dim: int, action_dim: int, **sizes: Any) -> None:
        super().__init__()
        self.entries = nn.ModuleList(GaussianMLP(in_dim + i, 1, **sizes) for i in range(action_dim))

    def forward(self, x: Tensor, actions: Tensor) -> Normal:
        """Autoregressive Gaussians of given actions: (..., in_dim), (..., A) -> over (..., A)."""
        entries = [net(torch.cat([x, actions[..., :i]], -1)) for i, net in enumerate(self.entries)]
        return Normal(*(torch.cat(parts, -1) for parts in zip(*entries, strict=True)))

    def act(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (..., A): each entry's mean, or with standard normal noise (..., A) a draw."""
        actions = x.new_zeros(*x.shape[:-1], 0)
        for i, net in enumerate(self.entries):
            entry, std = net(torch.cat([x, actions], -1))
            if noise is not None:
                entry = entry + std * noise[..., i : i + 1]
            actions = torch.cat([actions, entry], -1)
        return actions


class ChunkEncoder(nn.Module):
    """The posterior q(z | chunk): a bidirectional GRU over states and actions.

    Its arguments are those of :class:`SkillVAE`.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int,
        *,
        hidden_dim: int,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.states = _trunk(observation_dim, hidden_dim)
        self.gru = nn.GRU(
            hidden_dim + action_dim, hidden_dim, num_layers, batch_first=True, bidirectional=True
        )
        self.heads = _Heads(2 * hidden_dim, latent_dim, hidden_dim=hidden_dim, min_std=1e-4)

    def forward(self, observations: Tensor, actions: Tensor, mask: Tensor) -> Normal:
        """(B, H, O), (B, H, A) and which steps are real (B, H) -> a Gaussian over (B, D).

        Steps that pad a chunk are seen as zeros.
        """
        steps = torch.cat([self.states(observations), actions], -1) * mask[..., None]
        _, last = self.gru(steps)
        return self.heads(torch.cat([last[-2], last[-1]], -1))  # the end of either direction


class SkillVAE(nn.Module):
    """Encoder, prior, action decoder and end-state decoder of skills.

    Args:
        observation_dim: O.
        action_dim: A.
        latent_dim: D.
        hidden_dim: width of all layers.
        num_layers: layers of the encoder's GRU.
        min_std: least standard deviation of actions and ends.
        clock_dim: entries of the step within a skill, for the action decoder; 0 for none.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int,
        *,
        hidden_dim: int,
        num_layers: int,
        min_std: float,
        clock_dim: int = 0,
    ) -> None:
        super().__init__()
        together = observation_dim + latent_dim
        sizes: Any = {"hidden_dim": hidden_dim, "min_std": min_std}
        self.encoder = ChunkEncoder(
            observation_dim, action_dim, latent_dim, hidden_dim=hidden_dim, num_layers=num_layers
        )
        self.prior = GaussianMLP(observation_dim, latent_dim, hidden_dim=hidden_dim)
        self.policy = AutoregressivePolicy(together + clock_dim, action_dim, **sizes)
        self.dynamics = GaussianMLP(together, observation_dim, **sizes)

    def end(self, observations: Tensor, skills: Tensor) -> Normal:
        """Gaussian over the chunk's next state: its first (..., O), skills (..., D) -> (..., O)."""
        change = self.dynamics(torch.cat([observations, skills], -1))
        return Normal(observations + change.mean, change.std)


class SkillCritic(nn.Module):
    """Several critics Q(s, z) of one shape, for many skills of each state at once.

    Args:
        observation_dim: entries of the state, and of the goal behind it.
        latent_dim: D.
        hidden_dim: width of the state's layers; those of the skill are half as wide.
        num_heads: K.
    """

    def __init__(
        self, observation_dim: int, latent_dim: int, *, hidden_dim: int, num_heads: int = 2
    ) -> None:
        super().__init__()
        half = hidden_dim // 2
        self.states = nn.ModuleList(
            _normed(observation_dim, hidden_dim, hidden_dim) for _ in range(num_heads)
        )
        self.skills = nn.ModuleList(_normed(latent_dim, half, half) for _ in range(num_heads))
        self.joint = nn.ModuleList(
            nn.Sequential(
                *_normed(hidden_dim + half, half, hidden_dim // 8), nn.Linear(hidden_dim // 8, 1)
            )
            for _ in range(num_heads)
        )

    def forward(self, observations: Tensor, skills: Tensor) -> Tensor:
        """(B, O) and (B, M, D) -> (K, B, M)."""
        values = []
        for state_net, skill_net, joint in zip(self.states, self.skills, self.joint, strict=True):
            states = state_net(observations)[:, None].expand(-1, skills.shape[1], -1)
            values.append(joint(torch.cat([states, skill_net(skills)], -1))[..., 0])
        return torch.stack(values)


class _Heads(nn.Module):
    """Mean and standard deviation of a Gaussian, each behind a layer of its own."""

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int, min_std: float) -> None:
        super().__init__()
        self.min_std = min_std
        self.mean, self.spread = (chain(in_dim, hidden_dim, out_dim) for _ in range(2))

    def forward(self, h: Tensor) -> Normal:
        return Normal(self.mean(h), softplus(self.spread(h)) + self.min_std)


def _trunk(in_dim: int, hidden_dim: int) -> nn.Sequential:
    """Two layers with a ReLU behind each."""
    return nn.Sequential(*chain(in_dim, hidden_dim, hidden_dim), nn.ReLU())


def _normed(*dims: int) -> nn.Sequential:
    """Layers with a normalisation and a GELU behind each."""
    layers: list[nn.Module] = []
    for i, o in pairwise(dims):
        layers += [nn.Linear(i, o), nn.LayerNorm(o), nn.GELU()]
    return nn.Sequential(*layers)
