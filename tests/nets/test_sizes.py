"""Published parameter counts."""

from functools import partial

import pytest
import torch

from diffrl_lightning.nets import (
    ConditionalDenoiser,
    DenoisingMLP,
    InverseDynamics,
    ResidualMLP,
    SkillCritic,
    SkillVAE,
    TemporalUnet,
    TemporalValue,
    TwinQ,
    mlp,
)
from nets.helpers import chunks


def decision_diffuser(observation_dim):
    net = TemporalUnet(observation_dim, dim=128, dim_mults=(1, 4, 8), cond_dim=128)
    return ConditionalDenoiser(net, condition_dims={"returns": 1}, embed_dim=128, drop_prob=0.25)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (partial(chunks, "unet", 20, 2), 65_783_298),
        (partial(chunks, "unet", 60, 9), 66_942_729),
        (partial(chunks, "unet", 23, 7), 65_878_279),
        (partial(chunks, "unet", 16, 2, n_obs_steps=3), 65_897_986),
        (partial(TemporalUnet, 22, dim=256, dim_mults=(1, 2, 4), film=True), 65_245_718),
        (partial(chunks, "transformer", 20, 2), 8_965_122),
        (partial(chunks, "transformer", 23, 10, horizon=10), 8_968_458),
        (partial(chunks, "transformer", 16, 2, horizon=5, n_obs_steps=3), 8_961_538),
        (partial(chunks, "transformer", 60, 9, n_obs_steps=4, dim=768), 80_415_753),
        (partial(DenoisingMLP, 3, cond_dim=11), 141_363),
        (partial(ResidualMLP, 3, cond_dim=11), 1_640_483),
        (partial(TwinQ, 11, 3, num_layers=3), 271_362),
        (partial(TwinQ, 11, 3), 139_778),
        (partial(SkillCritic, 11, 16, hidden_dim=256, num_heads=1), 142_849),
        (partial(mlp, 11, 256, 1), 69_121),
        (partial(TemporalUnet, 6, dim_mults=(1, 4, 8)), 3_682_118),
        (partial(TemporalUnet, 14), 3_956_302),
        (partial(TemporalUnet, 23), 3_958_327),
        (partial(TemporalUnet, 23, dim_mults=(1, 4, 8)), 3_685_943),
        (partial(TemporalUnet, 23, dim_mults=(1, 4, 8), attention=True), 4_114_423),
        (partial(TemporalValue, 14, horizon=32), 2_294_817),
        (partial(TemporalValue, 23, horizon=32), 2_296_545),
        (partial(TemporalValue, 23, horizon=4, dim_mults=(1, 4, 8)), 2_180_833),
        (partial(decision_diffuser, 11), 59_732_491),
        (partial(decision_diffuser, 17), 59_737_873),
        (partial(InverseDynamics, 11, 3), 72_451),
        (partial(InverseDynamics, 17, 6), 76_294),
    ],
)
def test_published_parameter_counts(make, parameters):
    with torch.device("meta"):  # shapes alone
        net = make()
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("part", "parameters"),
    [("encoder", 4_694_304), ("policy", 1_684_496), ("dynamics", 224_058), ("prior", 213_280)],
)
def test_published_parameter_counts_of_skills(part, parameters):
    """LDCQ on AntMaze; its code has 89,344 more that are never used."""
    with torch.device("meta"):
        net = SkillVAE(29, 8, 16, hidden_dim=256, num_layers=4, min_std=0.01)
    assert sum(p.numel() for p in getattr(net, part).parameters()) == parameters
