"""LatentDiffusion: modes of skills, guidance, plans, what it refuses, what every role must do."""

from types import SimpleNamespace

import pytest
import torch

from diffrl_lightning import ChunkData, InputError, LatentDiffusion, Role, SkillPlanActing
from diffrl_lightning.nets import Normal
from diffrl_lightning.normalizers import TrajectoryNormalizer
from modules.role_tester import quiet_trainer, saved, small_skills

SMALL = {"horizon": 8, "latent_dim": 4, "hidden_dim": 16, "num_blocks": 1, "embed_dim": 16}


def small(**kwargs):
    return LatentDiffusion(
        **({"observation_dim": 3, "action_dim": 1, "num_train_timesteps": 8} | SMALL | kwargs)
    )


@pytest.fixture(scope="module")
def skills_ckpt(tmp_path_factory, pendulum_file):
    """Skills as they begin."""
    torch.manual_seed(0)
    return saved(small_skills(pendulum_file), tmp_path_factory.mktemp("skills") / "skills.ckpt")


def test_the_skills_travel_in_the_checkpoint_and_stay_as_they_are(
    tmp_path, pendulum_file, skills_ckpt
):
    module = small(skills_ckpt=skills_ckpt)
    data = ChunkData(str(pendulum_file), horizon=8, batch_size=32)
    quiet_trainer(tmp_path, max_steps=3).fit(module, data)
    assert module.training
    assert not module.skills.training
    expected = Role.load_from_checkpoint(skills_ckpt).state_dict()
    found = Role.load_from_checkpoint(saved(module, tmp_path / "a.ckpt")).skills
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    for name, value in expected.items():
        assert torch.equal(value, found.state_dict()[name]), name


class TwoWays(torch.nn.Module):
    """Skills whose first entry is 1 or -1, as the batch has it; they lead so far along an axis."""

    def __init__(self):
        super().__init__()
        self.trajectory = TrajectoryNormalizer("none", 3, 1)

    def encode(self, batch):
        return Normal(batch["z"], torch.ones_like(batch["z"]))

    def ends(self, states, skills):
        return torch.cat([states[:, :1] + skills[:, :1], states[:, 1:]], 1)


def junction(n):
    """Skills 1 in 30 % and -1 in 70 % of the states to the right of 0; to the left the other way."""
    states = torch.randn(n, 1, 3)
    right = torch.rand(n) < torch.where(states[:, 0, 0] > 0, 0.3, 0.7)
    z = torch.zeros(n, 4)
    z[:, 0] = 2.0 * right - 1
    return {"observations": states, "z": z + 0.05 * torch.randn(n, 4)}


@pytest.fixture(scope="module")
def at_a_junction():
    torch.manual_seed(0)
    module = small(hidden_dim=64, num_train_timesteps=50, ema_decay=0.99, snr_gamma=None)
    module.skills = TwoWays()
    module.latents.fit(junction(2000)["z"])
    optimizer = torch.optim.Adam(module.denoiser.parameters(), lr=3e-3)
    for step in range(500):
        loss, _ = module.compute_loss(junction(256))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update(step + 1)
    return module.eval()


def shares(module, **sampling):
    """Of samples to the right, in a state on the right and one on the left; and of neither."""
    states = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    with torch.no_grad():
        z = module.latents.unnormalize(
            module.sample_skills(states, 1000, SkillPlanActing(**sampling))
        )[..., 0]
    neither = (z.abs() - 1).abs() > 0.4
    return (z > 0).float().mean(1).tolist(), neither.float().mean().item()


def test_both_ways_keep_their_shares(at_a_junction):
    """As a Gaussian could not: its samples would lie between."""
    found, neither = shares(at_a_junction)
    assert found == pytest.approx([0.3, 0.7], abs=0.1)
    assert neither < 0.1


def test_guidance_changes_the_output(at_a_junction):
    """0 forgets the state, and 3 makes more of it than the data do."""
    none, _ = shares(at_a_junction, guidance_scale=0.0)
    assert none == pytest.approx([0.5, 0.5], abs=0.1)
    more, _ = shares(at_a_junction, guidance_scale=3.0)
    assert more[0] < 0.15
    assert more[1] > 0.85


def test_plans_come_close_to_their_goals(at_a_junction):
    """Two steps to the right end at 2, and begin with one to the right."""
    states = torch.zeros(40, 3)
    goals = torch.tensor([[2.0], [-2.0]]).repeat(20, 1)
    with torch.no_grad():
        chosen = at_a_junction.choose(
            states, goals, SkillPlanActing(num_candidates=30, planning_depth=2)
        )
    right = at_a_junction.latents.unnormalize(chosen)[:, 0] > 0
    assert right.float().view(20, 2).mean(0).tolist() == pytest.approx([1, 0], abs=0.06)


def test_the_last_step_must_leave_no_signal():
    with pytest.raises(InputError, match=r"leaves 0\.36 of the signal"):
        small(beta_schedule="linear", num_train_timesteps=100)
    small(beta_schedule="linear", num_train_timesteps=500)
    assert small(num_train_timesteps=100).diffusion.alphas_cumprod[-1] < 1e-2


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"snr_gamma": 0.0}, "snr_gamma"), ({"cond_drop_prob": 2.0}, "drop_prob=2.0 must lie in")],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        small(**wrong)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"num_candidates": 4}, "there is none"),
        ({"planning_depth": 0}, "planning_depth"),
        ({"num_inference_steps": 9}, "between 1 and the 8"),
        ({"n_action_steps": 9}, r"must lie in \[1, 8\]"),
    ],
)
def test_refuses_to_act_so(wrong, match):
    with pytest.raises(InputError, match=match):
        small().make_policy(**wrong)


def test_what_does_not_fit_is_refused_before_training(tmp_path, pendulum_file, skills_ckpt):
    data = ChunkData(str(pendulum_file), horizon=8)
    other = SimpleNamespace(path=saved(small().eval(), tmp_path / "other.ckpt"))
    for options, match in (
        ({"skills_ckpt": None}, "needs model.skills_ckpt"),
        ({"skills_ckpt": other.path}, "has no skill_prior"),
        ({"skills_ckpt": skills_ckpt, "latent_dim": 5}, "has latent_dim=4"),
    ):
        with pytest.raises(InputError, match=match):
            quiet_trainer(tmp_path, max_steps=1).fit(small(**options), data)
