"""The networks that denoise trajectories and chunks of actions, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from diffrl_lightning.inputs import one_of
from diffrl_lightning.nets.mlp import ResidualMLP
from diffrl_lightning.nets.temporal_unet import TemporalUnet, check_horizon
from diffrl_lightning.nets.transformer import ActionTransformer, DiT1d

Backbone = Literal["unet", "dit"]
ChunkBackbone = Literal["unet", "transformer", "mlp"]


def make_backbone(
    backbone: Backbone,
    transition_dim: int,
    *,
    horizon: int,
    dim: int,
    dim_mults: Sequence[int],
    attention: bool,
    depth: int,
    num_heads: int,
    cond_dim: int = 0,
) -> nn.Module:
    """A network (B, H, D), t (B,), cond (B, cond_dim) -> (B, H, D).

    ``dim_mults`` and ``attention`` are the U-Net's, ``depth`` and ``num_heads`` the transformer's.
    """
    one_of(get_args(Backbone), backbone=backbone)
    if backbone == "dit":
        return DiT1d(transition_dim, dim=dim, depth=depth, num_heads=num_heads, cond_dim=cond_dim)
    check_horizon(horizon, dim_mults)
    return TemporalUnet(
        transition_dim, dim=dim, dim_mults=dim_mults, attention=attention, cond_dim=cond_dim
    )


def make_chunk_backbone(
    backbone: ChunkBackbone,
    action_dim: int,
    *,
    horizon: int,
    observation_dim: int,
    n_obs_steps: int,
    dim: int,
    dim_mults: Sequence[int],
    depth: int,
    num_heads: int,
    dropout: float,
) -> nn.Module:
    """A network (B, H, A), t (B,), observations (B, n_obs_steps * O) -> (B, H, A).

    ``dim_mults`` are the U-Net's, ``num_heads`` the transformer's, ``depth`` counts the transformer's
    layers and the MLP's blocks, ``dropout`` is of both.
    """
    one_of(get_args(ChunkBackbone), backbone=backbone)
    cond_dim = n_obs_steps * observation_dim
    if backbone == "unet":
        check_horizon(horizon, dim_mults)
        return TemporalUnet(action_dim, dim=dim, dim_mults=dim_mults, cond_dim=cond_dim, film=True)
    if backbone == "mlp":
        entries = horizon * action_dim
        return ResidualMLP(
            entries, cond_dim=cond_dim, hidden_dim=dim, num_blocks=depth, dropout=dropout
        )
    return ActionTransformer(
        action_dim,
        horizon=horizon,
        observation_dim=observation_dim,
        n_obs_steps=n_obs_steps,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        dropout=dropout,
    )
