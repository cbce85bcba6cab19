"""Diffuser: conditions, plans, and what every role must do."""

import shutil

import pytest
import torch
from conftest import write_d4rl
from torch import nn

from diffrl_lightning import Diffuser, PlanActing, Role, Sampling, SequenceData, TrajectoryValue
from diffrl_lightning.diffusion import draw, inpaint
from diffrl_lightning.policies.planner import Plan
from diffrl_lightning.types import InputError
from modules.role_tester import (
    check_role,
    policy_is_deterministic_by_seed,
    quiet_trainer,
    ready,
    saved,
)

SMALL = {"dim": 8, "dim_mults": (1, 2), "num_train_timesteps": 8, "horizon": 8}
VALUE = {"observation_dim": 3, "action_dim": 1, "dim": 16, "normalizer": "limits"}


def small(**kwargs):
    return Diffuser(**({"observation_dim": 4, "action_dim": 2, "goal_dim": 2} | SMALL | kwargs))


def pendulum(**kwargs):
    return small(**({"observation_dim": 3, "action_dim": 1, "goal_dim": 0} | kwargs))


def test_role_with_goals(tmp_path):
    data = SequenceData("pointmaze/umaze", horizon=8, padding="edge", generate_steps=6000)
    check_role(small(), data, tmp_path)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("goal_velocity", ["free", "zero"])
def test_plans_begin_at_the_state_and_end_at_the_goal(sampler, goal_velocity):
    module = small(goal_velocity=goal_velocity)
    states, goals = torch.rand(5, 4) - 0.5, torch.rand(5, 2) - 0.5
    plan = module.plan(states, goals, PlanActing(sampler=sampler, num_inference_steps=3))
    assert plan.observations.shape == (5, 8, 4)
    assert plan.actions.shape == (5, 8, 2)
    torch.testing.assert_close(plan.observations[:, 0], states)
    torch.testing.assert_close(plan.observations[:, -1, :2], goals)
    at_rest = torch.allclose(plan.observations[:, -1, 2:], torch.zeros(5, 2), atol=1e-6)
    assert at_rest == (goal_velocity == "zero")


def test_a_later_plan_keeps_the_deadline_of_the_first():
    module = small()
    states, goals = torch.zeros(2, 4), torch.full((2, 2), 0.4)
    plan = module.plan(states, goals, PlanActing(), elapsed=torch.tensor([0, 3]))
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
        plan = module.plan(states, goals, PlanActing(warm_start_steps=steps), previous=before)
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
    module = Diffuser(4, 2, goal_dim=2, horizon=128, dim=32, dim_mults=(1, 4, 8))
    assert sum(p.numel() for p in module.denoiser.parameters()) == 3_682_118


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="use 4 or 8"):
        small(horizon=6, dim_mults=(1, 2, 4))
    with pytest.raises(InputError, match="cosine, vp, linear"):
        small(beta_schedule="squared")
    with pytest.raises(InputError, match="goals of 2 dimensions"):
        small().plan(torch.zeros(1, 4), None, PlanActing())
    with pytest.raises(InputError, match="between 1 and the 8 steps"):
        small().make_policy(num_inference_steps=9)
    for bad in ({"num_candidates": 0}, {"choice_temperature": -1.0}, {"num_guide_steps": -1}):
        with pytest.raises(InputError, match="at least"):
            small().make_policy(**bad)
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
    module = pendulum(ema_start=ema_start)
    trainer = quiet_trainer(tmp_path, max_steps=4, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(module, datamodule=SequenceData(str(pendulum_file), horizon=8))
    pairs = zip(module.ema.net.parameters(), module.denoiser.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == (ema_start == 4)


@pytest.fixture
def guided(tmp_path, pendulum_file):
    """A Diffuser with data, the checkpoint of a value for it, and that value."""
    data = ready(SequenceData(str(pendulum_file), horizon=8))
    module = pendulum(prediction_type="eps")
    value = TrajectoryValue(**(SMALL | VALUE))
    for role in (module, value):
        role.fit_normalizers(data)
    path = saved(value, tmp_path / "guide.ckpt")
    return module.eval(), data, path, value.eval()


STATES = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.0, -0.1], [-0.3, 0.2, 0.2]])


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def make_plan(module, states=STATES, seeds=(1, 2, 3), **sampling):
    """The plan that a policy makes."""
    policy = module.make_policy(**sampling)
    policy.reset(torch.ones(len(states), dtype=torch.bool), list(seeds))
    actions = policy.act(states)
    ((rows, plan),) = policy.new_plans
    assert rows.tolist() == list(range(len(states)))
    assert torch.equal(actions, plan.actions[:, 0])
    return plan


