"""DecisionDiffuser: conditions, histories, actions between states, and what every role must do."""

import pytest
import torch
from conftest import write_d4rl
from torch import nn

from diffrl_lightning import DecisionDiffuser, InputError, SequenceData
from diffrl_lightning.diffusion import draw, inpaint
from diffrl_lightning.policies.planner import Plan
from modules.role_tester import check_role, policy_is_deterministic_by_seed, ready

SMALL = {"dim": 8, "dim_mults": (1, 2), "hidden_dim": 16, "num_train_timesteps": 8, "horizon": 8}


def small(**kwargs):
    return DecisionDiffuser(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


class Zero(nn.Module):
    """A denoiser that predicts nothing and remembers what it was shown."""

    def forward(self, x, t, labels):
        self.x, self.t, self.labels = x, t, labels
        return torch.zeros_like(x)


def batch_of(n):
    """States within the range of normalisers that have not seen any data."""
    return {
        "observations": torch.rand(n, 8, 3) - 0.5,
        "actions": torch.rand(n, 8, 1) - 0.5,
        "returns": torch.rand(n),
        "origins": torch.zeros(n, dtype=torch.long),
    }


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"backbone": "dit", "dim": 16, "num_heads": 2},
        {"n_obs_steps": 3, "attention": True, "stride": 2},
    ],
    ids=["unet", "dit", "history"],
)
def test_role(tmp_path, pendulum_file, kwargs):
    data = SequenceData(
        str(pendulum_file), horizon=8, stride=kwargs.get("stride", 1), batch_size=32
    )
    module = small(**kwargs)
    check_role(module, data, tmp_path)
    warm = {"sampler": "ddpm", "replan_every": 2, "warm_start_steps": 3}
    policy_is_deterministic_by_seed(module, data, guidance_scale=2.0, **warm)


def test_role_with_returns_and_skills(tmp_path, pendulum_file):
    other = write_d4rl(tmp_path / "other.hdf5", seed=1)
    data = SequenceData([str(pendulum_file), str(other)], horizon=8, batch_size=32)
    module = small(conditions=("return", "skill"), num_origins=data.num_origins)
    check_role(module, data, tmp_path)
    policy_is_deterministic_by_seed(module, data, skills={0: 1.0, 1: -0.5})


def states_and_plan(module, **kwargs):
    """Plans from three states, and by a straight call of the sampler with the same noise."""
    states = torch.rand(3, 3) - 0.5
    plan = module.plan(states, temperature=0.7, generator=seeded(1, 2, 3), **kwargs)

    def straight(denoise):
        values = module.observations.normalize(states)[:, None].repeat(1, 8, 1)
        first = torch.arange(8)[:, None] == 0
        shared = {"like": values, "temperature": 0.7, "constraint": inpaint(values, first)}
        generator = seeded(1, 2, 3)
        x = draw(
            module.diffusion, denoise, (3, 8, 3), generator=generator, clip=module.clip, **shared
        )
        return module.observations.unnormalize(x)

    return states, plan, straight


@pytest.mark.parametrize("scale", [0, 1])
def test_scale_zero_is_exactly_unconditional_and_one_exactly_conditional(scale):
    module = small()
    _, plan, straight = states_and_plan(module, target_return=0.6, guidance_scale=scale)
    _, null, _ = states_and_plan(module, target_return=None)
    unconditional = straight(lambda x, t: module.ema(x, t, {}))
    label = {"return": torch.full((3, 1), 0.6)}
    conditional = straight(lambda x, t: module.ema(x, t, label))
    assert not torch.equal(conditional, unconditional)
    assert torch.equal(plan.observations, (unconditional, conditional)[scale])
    assert torch.equal(plan.observations, null.observations) == (scale == 0)
