"""Networks: plain ``nn.Module`` classes."""

from diffrl_lightning.nets.ema import EMA
from diffrl_lightning.nets.embeddings import SinusoidalEmbedding
from diffrl_lightning.nets.temporal_unet import TemporalUnet, check_horizon

__all__ = ["EMA", "SinusoidalEmbedding", "TemporalUnet", "check_horizon"]
