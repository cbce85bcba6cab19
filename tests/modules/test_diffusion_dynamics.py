"""DiffusionDynamics: ends, given actions, actions that follow a policy, what every role must do."""

import pytest
import torch
from scipy.stats import kstest

from diffrl_lightning import DiffusionDynamics, InputError
from diffrl_lightning.nets import Normal

SMALL = {"horizon": 8, "dim": 32, "depth": 1, "num_train_timesteps": 16, "ema_start": 0}


def small(**kwargs):
    return DiffusionDynamics(
        **({"observation_dim": 3, "action_dim": 1, "ema_update_every": 1} | SMALL | kwargs)
    )


@pytest.mark.parametrize(
    ("observation_dim", "action_dim", "parameters"), [(11, 3, 6_664_450), (17, 6, 6_893_710)]
)
def test_published_parameter_counts(observation_dim, action_dim, parameters):
    net = DiffusionDynamics(observation_dim, action_dim).denoiser
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_an_end_stays_and_a_time_out_does_not_count():
    module = small(observation_dim=1, horizon=4)
    batch = {
        "observations": torch.tensor([[0.0, 1, 2, 3], [0.0, 1, 1, 1], [0.0, 1, 1, 1]])[..., None],
        "actions": torch.zeros(3, 4, 1),
        "rewards": torch.ones(3, 4),
        "next_observations": torch.tensor([[4.0], [9.0], [9.0]]),
        "terminations": torch.tensor([1.0, 1.0, 0.0]),
        "steps": torch.tensor([4.0, 2.0, 2.0]),
    }
    x0, _, counts = module._trajectories(batch)
    assert x0[..., 0].tolist() == [[0, 1, 2, 3], [0, 1, 9, 9], [0, 1, 9, 9]]
    assert x0[..., 1].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert x0[..., 2].tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert counts[..., 0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]


def rolling(n, horizon=6):
    """A point that actions push: the reward is where it is, and beyond 1.5 the episode ends."""
    states = torch.empty(n, horizon + 1, 1).uniform_(-1.4, 1.4)
    actions = torch.randn(n, horizon, 1)
    for t in range(horizon):
        states[:, t + 1] = states[:, t] + 0.3 * actions[:, t]
    gone = (states[:, 1:, 0].abs() > 1.5).float()
    ended = gone.any(1)
    steps = torch.where(ended, gone.argmax(1) + 1, horizon)
    mask = torch.arange(horizon) < steps[:, None]
    return {
        "observations": states[:, :-1],
        "actions": actions,
        "rewards": states[:, :-1, 0] * mask,
        "next_observations": states[torch.arange(n), steps],
        "terminations": ended.float(),
        "steps": steps.float(),
        "mask": mask,
    }


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    module = small(observation_dim=1, horizon=6, dim=128, depth=2, schedule_power=1.0)
    module.trajectory.observations.std.fill_(0.9)
    optimizer = torch.optim.Adam(module.denoiser.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for step in range(600):
        loss, info = module.compute_loss(rolling(256))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        module.ema.update(step + 1)
    module.ends_share = info["ends_share"].item()
    return module.eval()


def test_given_actions_lead_where_they_do(learned):
    """Far closer than a point that stays; and of the ends nearly all are where they were."""
    batch = rolling(1000)
    found = learned.predict(batch["observations"][:, 0], batch["actions"])
    alive, real = batch["mask"], batch["observations"]
    torch.testing.assert_close(found.observations[:, 0], real[:, 0])
    error = (found.observations - real)[alive].square().mean().sqrt()
    control = (real - real[:, :1])[alive].square().mean().sqrt()
    assert error < 0.25 * control
    ended = batch["terminations"].bool()
    agree = found.terminations.any(1) == ended
    assert agree.float().mean() > 0.9 > 1 - ended.float().mean().item()
    right = alive & agree[:, None]  # an end that was none ends the rewards too
    rewards = (found.rewards - batch["rewards"])[right].square().mean().sqrt()
    assert rewards < 0.25 * batch["rewards"][right].std()
    assert 0 < learned.ends_share < 0.7


class Counting(DiffusionDynamics):
    """A world where each step adds its action; it ends at 7."""

    def _sample(self, known, denoise, timesteps, generator):
        states = known[:, 0, :1]
        denoise(torch.zeros(len(states), self.horizon, 3), torch.zeros(len(states)).long())
        signal = self.diffusion.alphas_cumprod[0].sqrt()
        moved = (self.seen / signal).cumsum(1)
        at = states[:, None] + torch.cat([torch.zeros_like(moved[:, :1]), moved[:, :-1]], 1)
        ends = (at + self.seen / signal >= 6.99).float()
        return torch.cat([at, at, ends], -1)

    def _denoise(self, net, x, actions, t):
        self.seen = actions
        return x


def test_long_trajectories_are_made_of_several():
    """Of 4 steps each; after the end nothing comes, whatever is predicted."""
    module = Counting(1, 1, horizon=4, dim=8, depth=1, num_train_timesteps=4)
    found = module.predict(torch.zeros(1, 1), torch.ones(1, 10, 1))
    torch.testing.assert_close(
        found.observations[0, :, 0], torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 7, 7])
    )
    assert found.terminations[0].tolist() == [0] * 6 + [1] * 4
    torch.testing.assert_close(found.rewards[0], torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 0, 0, 0]))
    assert found.actions.shape == (1, 10, 1)


