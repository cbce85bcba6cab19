"""Transformers over the steps of a trajectory, and over those of a chunk of actions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffrl_lightning.nets.activations import Mish, chain
from diffrl_lightning.nets.embeddings import SinusoidalEmbedding, StepEmbedding, embed_step
from diffrl_lightning.types import InputError


class DiTBlock(nn.Module):
    """Self-attention and an MLP, each scaled, shifted and gated by the embedding (adaLN-Zero)."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = chain(dim, 4 * dim, dim, activation=partial(nn.GELU, approximate="tanh"))
        self.modulation = nn.Sequential(nn.SiLU(), _zero(nn.Linear(dim, 6 * dim)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, H, C), (B, C) -> (B, H, C)."""
        attention, mlp = self.modulation(embedding)[:, None].chunk(2, -1)
        shift, scale, gate = attention.chunk(3, -1)
        x = x + gate * self._attend(self.norm_attention(x) * (1 + scale) + shift)
        shift, scale, gate = mlp.chunk(3, -1)
        return x + gate * self.mlp(self.norm_mlp(x) * (1 + scale) + shift)

    def _attend(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class DiT1d(nn.Module):
    """A transformer whose tokens are the steps of a trajectory (Peebles & Xie 2023, with adaLN-Zero).

    The steps' positions are sines and cosines, so that any horizon will do.

    Args:
        transition_dim: D, channels of a trajectory.
        dim: width, a multiple of ``2 * num_heads``.
        depth: number of blocks.
        num_heads: heads of the attention.
        cond_dim: width of a condition's embedding, which is added to the step's; 0 for none.
    """

    def __init__(
        self,
        transition_dim: int,
        *,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        cond_dim: int = 0,
    ) -> None:
        super().__init__()
        if dim < 4 or num_heads < 1 or dim % (2 * num_heads):
            raise InputError(f"{dim=} must be at least 4 and a multiple of 2 * {num_heads=}.")
        self.position = SinusoidalEmbedding(dim)
        self.embed = embed_step(dim)
        self.embed_cond = nn.Linear(cond_dim, dim) if cond_dim else None
        self.embed_x = nn.Linear(transition_dim, dim)
        self.blocks = nn.ModuleList(DiTBlock(dim, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), _zero(nn.Linear(dim, 2 * dim)))
        self.head = _zero(nn.Linear(dim, transition_dim))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Trajectories (B, H, D) at steps (B,), conditions (B, cond_dim) -> prediction (B, H, D)."""
        embedding = self.embed(t)
        if self.embed_cond is not None:
            embedding = embedding + self.embed_cond(cond)
        h = self.embed_x(x) + self.position(torch.arange(x.shape[1], device=x.device)).to(x.dtype)
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, -1)
        return self.head(self.norm(h) * (1 + scale) + shift)


class ActionTransformer(nn.Module):
    """The causal decoder of Diffusion Policy (Chi et al. 2023) over the actions of a chunk.

    Each action attends to those before it, to the diffusion step, and to the observations up to its
    own time.

    Args:
        action_dim: A.
        horizon: H, actions of a chunk; fixed, for positions are learned.
        observation_dim: O.
        n_obs_steps: C, observations.
        dim: width.
        depth: decoder layers.
        num_heads: heads of the attention.
        dropout: chance that an entry is dropped in the layers.
    """

    def __init__(
        self,
        action_dim: int,
        *,
        horizon: int,
        observation_dim: int,
        n_obs_steps: int,
        dim: int,
        depth: int,
        num_heads: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.n_obs_steps = n_obs_steps
        self.embed_t = SinusoidalEmbedding(dim)
        self.embed_x = nn.Linear(action_dim, dim)
        self.embed_observation = nn.Linear(observation_dim, dim)
        self.position = nn.Parameter(torch.zeros(horizon, dim))
        self.memory_position = nn.Parameter(torch.zeros(1 + n_obs_steps, dim))
        self.encoder = chain(dim, 4 * dim, dim, activation=Mish)
        layer = nn.TransformerDecoderLayer(
            dim, num_heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, action_dim))
        self.apply(_init_small)
        for position in (self.position, self.memory_position):
            nn.init.normal_(position, std=0.02)
        step, token = torch.arange(horizon)[:, None], torch.arange(1 + n_obs_steps)
        self.register_buffer("hidden", step < torch.arange(horizon), persistent=False)
        self.register_buffer("memory_hidden", token > step + 1, persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Chunks (B, H, A) at steps (B,), observations (B, C * O) in a row -> (B, H, A)."""
        observations = cond.unflatten(-1, (self.n_obs_steps, -1))
        step = self.embed_t(t)[:, None].to(x.dtype)
        memory = torch.cat([step, self.embed_observation(observations)], 1)
        h = self.decoder(
            self.embed_x(x) + self.position,
            self.encoder(memory + self.memory_position),
            tgt_mask=self.hidden,
            memory_mask=self.memory_hidden,
            tgt_is_causal=True,  # detecting it would synchronise with the device
        )
        return self.head(h)


class StepTransformer(nn.Module):
    """A causal transformer over the steps of a trajectory, conditioned at each step.

    Positions and the noise level are sines and cosines, added to every token.

    Args:
        transition_dim: D, channels that are denoised.
        cond_dim: C, channels of the condition.
        dim: width.
        depth: layers.
        num_heads: heads of the attention.
    """

    def __init__(
        self, transition_dim: int, *, cond_dim: int, dim: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.position = SinusoidalEmbedding(dim)
        layers = chain(dim, dim, dim, activation=nn.GELU)
        self.embed_level = StepEmbedding(SinusoidalEmbedding(dim), *layers)
        self.embed_x = nn.Linear(transition_dim + cond_dim, dim)
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, transition_dim))
        self.apply(_init_small)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, H, D) at steps (B,), given (B, H, C) -> (B, H, D)."""
        horizon = x.shape[1]
        steps = torch.arange(horizon, device=x.device)
        h = self.embed_x(torch.cat([x, cond], -1)) + self.position(steps).to(x.dtype)
        h = h + self.embed_level(t.to(x.dtype))[:, None]
        hidden = steps[:, None] < steps
        return self.head(self.encoder(h, mask=hidden, is_causal=True))


def _check_heads(dim: int, num_heads: int) -> None:
    if dim < 4 or num_heads < 1 or dim % num_heads or dim % 2:
        raise InputError(f"{dim=} must be even, at least 4 and a multiple of {num_heads=}.")


def _init_small(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)


def _zero(layer: nn.Linear) -> nn.Linear:
    """A layer that begins at zero, so that blocks begin as identities."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
