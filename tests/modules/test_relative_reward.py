"""RelativeReward: two Gaussians in closed form, what it refuses, and what every role must do."""

import numpy as np
import pytest
import torch
from conftest import write_d4rl

from diffrl_lightning import Diffuser, InputError, RelativeReward, SequenceData
from diffrl_lightning.diffusion import GuidedSampling, ddpm_sample, inpaint, value_guided
from modules.role_tester import quiet_trainer, saved

SMALL = {"horizon": 8, "num_train_timesteps": 8, "normalizer": "limits"}
NET = {"dim": 16, "dim_mults": (1, 2)}


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    """Two datasets of Pendulum-v1's dimensions, one of negative and one of positive actions."""
    folder = tmp_path_factory.mktemp("two")
    size = np.random.default_rng(0).uniform(0.2, 1, (1000, 1)).astype(np.float32)
    return [
        str(write_d4rl(folder / f"{seed}.hdf5", seed=seed, actions=(2 * seed - 1) * size))
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory, two_files):
    """Checkpoints of two Diffusers, one of each dataset, with the statistics of both."""
    folder = tmp_path_factory.mktemp("diffusers")
    paths = []
    for part in (0, 1):
        data = SequenceData(two_files, horizon=8, train_on=[part], val_fraction=0.2)
        module = Diffuser(3, 1, **SMALL, **NET, lr=2e-3, ema_decay=0.9)
        quiet_trainer(folder, max_steps=200, limit_val_batches=0).fit(module, datamodule=data)
        paths.append(saved(module, folder / f"{part}.ckpt"))
    return {"base_ckpt": paths[0], "expert_ckpt": paths[1]}


def data_of(two_files, **kwargs):
    return SequenceData(two_files, horizon=8, batch_size=32, val_fraction=0.2, **kwargs)


def test_statistics_are_those_of_the_diffusers(tmp_path, two_files, diffusers):
    base = Diffuser.load_from_checkpoint(diffusers["base_ckpt"])
    module = RelativeReward(3, 1, **SMALL, **diffusers)
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    data = data_of(two_files, seed=1)  # another split, which has other statistics
    trainer.fit(module, datamodule=data)
    expected, found = base.trajectory.state_dict(), module.trajectory.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in found.items())
    base.trajectory.fit(data)
    assert not all(torch.equal(v, expected[k]) for k, v in found.items())
    assert not [name for name in module.state_dict() if "diffuser" in name]
    assert not any(p.requires_grad for d in module.diffusers for p in d.parameters())


@pytest.mark.parametrize("inference_mode", [True, False])
def test_it_validates_by_itself(tmp_path, two_files, diffusers, inference_mode):
    module = RelativeReward(3, 1, **SMALL, **diffusers)
    trainer = quiet_trainer(tmp_path, limit_val_batches=1, inference_mode=inference_mode)
    trainer.validate(module, datamodule=data_of(two_files), verbose=False)
    assert trainer.callback_metrics["val/loss"] > 0


def test_a_diffuser_is_steered_by_it(tmp_path, two_files, diffusers):
    """The checkpoint of the reward is a ``value_ckpt``."""
    module = RelativeReward(3, 1, **SMALL, **diffusers)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data_of(two_files))
    path = saved(module, tmp_path / "rho.ckpt")
    base = Diffuser.load_from_checkpoint(diffusers["base_ckpt"])
    plans = []
    for scale in (0.0, 5.0):
        policy = base.make_policy(value_ckpt=path, value_guidance_scale=scale)
        policy.reset(torch.ones(2, dtype=torch.bool), [0, 1])
        plans.append(policy.act(torch.zeros(2, 3)))
    assert not torch.equal(*plans)


def test_a_discriminator_tells_the_first_dataset_from_all_others():
    module = RelativeReward(3, 1, **SMALL, objective="discriminator", num_origins=3)
    module.trajectory.observations.fit(torch.randn(9, 3))
    module.trajectory.actions.fit(torch.randn(9, 1))
    batch = {"actions": torch.zeros(3, 8, 1), "observations": torch.zeros(3, 8, 3)}
    with torch.no_grad():
        for p in module.reward_net.parameters():
            p.zero_()
        [p for p in module.reward_net.parameters() if p.shape == (1,)][-1].fill_(2.0)
    for origins, share in (([0, 0, 0], 0.0), ([0, 1, 2], 2 / 3), ([2, 1, 1], 1.0)):
        _, info = module.compute_loss(batch | {"origins": torch.tensor(origins)})
        assert info["accuracy"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"base_ckpt": None}, "needs model.base_ckpt"),
        ({"num_train_timesteps": 9}, "num_train_timesteps=8"),
        ({"horizon": 6}, "horizon=8"),
        ({"normalizer": "gaussian"}, "normalizer=limits"),
        ({"objective": "discriminator"}, "a list of two or more"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, two_files, diffusers, wrong, match):
    arguments = SMALL | diffusers | wrong
    module = RelativeReward(3, 1, **arguments)
    data = SequenceData(two_files, horizon=arguments["horizon"])
    with pytest.raises(InputError, match=match):
        quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)