class Still(DiffusionDynamics):
    """A world where nothing changes."""

    def _denoise(self, net, x, actions, t):
        self.seen = actions
        return x[:, :1].expand(-1, self.horizon, -1)


def policy(states):
    """Of two actions."""
    mean = torch.cat([states[..., :1], 0.5 - states[..., 1:2]], -1)
    return Normal(mean, torch.tensor([0.5, 0.2]).expand_as(mean))


def deviations(module, states):
    """Of imagined actions from the policy's mean, in its standard deviations; and their spread."""
    imagined, spread = module.imagine(states, policy)
    found = policy(imagined.observations)
    return (imagined.actions - found.mean) / found.std, spread.item()


def test_imagined_actions_are_the_policys():
    """Once the step is tuned, their spread is 1 and their distribution the policy's; not before."""
    torch.manual_seed(0)
    module = Still(3, 2, horizon=5, dim=8, depth=1, num_train_timesteps=32, schedule_power=1.0)
    module.trajectory.actions.std.copy_(torch.tensor([2.0, 0.5]))
    states = torch.randn(400, 3)
    module.step_size.fill_(0.0)
    unguided, _ = deviations(module, states)
    assert kstest(unguided[..., 1].flatten(), "norm").statistic > 0.2
    module.step_size.fill_(0.005)
    for _ in range(250):
        module.tune(deviations(module, states)[1] * torch.ones(()), lr=0.1)
    guided, _ = deviations(module, states)
    spreads = torch.tensor([deviations(module, states)[1] for _ in range(5)])
    assert spreads.mean().item() == pytest.approx(1, abs=0.05)
    assert kstest(guided.flatten(), "norm").statistic < 0.05
    assert guided.abs().max() < 3.001


def test_drawn_actions_are_the_policys():
    """Few steps are enough, nothing is tuned, and each step of the trajectory has the whole spread."""
    torch.manual_seed(0)
    module = Still(
        3, 2, horizon=5, dim=8, depth=1, num_train_timesteps=4, schedule_power=1.0, follows="draws"
    )
    module.trajectory.actions.std.copy_(torch.tensor([2.0, 0.5]))
    found, spread = deviations(module, torch.randn(1000, 3))
    assert spread == pytest.approx(1, abs=0.03)
    for step in found.unbind(1):
        assert kstest(step.flatten(), "norm").statistic < 0.05


def test_a_narrow_policy_is_not_overshot():
    """However large the step is, actions end no farther off than their noise."""
    torch.manual_seed(0)
    module = Still(3, 2, horizon=5, dim=8, depth=1, num_train_timesteps=16)
    states = torch.randn(400, 3)
    spreads = []
    for step_size in (0.02, 0.1, 1.0):
        module.step_size.fill_(step_size)
        spreads.append(deviations(module, states)[1])
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 0.3
    module.tune(torch.tensor(100.0), lr=1.0)
    assert module.step_size == 1


def test_actions_are_seen_as_noisy_as_the_trajectory_is():
    """Scaled by sqrt(abar): nearly not at all at the first step, and fully at the last."""
    module = Still(3, 2, horizon=5, dim=8, depth=1, num_train_timesteps=32, schedule_power=1.0)
    actions = torch.randn(4, 5, 2)
    module.predict(torch.randn(4, 3), actions, num_inference_steps=32)
    signal = module.diffusion.alphas_cumprod[0].sqrt()
    torch.testing.assert_close(module.seen, signal * actions)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"goal_dim": 2}, "goals"),
        ({"follows": "unet"}, "follows"),
        ({"backbone": "x"}, "backbone"),
        ({"horizon": 1}, "horizon"),
        ({"schedule_power": 0.0}, "schedule_power"),
        ({"backbone": "transformer", "dim": 30}, "multiple of num_heads"),
    ],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        small(**wrong)
