"""DynamicsAgent: advantages, learning in a known world, going on, what every role must do."""

from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch

from diffrl_lightning import (
    ChunkData,
    Collect,
    DynamicsAgent,
    InputError,
    LatentDiffusion,
    OnlineData,
    SkillActing,
    TransitionData,
)
from diffrl_lightning.modules.dynamics_agent import generalized_advantages
from diffrl_lightning.types import Imagined
from modules.role_tester import quiet_trainer

SMALL = {"horizon": 6, "dim": 32, "depth": 1, "num_train_timesteps": 8, "policy_dim": 16}
OFTEN = {"ema_start": 0, "ema_update_every": 1, "policy_start": 0, "policy_every": 1}


def small(**kwargs):
    return DynamicsAgent(**({"observation_dim": 3, "action_dim": 1} | SMALL | OFTEN | kwargs))


def test_advantages_are_those_of_their_sum():
    """Of the definition: discounted sums of one-step errors, none of them from behind an end."""
    rewards, values = torch.randn(2, 4, 6)
    ends = torch.zeros(4, 6)
    ends[1, 2:], ends[2, 0:] = 1, 1
    found = generalized_advantages(rewards, values, ends, discount=0.9, gae_lambda=0.7)
    assert found.shape == (4, 5)
    for n in range(4):
        for t in range(5):
            total, weight = 0.0, 1.0
            for k in range(t, 5):
                going = 1 - ends[n, k]
                total += weight * (rewards[n, k] + 0.9 * going * values[n, k + 1] - values[n, k])
                weight *= 0.9 * 0.7 * going
                if not going:
                    break
            assert found[n, t].item() == pytest.approx(float(total), abs=1e-5)


class Known(DynamicsAgent):
    """A world where nothing changes, and the reward is for actions near 0.6."""

    def imagine(self, states, policy, **options):
        observations = states[:, None].expand(-1, self.horizon, -1)
        with torch.no_grad():
            found = policy(observations)
            actions = found.mean + found.std * torch.randn_like(found.mean)
        rewards = -(actions[..., 0] - 0.6).square()
        ends = torch.zeros_like(rewards)
        return Imagined(observations, actions, rewards, ends), torch.ones(())


def test_an_actor_begins_as_wide_as_it_is_told():
    states = torch.randn(5, 3)
    for std, module in ((1.0, small()), (0.3, small(initial_std=0.3))):
        assert module.policy(states).std.unique().tolist() == pytest.approx([std])


def test_new_statistics_leave_actor_and_critics_as_they_were():
    module, data = agent(), online()
    data.setup("fit")
    module.fit_normalizers(data)
    states = 0.3 * torch.randn(20, 4)
    normalize = module.trajectory.observations.normalize

    def found():
        seen = normalize(states)
        nets = (module.critic, module.target_critic)
        return [module.policy(states).mean, *(net(seen) for net in nets)]

    before, seen = found(), normalize(states)
    data.buffer.arrays["observations"] += torch.tensor([1.0, -2.0, 0.5, 0.0])
    data.buffer.arrays["observations"] *= torch.tensor([0.3, 1.0, 4.0, 2.0])
    module.refit_normalizers(data)
    assert (normalize(states) - seen).abs().mean() > 0.3
    for now, then in zip(found(), before, strict=True):
        torch.testing.assert_close(now, then, atol=1e-4, rtol=1e-4)