def test_the_best_of_the_candidates_is_chosen(guided):
    module, _, path, value = guided
    plan = make_plan(module, value_ckpt=path, num_candidates=4)
    x0 = torch.zeros(12, 8, 4)
    x0[:, 0, 1:] = module.trajectory.observations.normalize(STATES).repeat_interleave(4, 0)
    x = draw(
        module.diffusion,
        module.ema,
        x0.shape,
        Sampling(),
        like=x0,
        constraint=inpaint(x0, module.known),
        clip=1.0,
        generator=seeded(1, 2, 3),
    )
    with torch.no_grad():
        values = value.value(x, torch.full((12,), -1)).view(3, 4)
    best = values.argmax(1)
    assert len(set(best.tolist())) > 1, "not always the first"
    torch.testing.assert_close(plan.values, values, atol=1e-5, rtol=1e-5)
    actions, states = (part.unflatten(0, (3, 4)) for part in module.trajectory.split(x))
    assert torch.equal(plan.candidates, states)
    assert torch.equal(plan.observations, states[torch.arange(3), best])
    assert torch.equal(plan.actions, actions[torch.arange(3), best])


def first_action(x, t):
    return x[:, 0, 0]


class Known(nn.Module):
    """The exact noise of trajectories that are normal with a deviation of 0.3."""

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, x, t):
        signal, noise = self.diffusion.signal_noise(t, x.ndim)
        return noise * x / (0.09 * signal**2 + noise**2)


def test_a_choice_temperature_draws_from_the_softmax_of_values(guided):
    module = guided[0]
    states, tau = STATES[:1].repeat(500, 1), 0.3

    def plan(temperature, seed=0):
        return module.plan(
            states,
            None,
            PlanActing(num_candidates=4, choice_temperature=temperature),
            value=first_action,
            denoise=Known(module.diffusion),
            generator=torch.Generator().manual_seed(seed),
        )

    drawn = plan(tau)
    chosen = first_action(module.trajectory.join(drawn.actions, drawn.observations), None)
    index = (drawn.values - chosen[:, None]).abs().argmin(1)
    chances = (drawn.values / tau).softmax(1)
    expected, found = (chances * drawn.values).sum(1), drawn.values[torch.arange(500), index]
    deviation = (chances * (drawn.values - expected[:, None]).square()).sum(1).sum().sqrt() / 500
    assert (found - expected).mean().abs() < 4 * deviation
    assert found.mean() > drawn.values.mean() + 4 * deviation, "the better are preferred"
    assert found.mean() < drawn.values.amax(1).mean() - 4 * deviation, "but not always the best"
    assert torch.equal(plan(tau).actions, drawn.actions)
    assert not torch.equal(plan(tau, seed=1).actions, drawn.actions)
    assert torch.equal(plan(1e-4).actions, plan(0.0).actions)


def test_all_candidates_have_their_own_state_goal_deadline_and_last_plan():
    """With a network that sees no noise, and none added, the last plans come back."""
    module = small(prediction_type="eps", clip_denoised=False)
    for parameter in module.ema.parameters():
        parameter.zero_()
    states, goals = torch.rand(3, 4) - 0.5, torch.rand(3, 2) - 0.5
    before = Plan(torch.rand(3, 8, 4) - 0.5, torch.rand(3, 8, 2) - 0.5)
    how = PlanActing(temperature=0.0, num_candidates=4, warm_start_steps=2)
    elapsed = torch.tensor([0, 2, 4])
    plan = module.plan(states, goals, how, value=first_action, elapsed=elapsed, previous=before)
    expected = before.observations.clone()
    expected[:, 0] = states
    for row, steps in enumerate(elapsed):
        expected[row, 7 - steps :, :2] = goals[row]
    torch.testing.assert_close(plan.candidates, expected[:, None].repeat(1, 4, 1, 1))
    torch.testing.assert_close(plan.actions, before.actions)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_guidance_raises_the_value_of_plans(guided, sampler, monkeypatch):
    module, _, path, _ = guided
    monkeypatch.setattr(module, "ema", Known(module.diffusion))
    states, seeds = STATES.repeat(40, 1), range(120)

    def values(scale):
        kwargs = {"value_ckpt": path, "value_guidance_scale": scale, "sampler": sampler}
        return make_plan(module, states, seeds, **kwargs).values

    low, none, high = values(-1000.0), values(0.0), values(1000.0)
    for gain in (high - none, none - low):
        assert gain.mean() > 4 * gain.std() / 120**0.5


def test_no_guidance_and_no_choice_is_exactly_the_plan_without_a_value(guided):
    module, _, path, _ = guided
    plain, valued = make_plan(module), make_plan(module, value_ckpt=path)
    assert torch.equal(plain.observations, valued.observations)
    assert torch.equal(plain.actions, valued.actions)
    assert plain.values is None
    assert valued.values.shape == (3, 1)