def test_diffusers_of_different_statistics_are_refused(tmp_path, two_files, diffusers):
    other = Diffuser(3, 1, **SMALL, **NET)
    data = SequenceData(two_files[1], horizon=8)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(other, datamodule=data)
    path = saved(other, tmp_path / "other.ckpt")
    module = RelativeReward(3, 1, **SMALL, **(diffusers | {"expert_ckpt": path}))
    with pytest.raises(InputError, match="trained on other data"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=data_of(two_files))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"goal_dim": 2}, "goals"),
        ({"objective": "x"}, "objective"),
        ({"gradient_at": "x"}, "gradient_at"),
        ({"network": "x"}, "network"),
        ({"unit": "x"}, "unit"),
        ({"window": 3}, "divide"),
        ({"network": "unet", "window": 4}, "no windows"),
        ({"objective": "discriminator", "gradient_at": "mean"}, "no gradient"),
        ({"objective": "discriminator", "unit": "x0"}, "no gradient"),
        ({"compile": True}, "leave compile at false"),
    ],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        RelativeReward(3, 1, **SMALL, **wrong)


class Gaussian:
    """The perfect denoiser of trajectories that are N(mean, I)."""

    def __init__(self, diffusion, mean):
        self.diffusion, self.mean = diffusion, mean

    def predict_noise(self, xt, t):
        signal, noise = self.diffusion.signal_noise(t, xt.ndim)
        return noise * (xt - signal * self.mean)


BASE = torch.tensor([[0.3, 0.0, 0.0], [-0.5, 1.0, 0.0]])  # (H, A + O)
START = torch.tensor([0.5, -0.8])
EXPERT = torch.tensor([[-0.7, 0.0, 0.0], [0.5, 0.2, -0.6]])


def trained(expert, steps=1000, module=None, **options):
    """On two Gaussian Diffusers; the start state, which is given, is START."""
    torch.manual_seed(0)
    if module is None:
        module = RelativeReward(2, 1, horizon=2, dim=64, normalizer="none", **options)
    module.diffusers = [Gaussian(module.diffusion, mean) for mean in (BASE, expert)]
    optimizer = torch.optim.Adam(module.reward_net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        half = torch.arange(128) % 2 == 0  # the data are of both
        x0 = torch.randn(128, 2, 3) + torch.where(half[:, None, None], BASE, expert)
        x0[:, 0, 1:] = START
        loss, _ = module.compute_loss({"actions": x0[..., :1], "observations": x0[..., 1:]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        module.ema.update(step + 1)
    return module


def slopes(module):
    """The gradient of rho where trajectories are, at every t; (T, N, H, A + O)."""
    t = torch.arange(module.diffusion.num_train_timesteps)
    x = torch.randn(len(t), 100, 2, 3, generator=torch.Generator().manual_seed(1))
    signal, _ = module.diffusion.signal_noise(t, 4)
    x = x + signal * (BASE + EXPERT) / 2
    x[:, :, 0, 1:] = START
    x.requires_grad_()
    rho = module.value(x.flatten(0, 1), t.repeat_interleave(100))
    return torch.autograd.grad(rho.sum(), x)[0].masked_fill(module.known, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "gradient_at", "unit"),
    [
        ("eps", "noised", "eps"),
        ("mean", "noised", "eps"),
        ("mean", "mean", "eps"),
        ("eps", "noised", "x0"),
        ("mean", "mean", "x0"),
    ],
)
def test_slope_of_two_gaussians(objective, gradient_at, unit):
    """For N(m_b, I) and N(m_e, I) rho is linear, of slope sqrt(abar (1 - abar)) (m_e - m_b)."""
    steps = 1000 if unit == "eps" else 3000
    module = trained(EXPERT, steps, objective=objective, gradient_at=gradient_at, unit=unit)
    diffusion = module.diffusion
    abar = diffusion.alphas_cumprod[:, None, None]
    expected = (abar * (1 - abar)).sqrt() * (EXPERT - BASE)
    if objective == "mean":
        alpha = 1 - diffusion.betas[:, None, None]
        expected = expected * (1 - alpha) / (alpha * (1 - abar)).sqrt()
    expected = expected.masked_fill(module.known, 0.0)
    found = slopes(module).mean(1)
    scale = module._scale(torch.arange(len(expected)), 3)
    error, size = ((x / scale).flatten(1).norm(dim=1) for x in (found - expected, expected))
    assert (error <= 0.05 * size.max()).all()


def test_a_base_against_itself_is_flat():
    module = trained(EXPERT, steps=300)
    assert slopes(module).abs().max() > 0.2
    assert slopes(trained(BASE, steps=300, module=module)).abs().max() < 0.03


def test_steering_moves_the_base_towards_the_expert():
    module = trained(EXPERT)
    diffusion, base = module.diffusion, Gaussian(module.diffusion, BASE)
    shift = (EXPERT - BASE)[:, 0].norm()

    def towards_expert(scale):
        """How much of the way the mean of the actions has gone."""
        torch.manual_seed(0)
        known = torch.zeros(2_000, 2, 3)
        known[:, 0, 1:] = START
        known = inpaint(known, module.known)
        how = GuidedSampling(value_guidance_scale=scale, num_guide_steps=1, guidance_stop=0)
        guide = value_guided(module.value, diffusion, how, constraint=known)
        noise = torch.randn(2_000, 2, 3)
        x = ddpm_sample(diffusion, base.predict_noise, noise, pre_step=guide, constraint=known)
        return ((x.mean(0) - BASE)[:, 0] @ (EXPERT - BASE)[:, 0] / shift**2).item()

    unsteered, once, twice = (towards_expert(scale) for scale in (0.0, 1.0, 2.0))
    assert abs(unsteered) < 0.05
    assert 0.3 < once < 0.5 < twice < 1.0, (once, twice)