def test_an_actor_learns_what_is_rewarded():
    torch.manual_seed(0)
    module = Known(3, 1, **SMALL, **OFTEN, discount=0.9, entropy_weight=0.0)
    parameters = [*module.actor.parameters(), module.log_std, *module.critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    states = torch.randn(64, 3)
    before = module.policy(states)
    for step in range(400):
        loss, info = module._policy_loss(states)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.target_critic.update(step + 1)
    found = module.policy(states)
    assert (before.mean - 0.6).abs().mean() > 0.3
    assert (found.mean - 0.6).abs().mean() < 0.1
    assert found.std.mean() < 0.6 * before.std.mean()
    # The sum of what is to come, at the spread that is left.
    wanted = -(found.std.square().mean() + (found.mean - 0.6).square().mean()) / (1 - 0.9)
    assert info["value"].item() == pytest.approx(wanted.item(), abs=0.5)


def online(**kwargs):
    options = {"num_envs": 2, "prefill_steps": 60, "batch_size": 16, "batches_per_epoch": 10}
    return OnlineData("InvertedPendulum-v5", horizon=6, seed=4, **options | kwargs)


def agent():
    torch.manual_seed(2)
    return small(observation_dim=4, policy_start=4, policy_every=2, num_imagined=8)


def fit(tmp_path, steps, prefill_steps=60, **kwargs):
    data, module = online(prefill_steps=prefill_steps), agent()
    collect = Collect(steps_per_update=0.5)
    trainer = quiet_trainer(tmp_path, max_steps=steps, callbacks=[collect], log_every_n_steps=5)
    trainer.fit(module, datamodule=data, **kwargs)
    return trainer, module, data


def test_it_acts_while_it_learns(tmp_path):
    """A step of both environments for every four updates; statistics follow with the next tenth."""
    trainer, module, data = fit(tmp_path, 26)
    assert data.buffer.added == 30 + 6
    assert trainer.callback_metrics["collect/steps"] == 2 * (30 + 6)
    actions = data.buffer.arrays["actions"][:33]
    assert module.trajectory.actions.std.item() == pytest.approx(
        actions.std(correction=0).item(), rel=1e-4
    )
    assert module.high.item() == 3


def test_an_interrupted_run_goes_on_as_if_it_were_not(tmp_path):
    _, unbroken, seen = fit(tmp_path, 26)
    trainer, _, _ = fit(tmp_path, 14)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, data = fit(tmp_path, 26, ckpt_path=tmp_path / "half.ckpt")
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, value in seen.buffer.arrays.items():
        assert torch.equal(value, data.buffer.arrays[name]), name


def test_actor_and_critic_take_their_own_steps_alone(tmp_path):
    """Not even by the momentum of an earlier one, in the steps that are the model's."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            weights = [*module._actor_parameters(), *module.critic.parameters()]
            seen.append(torch.cat([p.detach().flatten() for p in weights]))

    torch.manual_seed(2)
    module = small(observation_dim=4, policy_start=4, policy_every=3, num_imagined=8)
    trainer = quiet_trainer(tmp_path, max_steps=10, callbacks=[Collect(), Watch()])
    trainer.fit(module, datamodule=online())
    moved = [k + 2 for k, (a, b) in enumerate(pairwise(seen)) if not torch.equal(a, b)]
    assert moved == [6, 9]


def test_what_does_not_fit_online_is_refused_before_training(tmp_path):
    def fit(module, *callbacks):
        trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=list(callbacks))
        trainer.fit(module, datamodule=online())

    with pytest.raises(InputError, match="add the callback Collect"):
        fit(agent())
    with pytest.raises(InputError, match="SkillActing is not how DynamicsAgent acts"):
        fit(agent(), Collect(acting=SkillActing()))
    with pytest.raises(InputError, match="does not learn online"):
        fit(LatentDiffusion(4, 1, horizon=6, latent_dim=4), Collect())
    with pytest.raises(InputError, match="Policies act by vectors of real numbers"):
        OnlineData("CartPole-v1")


def test_collecting_needs_data_that_grow(tmp_path, pendulum_file):
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[Collect()])
    with pytest.raises(InputError, match="OnlineData"):
        trainer.fit(small(), ChunkData(str(pendulum_file), horizon=6))
    with pytest.raises(InputError, match="use ChunkData"):
        quiet_trainer(tmp_path, max_steps=1).fit(small(), TransitionData(str(pendulum_file)))
    with pytest.raises(InputError, match="steps_per_update"):
        Collect(steps_per_update=0)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"policy_every": 0}, "policy_every"),
        ({"num_imagined": 1}, "num_imagined"),
        ({"gae_lambda": 0.0}, "gae_lambda"),
        ({"initial_std": 0.1}, "initial_std"),
        ({"goal_dim": 2}, "goals"),
    ],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        small(**wrong)