def test_gradients_do_not_leak(guided):
    module, _, path, _ = guided
    module.zero_grad()
    trained = [p.requires_grad for p in module.parameters()]
    policy = module.make_policy(value_ckpt=path, num_candidates=2, value_guidance_scale=0.5)
    policy.act(STATES)
    value = policy.plan.keywords["value"].__self__
    assert isinstance(value, TrajectoryValue)
    assert not any(p.requires_grad for p in value.parameters())
    assert all(p.grad is None for p in (*module.parameters(), *value.parameters()))
    assert [p.requires_grad for p in module.parameters()] == trained
    assert any(trained)
    assert not any(part.requires_grad for part in policy.new_plans[0][1])


def test_policy_with_a_value_is_deterministic_by_seed(guided):
    module, data, path, _ = guided
    kwargs = {"value_ckpt": path, "num_candidates": 3, "replan_every": 1}
    policy_is_deterministic_by_seed(module, data, value_guidance_scale=0.5, **kwargs)


@pytest.mark.parametrize("choice_temperature", [0.0, 0.1])
def test_plans_with_a_value_do_not_depend_on_their_neighbours(guided, choice_temperature):
    module, _, path, _ = guided
    kwargs = {"value_ckpt": path, "num_candidates": 3, "value_guidance_scale": 0.5}
    kwargs |= {"choice_temperature": choice_temperature, "sampler": "ddpm"}
    together = make_plan(module, **kwargs)
    for row in range(3):
        alone = make_plan(module, STATES[row : row + 1], [row + 1], **kwargs)
        for mine, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(mine[0], all_of_them[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 4}, "has horizon=4, this Diffuser 8: train both with the same"),
        ({"stride": 2}, "has stride=2, this Diffuser 1"),
        ({"normalizer": "gaussian"}, "has normalizer=gaussian, this Diffuser limits"),
        ({"num_train_timesteps": 9}, "has num_train_timesteps=9, this Diffuser 8"),
        ({"beta_schedule": "linear"}, "has beta_schedule=linear, this Diffuser cosine"),
        ({"observation_dim": 4}, "has observation_dim=4, this Diffuser 3"),
        ({"action_dim": 2}, "has action_dim=2, this Diffuser 1"),
    ],
)
def test_a_value_of_another_kind_is_refused(guided, tmp_path, kwargs, message):
    path = saved(TrajectoryValue(**(SMALL | VALUE | kwargs)), tmp_path / "value.ckpt")
    with pytest.raises(InputError, match=message):
        guided[0].make_policy(value_ckpt=path)


def test_values_of_other_data_or_none_are_refused(guided, tmp_path):
    module = guided[0]
    value = TrajectoryValue(**(SMALL | VALUE))
    value.fit_normalizers(ready(SequenceData(str(write_d4rl(tmp_path / "a.hdf5", seed=1)))))
    with pytest.raises(InputError, match="was trained on other data than this Diffuser"):
        module.make_policy(value_ckpt=saved(value, tmp_path / "other.ckpt"))
    with pytest.raises(InputError, match="holds a Diffuser, which has no value: give the"):
        module.make_policy(value_ckpt=saved(module, tmp_path / "diffuser.ckpt"))
    with pytest.raises(InputError, match="There is no checkpoint"):
        module.make_policy(value_ckpt=str(tmp_path / "nowhere.ckpt"))
    for kwargs in ({"num_candidates": 4}, {"value_guidance_scale": 0.1}):
        with pytest.raises(InputError, match=r"need a value .* give value_ckpt"):
            module.make_policy(**kwargs)


def test_a_value_of_a_lower_precision_fits(guided, tmp_path):
    """As bf16-true trains it, its statistics included."""
    module, _, path, _ = guided
    value = Role.load_from_checkpoint(path).to(torch.bfloat16)
    plan = make_plan(module, value_ckpt=saved(value, tmp_path / "low.ckpt"), num_candidates=2)
    assert plan.values.dtype == torch.float32


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_policy_makes_the_same_plans():
    module = pendulum(backbone="dit", dim=8, depth=1, num_heads=1)
    for p in module.ema.parameters():
        p += 0.1 * torch.randn_like(p)  # the transformer begins at zero
    eager, compiled = (make_plan(module, compile=c, num_inference_steps=2) for c in (False, True))
    assert eager.actions.abs().max() < 1, "not clipped"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(compiled.observations, eager.observations, atol=1e-4, rtol=0)
    torch.testing.assert_close(compiled.actions, eager.actions, atol=1e-4, rtol=0)


def test_noise_as_sampling_has_it():
    """With the bounded clean trajectory it makes up the noised one."""
    module = Diffuser(3, 1, horizon=8, dim=16, dim_mults=(1, 2), num_train_timesteps=8)
    xt, t = 2 * torch.randn(8, 8, 4), torch.arange(8)
    with torch.no_grad():
        noise = module.predict_noise(xt, t)
        clean = module.ema(xt, t).clamp(-1, 1)  # its prediction, x0
    torch.testing.assert_close(module.diffusion.add_noise(clean, noise, t), xt)
