"""Networks for tests."""

import torch

from diffrl_lightning.nets import make_chunk_backbone


def perturbed(net):
    """The network with every parameter moved, so that nothing is zero because it began so."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return net


def chunks(backbone, observation_dim, action_dim, **kwargs):
    """A network of Diffusion Policy at its published size."""
    sizes = {"dim": 256, "dim_mults": (1, 2, 4), "depth": 8, "num_heads": 4, "dropout": 0.0}
    sizes |= {"horizon": 16, "n_obs_steps": 2} | kwargs
    return make_chunk_backbone(backbone, action_dim, observation_dim=observation_dim, **sizes)
