"""Networks: plain ``nn.Module`` classes."""

from diffrl_lightning.nets.backbones import (
    Backbone,
    ChunkBackbone,
    make_backbone,
    make_chunk_backbone,
)
from diffrl_lightning.nets.conditional import ConditionalDenoiser, ConditionalMLP
from diffrl_lightning.nets.critics import EnsembleMLP, TwinQ, frozen
from diffrl_lightning.nets.ema import EMA
from diffrl_lightning.nets.mlp import (
    DenoisingMLP,
    InverseDynamics,
    ResidualMLP,
    TransitionMLP,
    mlp,
)
from diffrl_lightning.nets.skills import Normal, SkillCritic, SkillVAE
from diffrl_lightning.nets.temporal_unet import TemporalUnet, check_horizon
from diffrl_lightning.nets.transformer import ActionTransformer, DiT1d, StepTransformer
from diffrl_lightning.nets.value import TemporalValue, WindowValue
