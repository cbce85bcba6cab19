"""DecisionDiffuser: conditions, histories, actions between states, and what every role must do."""

import pytest
import torch
from conftest import write_d4rl
from torch import nn

from diffrl_lightning import (
    ConditionalPlanActing,
    DecisionDiffuser,
    InputError,
    Sampling,
    SequenceData,
)
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
        "mask": torch.ones(n, 8, dtype=torch.bool),
        "origins": torch.zeros(n, dtype=torch.long),
    }


STATES = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.0, -0.1], [-0.3, 0.2, 0.2]])


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_role_with_returns_and_skills(tmp_path, pendulum_file):
    other = write_d4rl(tmp_path / "other.hdf5", seed=1)
    data = SequenceData([str(pendulum_file), str(other)], horizon=8, batch_size=32)
    module = small(conditions=("return", "skill"), num_origins=data.num_origins)
    check_role(module, data, tmp_path)
    policy_is_deterministic_by_seed(module, data, skills={0: 1.0, 1: -0.5})


def straight(module, denoise, history=STATES[:, None], seeds=(1, 2, 3)):
    """Plans by a call of the sampler, each beginning with its history (N, C, O)."""
    n, given, _ = history.shape
    values = torch.zeros(n, 8, 3)
    values[:, :given] = module.observations.normalize(history)
    x = draw(
        module.diffusion,
        denoise,
        (n, 8, 3),
        Sampling(temperature=0.5),
        like=values,
        constraint=inpaint(values, torch.arange(8)[:, None] < given),
        clip=module.clip,
        generator=seeded(*seeds),
    )
    return module.observations.unnormalize(x)


@pytest.mark.parametrize("scale", [0, 1])
def test_scale_zero_is_exactly_unconditional_and_one_exactly_conditional(scale):
    module = small()
    label = {"return": torch.full((3, 1), 0.6)}
    unconditional = straight(module, lambda x, t: module.ema(x, t, {}))
    conditional = straight(module, lambda x, t: module.ema(x, t, label))
    assert not torch.equal(conditional, unconditional)
    how = ConditionalPlanActing(target_return=0.6, guidance_scale=scale)
    found = module.plan(STATES, None, how, generator=seeded(1, 2, 3))
    assert torch.equal(found.observations, (unconditional, conditional)[scale])
    null = module.plan(STATES, None, ConditionalPlanActing(), generator=seeded(1, 2, 3))
    assert torch.equal(null.observations, unconditional)
    assert torch.equal(null.actions, found.actions) == (scale == 0)


def test_conditions_compose():
    module = small(conditions=("return", "skill"), num_origins=2)
    x, t = torch.randn(3, 8, 3), torch.tensor([0, 3, 7])

    def net(**labels):
        return module.ema(x, t, labels)

    null = net()
    first, second = (net(skill=row.repeat(3, 1)) - null for row in torch.eye(2))
    high = net(**{"return": torch.full((3, 1), 0.7)}) - null
    assert min(shift.abs().max() for shift in (first, second, high, first - second)) > 1e-3
    skills = ConditionalPlanActing(skills={0: 1.0, 1: -0.5})
    found = module.guided(3, skills)
    torch.testing.assert_close(found(x, t), null + first - 0.5 * second)
    both = ConditionalPlanActing(target_return=0.7, guidance_scale=2.0, skills={1: 0.5})
    expected = null + 2 * high + 0.5 * second
    torch.testing.assert_close(module.guided(3, both)(x, t), expected)
    plan = module.plan(STATES, None, skills, generator=seeded(1, 2, 3))
    assert torch.equal(plan.observations, straight(module, found))


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_plan_begins_now_and_is_in_painted_with_what_was_seen(seen):
    """Three states are kept, of which only those since the episode's start are real."""
    module = small(n_obs_steps=3)
    history = torch.rand(3, 3, 3) - 0.5
    how, elapsed = ConditionalPlanActing(), torch.full((3,), seen - 1)
    plan = module.plan(history, None, how, generator=seeded(1, 2, 3), elapsed=elapsed)
    torch.testing.assert_close(plan.observations[:, 0], history[:, -1], atol=1e-6, rtol=0)
    denoise = lambda x, t: module.ema(x, t, {})  # noqa: E731
    whole = straight(module, denoise, history[:, 3 - seen :])
    assert torch.equal(plan.observations, whole[:, seen - 1 : seen + 5])
    history[:, : 3 - seen] = 0.9  # before the episode
    again = module.plan(history, None, how, generator=seeded(1, 2, 3), elapsed=elapsed)
    assert torch.equal(again.observations, plan.observations)


