"""TD3BC: targets, delay, gradients, and what every role must do."""

import pytest
import torch
from torch.nn.functional import mse_loss

from diffrl_lightning import TD3BC, Acting, InputError, TransitionData
from modules.role_tester import quiet_trainer, ready, transitions, units_do_not_matter

SMALL = {"hidden_dim": 16}


def small(**kwargs):
    return TD3BC(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


def test_losses_are_those_of_the_paper():
    """Without noise on the target, by the formulas, term by term."""
    module, batch = small(policy_delay=1, policy_noise=0.0, discount=0.9, alpha=2.0), transitions()
    for net in (module.target_actor, module.target_critic):
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    following = batch["next_observations"]
    q1, q2 = module.target_critic(following, module.target_actor(following))
    ended = batch["terminations"].bool()
    target = batch["rewards"] + 0.9 ** batch["steps"] * torch.where(
        ended, 0.0, torch.minimum(q1, q2)
    )
    ours = module.critic(batch["observations"], batch["actions"])
    critic_loss = mse_loss(ours[0], target) + mse_loss(ours[1], target)
    chosen = module.actor(batch["observations"])
    value = module.critic(batch["observations"], chosen)[0]
    scale = 2.0 / value.abs().mean()
    actor_loss = -scale * value.mean() + mse_loss(chosen, batch["actions"])
    loss, _ = module.compute_loss(batch)
    torch.testing.assert_close(loss, critic_loss + actor_loss)


def test_noise_of_the_target_is_clipped():
    module = small(policy_noise=10.0, noise_clip=0.25, discount=1.0)
    seen = []
    module.target_critic.net.register_forward_pre_hook(lambda net, args: seen.append(args))
    batch = transitions(64)
    module._target(batch)
    states, actions = seen[0]
    mean = module.target_actor(states)
    moved = (actions - mean).abs()
    assert moved.max() <= 0.25 + 1e-6
    assert (moved > 0.2).float().mean() > 0.5
    assert actions.abs().max() <= 1


def test_actor_and_targets_wait_for_the_critics(tmp_path, pendulum_file):
    """With a delay of 2 the actor moves at every other step, and targets follow only then."""
    data = ready(TransitionData(str(pendulum_file), batch_size=32))
    module = small(policy_delay=2)
    module.fit_normalizers(data)
    moved = []

    names = ("actor", "critic", "target_actor", "target_critic")

    def weights():
        nets = [getattr(module, name) for name in names]
        return [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]

    step = module.optimizer_step

    def watched(*args, **kwargs):
        before = weights()
        step(*args, **kwargs)
        after = weights()
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])

    module.optimizer_step = watched
    trainer = quiet_trainer(tmp_path, max_steps=4, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    assert moved == [[False, True, False, False], [True, True, True, True]] * 2


def test_each_loss_reaches_its_own_network():
    module, batch = small(policy_delay=1, policy_noise=0.0), transitions()
    module.compute_loss(batch)[0].backward()
    found = [p.grad.clone() for p in module.critic.parameters()]
    assert all(p.grad.abs().sum() > 0 for p in module.actor.parameters())
    assert all(
        p.grad is None
        for net in (module.target_actor, module.target_critic)
        for p in net.parameters()
    )
    module.zero_grad()
    q = module.critic(batch["observations"], batch["actions"])
    (q - module._target(batch)).square().mean(1).sum().backward()
    torch.testing.assert_close([p.grad for p in module.critic.parameters()], found)


def test_the_actor_climbs_one_critic_over_the_size_of_its_values():
    """Its gradient is that of the formula; the size is a constant in it."""
    module, batch = small(policy_delay=1, alpha=2.0), transitions()
    module.compute_loss(batch)[0].backward()
    found = [p.grad.clone() for p in module.actor.parameters()]
    module.zero_grad()
    chosen = module.actor(batch["observations"])
    value = module.critic(batch["observations"], chosen)[0]
    scale = 2.0 / value.abs().mean().item()
    (-scale * value.mean() + mse_loss(chosen, batch["actions"])).backward()
    torch.testing.assert_close([p.grad for p in module.actor.parameters()], found)


def test_units():
    module = small(policy_delay=1)
    units_do_not_matter(
        module, transitions(), decide=lambda states: module.decide(states, Acting())
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"goal_dim": 2}, "does not pursue goals"),
        ({"tau": 0.0}, "tau=0.0 must lie in"),
        ({"discount": 1.5}, "discount=1.5 must lie in"),
        ({"policy_delay": 0}, "policy_delay=0 must be at least 1"),
        ({"noise_clip": -0.1}, "at least 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        small(**kwargs)
