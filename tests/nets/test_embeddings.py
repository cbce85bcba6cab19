"""Embeddings of the diffusion step."""

import pytest
import torch

from diffrl_lightning.nets.embeddings import FourierEmbedding


def test_fourier_features_are_their_formula():
    net = FourierEmbedding(6)
    t = torch.tensor([0, 1, 4])
    angles = 2 * torch.pi * t[:, None] * net.frequencies
    torch.testing.assert_close(net(t), torch.cat([angles.cos(), angles.sin()], 1))
    assert FourierEmbedding(4000).frequencies.std().item() == pytest.approx(0.2, rel=0.1)
