"""Networks: plain ``nn.Module`` classes."""

from diffrl_lightning.nets.backbones import Backbone, make_backbone
from diffrl_lightning.nets.conditional import ConditionalDenoiser
from diffrl_lightning.nets.ema import EMA
from diffrl_lightning.nets.embeddings import SinusoidalEmbedding
from diffrl_lightning.nets.inverse_dynamics import InverseDynamics
from diffrl_lightning.nets.temporal_unet import TemporalUnet, check_horizon
from diffrl_lightning.nets.transformer import DiT1d
from diffrl_lightning.nets.value import TemporalValue

__all__ = [
    "EMA",
    "Backbone",
    "ConditionalDenoiser",
    "DiT1d",
    "InverseDynamics",
    "SinusoidalEmbedding",
    "TemporalUnet",
    "TemporalValue",
    "check_horizon",
    "make_backbone",
]
