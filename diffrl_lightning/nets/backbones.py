"""The networks that denoise trajectories and chunks of actions, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from diffrl_lightning.nets.mlp import ResidualMLP
from diffrl_lightning.nets.temporal_unet import TemporalUnet, check_horizon
from diffrl_lightning.nets.transformer import ActionTransformer, DiT1d
from diffrl_lightning.types import InputError

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

    Raises:
        InputError: if the name is unknown, or the horizon does not suit the U-Net.
    """
    if backbone == "unet":
        check_horizon(horizon, dim_mults)
        return TemporalUnet(
            transition_dim, dim=dim, dim_mults=dim_mults, attention=attention, cond_dim=cond_dim
        )
    if backbone == "dit":
        return DiT1d(transition_dim, dim=dim, depth=depth, num_heads=num_heads, cond_dim=cond_dim)
    raise InputError(f"{backbone=} is unknown: choose unet or dit.")


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

    Raises:
        InputError: if the name is unknown, or the horizon does not suit the U-Net.
    """
    if backbone == "unet":
        check_horizon(horizon, dim_mults)
        cond_dim = n_obs_steps * observation_dim
        return TemporalUnet(action_dim, dim=dim, dim_mults=dim_mults, cond_dim=cond_dim, film=True)
    if backbone == "transformer":
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
    if backbone == "mlp":
        return ResidualMLP(
            horizon * action_dim,
            cond_dim=n_obs_steps * observation_dim,
            hidden_dim=dim,
            num_blocks=depth,
            dropout=dropout,
        )
    raise InputError(f"{backbone=} is unknown: choose unet, transformer or mlp.")