def test_rows_of_one_batch_may_have_seen_more_or_less():
    module = small(n_obs_steps=3)
    history, how = torch.rand(4, 3, 3) - 0.5, ConditionalPlanActing()
    seen = torch.tensor([1, 2, 3, 3])
    elapsed = torch.tensor([0, 1, 2, 9])
    together = module.plan(history, None, how, elapsed=elapsed, generator=seeded(1, 2, 3, 4))
    for row in range(4):
        alone = straight(
            module,
            lambda x, t: module.ema(x, t, {}),
            history[row : row + 1, 3 - seen[row] :],
            seeds=[row + 1],
        )
        now = seen[row] - 1
        torch.testing.assert_close(together.observations[row], alone[0, now : now + 6])


def test_a_policy_keeps_what_was_seen_and_asks_for_a_high_return():
    module = small(n_obs_steps=3, stride=2)
    policy = module.make_policy(temperature=0.0, replan_every=2)
    steps = torch.rand(5, 2, 3) - 0.5
    for observations in steps:
        policy.act(observations)
    ((_, plan),) = policy.new_plans
    history, elapsed = steps[[0, 2, 4]].transpose(0, 1), torch.tensor([2, 2])
    how = ConditionalPlanActing(target_return=0.9, temperature=0.0)
    expected = module.plan(history, None, how, elapsed=elapsed)
    torch.testing.assert_close(plan.observations, expected.observations)


def test_warm_start_moves_on_from_now():
    """With a network that sees no noise, and none added, the last plan comes back."""
    module = small(n_obs_steps=3, clip_denoised=False)
    history = torch.rand(3, 3, 3) - 0.5
    before = Plan(torch.rand(3, 6, 3) - 0.5, torch.zeros(3, 6, 1))
    plan = module.plan(
        history,
        None,
        ConditionalPlanActing(temperature=0.0, num_inference_steps=3, warm_start_steps=1),
        net=Zero(),
        elapsed=torch.tensor([0, 1, 2]),
        previous=before,
    )
    torch.testing.assert_close(plan.observations[:, 0], history[:, -1], atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.observations[:, 1:], before.observations[:, 1:])


def test_actions_are_the_averaged_inverse_dynamics_of_the_planned_states():
    module = small()
    nn.init.zeros_(module.inverse_dynamics[-1].weight)
    plan = module.plan(STATES, None, ConditionalPlanActing())
    states = module.observations.normalize(plan.observations)
    average = nn.Sequential(*module.inverse_ema.net)
    for h in range(7):
        pair = torch.cat([states[:, h], states[:, h + 1]], -1)
        expected = module.actions.unnormalize(average(pair))
        torch.testing.assert_close(plan.actions[:, h], expected, atol=1e-5, rtol=0)
    assert torch.equal(plan.actions[:, 7], plan.actions[:, 6])


def test_loss_by_hand(monkeypatch):
    """Given states carry none, the first that is not given the weight that was asked for."""
    module = small(n_obs_steps=3, next_state_weight=10.0, loss_discount=0.5, normalizer="gaussian")
    monkeypatch.setattr(module, "denoiser", Zero())
    batch = batch_of(64)
    batch["mask"][:5, 3:] = False
    loss, info = module.compute_loss(batch)
    x0, x = batch["observations"], module.denoiser.x
    signal, noise = module.diffusion.signal_noise(module.denoiser.t, 3)
    error = ((x - signal * x0) / noise).square()  # of eps, which was predicted to be 0
    given = (x == x0).all(-1)
    counts = given.sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    assert all(row[:count].all() for row, count in zip(given, counts, strict=True)), "the first"
    weight = 0.5 ** torch.arange(8)
    weight = (weight / weight.mean()).repeat(64, 1)
    weight[torch.arange(64), counts] = 10
    weight[given] = 0
    expected = (weight[..., None] * error).mean()
    torch.testing.assert_close(info["diffusion_loss"], expected)
    pairs = torch.cat([x0[:, :-1], x0[:, 1:]], -1)
    actions = nn.Sequential(*module.inverse_dynamics)(pairs)
    real = batch["mask"][:, 1:]  # not where an episode has ended and its states stand still
    inverse_loss = (actions - batch["actions"][:, :-1])[real].square().mean()
    torch.testing.assert_close(info["inverse_loss"], inverse_loss)
    torch.testing.assert_close(loss, (expected + inverse_loss) / 2)


