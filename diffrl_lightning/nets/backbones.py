"""The networks that denoise trajectories, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from diffrl_lightning.nets.temporal_unet import TemporalUnet, check_horizon
from diffrl_lightning.nets.transformer import DiT1d
from diffrl_lightning.types import InputError

Backbone = Literal["unet", "dit"]


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
