"""Diffuser: conditions, plans, and what every role must do."""

import pytest
import torch
from conftest import write_d4rl

from diffrl_lightning import Diffuser, SequenceData
from diffrl_lightning.policies.planner import Plan
from diffrl_lightning.types import InputError
from modules.role_tester import check_role, policy_is_deterministic_by_seed, quiet_trainer

SMALL = {"dim": 8, "dim_mults": (1, 2), "num_train_timesteps": 8, "horizon": 8}


def small(**kwargs):
    return Diffuser(**({"observation_dim": 4, "action_dim": 2, "goal_dim": 2} | SMALL | kwargs))


def test_role(tmp_path, pendulum_file):
    data = SequenceData(str(pendulum_file), horizon=8, batch_size=32)
    module = small(observation_dim=3, action_dim=1, goal_dim=0)
    check_role(module, data, tmp_path)
    policy_is_deterministic_by_seed(module, data, sampler="ddpm", replan_every=1)


def test_role_with_goals(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    data = SequenceData("pointmaze/umaze", horizon=8, padding="edge", generate_steps=6000)
    check_role(small(), data, tmp_path)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("goal_velocity", ["free", "zero"])
def test_plans_begin_at_the_state_and_end_at_the_goal(sampler, goal_velocity):
    module = small(goal_velocity=goal_velocity)
    states, goals = torch.rand(5, 4) - 0.5, torch.rand(5, 2) - 0.5
    plan = module.plan(states, goals, sampler=sampler, num_inference_steps=3)
    assert plan.observations.shape == (5, 8, 4)
    assert plan.actions.shape == (5, 8, 2)
    torch.testing.assert_close(plan.observations[:, 0], states)
    torch.testing.assert_close(plan.observations[:, -1, :2], goals)
    at_rest = torch.allclose(plan.observations[:, -1, 2:], torch.zeros(5, 2), atol=1e-6)
    assert at_rest == (goal_velocity == "zero")


def test_a_later_plan_keeps_the_deadline_of_the_first():
    module = small()
    states, goals = torch.zeros(2, 4), torch.full((2, 2), 0.4)
    plan = module.plan(states, goals, elapsed=torch.tensor([0, 3]))
    arrived = (plan.observations[..., :2] - 0.4).abs().amax(-1) < 1e-5
    assert arrived[0].tolist() == [False] * 7 + [True]
    assert arrived[1].tolist() == [False] * 4 + [True] * 4


def test_warm_start_noises_the_last_plan_to_the_level_it_begins_at():
    """With a network that sees no noise, what was added is still there at the end."""
    module = small(prediction_type="eps", clip_denoised=False)
    for parameter in module.ema.parameters():
        parameter.zero_()
    states, goals = torch.zeros(400, 4), torch.full((400, 2), 0.4)
    before = Plan(torch.rand(400, 8, 4), torch.rand(400, 8, 2))
    for steps, t in ((1, 0), (3, 2), (7, 6)):
        plan = module.plan(states, goals, previous=before, warm_start_steps=steps)
        signal, noise = (x.item() for x in module.diffusion.signal_noise(t, 1))
        assert (plan.actions - before.actions).std().item() == pytest.approx(
            noise / signal, rel=0.05
        )
        assert (plan.actions - before.actions).mean().abs() < 0.1 * noise / signal


def test_loss_weights():
    module = small(action_weight=10.0, loss_discount=0.5)
    weight = module.loss_weight
    assert (weight[0, :2] == 10).all()
    assert weight[1:, 0].tolist() == pytest.approx((weight[1, 0] * 0.5 ** torch.arange(7)).tolist())
    assert small().loss_weight.eq(1).all()


def test_published_size():
    module = Diffuser(4, 2, 2, horizon=128, dim=32, dim_mults=(1, 4, 8))
    assert sum(p.numel() for p in module.denoiser.parameters()) == 3_682_118


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="use 4 or 8"):
        small(horizon=6, dim_mults=(1, 2, 4))
    with pytest.raises(InputError, match="cosine, vp, linear"):
        small(beta_schedule="squared")
    with pytest.raises(InputError, match="goals of 2 dimensions"):
        small().plan(torch.zeros(1, 4))
    with pytest.raises(InputError, match="between 1 and the 8 steps"):
        small().make_policy(num_inference_steps=9)
    with pytest.raises(InputError, match="use execute=actions"):
        small(observation_dim=11, action_dim=3, goal_dim=0).make_policy(execute="states")
    assert small(normalizer="gaussian").clip is None
    data = SequenceData(str(write_d4rl(tmp_path / "a.hdf5", length=20)), horizon=32)
    data.prepare_data()
    with pytest.raises(InputError, match="longest episode has 20"):
        data.setup("fit")


@pytest.mark.parametrize("ema_start", [3, 4])
def test_the_average_counts_optimiser_steps_from_one(tmp_path, pendulum_file, ema_start):
    """Up to ``ema_start`` it is a copy; the step after, and only then, it lags."""
    module = small(observation_dim=3, action_dim=1, goal_dim=0, ema_start=ema_start)
    trainer = quiet_trainer(tmp_path, max_steps=4, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(module, datamodule=SequenceData(str(pendulum_file), horizon=8))
    pairs = zip(module.ema.net.parameters(), module.denoiser.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == (ema_start == 4)