@pytest.mark.parametrize("drop_prob", [0.0, 1.0])
def test_conditions_are_dropped_in_training_alone(drop_prob):
    module = small(cond_drop_prob=drop_prob)
    batch = batch_of(16)

    def loss(returns):
        torch.manual_seed(0)
        return module.compute_loss(batch | {"returns": returns})[0].item()

    low, high = torch.zeros(16), torch.ones(16)
    module.train()
    assert (loss(low) == loss(high)) == (drop_prob == 1)
    low_how, high_how = (ConditionalPlanActing(target_return=r) for r in (0.0, 1.0))
    low_plan = module.plan(STATES, None, low_how, generator=seeded(1, 2, 3))
    high_plan = module.plan(STATES, None, high_how, generator=seeded(1, 2, 3))
    assert not torch.equal(low_plan.observations, high_plan.observations)
    module.eval()
    assert loss(low) != loss(high)


@pytest.mark.parametrize("returns_scale", [None, 4.0])
def test_labels(monkeypatch, tmp_path, pendulum_file, returns_scale):
    other = write_d4rl(tmp_path / "other.hdf5", seed=1)
    data = SequenceData([str(pendulum_file), str(other)], horizon=8, padding="edge")
    batch = ready(data).train_data[torch.arange(len(data.train_data))]
    module = small(conditions=("return", "skill"), num_origins=2, returns_scale=returns_scale)
    module.fit_normalizers(data)
    monkeypatch.setattr(module, "denoiser", Zero())
    module.compute_loss(batch)
    labels, returns = module.denoiser.labels, batch["returns"]
    expected = (returns - returns.min()) / (returns.max() - returns.min())
    if returns_scale is not None:
        expected = returns / returns_scale
    torch.testing.assert_close(labels["return"][:, 0], expected, atol=1e-5, rtol=0)
    assert torch.equal(labels["skill"].argmax(1), batch["origins"])
    assert set(batch["origins"].tolist()) == {0, 1}
    assert torch.equal(labels["skill"].sum(1), torch.ones(len(returns)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"goal_dim": 2}, "does not pursue goals"),
        ({"conditions": ("return", "goal")}, "must be return, skill, or both"),
        ({"conditions": ()}, "must be return, skill, or both"),
        ({"n_obs_steps": 8}, "less than horizon=8"),
        ({"horizon": 7}, "use 6 or 8"),
        ({"backbone": "mlp"}, "choose one of unet, dit"),
    ],
)
def test_bad_models(kwargs, message):
    with pytest.raises(InputError, match=message):
        small(**kwargs)


@pytest.mark.parametrize(
    ("conditions", "kwargs", "message"),
    [
        (("skill",), {"target_return": 0.9}, "not trained on the condition 'return', but on skill"),
        (("return",), {"skills": {0: 1.0}}, "not trained on the condition 'skill', but on return"),
        (("skill",), {"skills": {2: 1.0}}, "skill=2 must be below the 2 datasets"),
        (("skill",), {"skills": {-1: 1.0}}, "skill=-1 must be"),
        (("return",), {"num_inference_steps": 9}, "between 1 and the 8 steps"),
    ],
)
def test_bad_policies(conditions, kwargs, message):
    with pytest.raises(InputError, match=message):
        small(conditions=conditions, num_origins=2).make_policy(**kwargs)


def test_published_size():
    module = DecisionDiffuser(11, 3, horizon=100, dim=128, dim_mults=(1, 4, 8))
    for net, parameters in ((module.denoiser, 59_732_491), (module.inverse_dynamics, 72_451)):
        assert sum(p.numel() for p in net.parameters()) == parameters
