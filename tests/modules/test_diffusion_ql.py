"""DiffusionQL: its losses by their formulas, its gradients, its choice, and what every role must do."""

import pytest
import torch
from torch.nn.functional import mse_loss

from diffrl_lightning import DiffusionQL, InputError, QActing, TransitionData
from diffrl_lightning.nets import frozen
from modules.role_tester import (
    quiet_trainer,
    ready,
    transitions,
    units_do_not_matter,
)

SMALL = {"hidden_dim": 16, "ema_start": 0, "ema_update_every": 1}


def small(**kwargs):
    return DiffusionQL(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


def perturbed(*nets):
    with torch.no_grad():
        for net in nets:
            for p in net.parameters():
                p += 0.1 * torch.randn_like(p)


@pytest.mark.parametrize("max_q_backup", [False, True])
def test_target_is_that_of_the_paper(monkeypatch, max_q_backup):
    """The lesser critic's value of one next action; or of each critic's best of several."""
    module = small(discount=0.9, max_q_backup=max_q_backup, num_backup_actions=3)
    perturbed(module.ema, module.target_critic)
    n = 3 if max_q_backup else 1
    actions = torch.rand(8 * n, 1) * 2 - 1
    asked = []
    monkeypatch.setattr(module, "sample_actions", lambda *args: asked.append(args) or actions)
    batch = transitions()
    states = batch["next_observations"].repeat_interleave(n, 0)
    q1, q2 = module.target_critic(states, actions).unflatten(1, (8, n))
    value = torch.minimum(q1.max(1).values, q2.max(1).values)
    ended = batch["terminations"].bool()
    expected = batch["rewards"] + torch.where(ended, 0.0, 0.9 ** batch["steps"] * value)
    torch.testing.assert_close(module._target(batch), expected)
    assert asked[0][0] is module.ema, "next actions are the averaged actor's"
    assert torch.equal(asked[0][1], states)


def test_losses_add_up(monkeypatch):
    """One critic's value over the size of the other's, drawn at random, beside the other losses."""
    module, batch = small(q_weight=0.5), transitions()
    target, bc, actions = torch.randn(8), torch.tensor(2.0), torch.rand(8, 1)
    monkeypatch.setattr(module, "_target", lambda batch: target)
    monkeypatch.setattr(module, "_clone", lambda states, actions_: (bc, actions))
    ours = module.critic(batch["observations"], batch["actions"])
    critic_loss = mse_loss(ours[0], target) + mse_loss(ours[1], target)
    q = module.critic(batch["observations"], actions)
    ways = [-q[i].mean() / q[1 - i].abs().mean() for i in (0, 1)]
    assert abs(ways[0] - ways[1]) > 1e-3
    found = [module.compute_loss(batch)[0] - critic_loss - bc for _ in range(20)]
    which = [[abs(loss - 0.5 * way) < 1e-5 for way in ways] for loss in found]
    assert all(sum(hits) == 1 for hits in which)
    assert {hits.index(True) for hits in which} == {0, 1}, "each critic has its turn"


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("actor_loss", ["chain", "one_step"])
def test_each_loss_reaches_its_own_network(actor_loss):
    module, batch = small(actor_loss=actor_loss), transitions()
    torch.manual_seed(3)
    module.compute_loss(batch)[0].backward()
    critic, actor = gradients(module.critic), gradients(module.denoiser)
    for average in (module.ema, module.target_critic):
        assert all(p.grad is None for p in average.parameters())

    module.zero_grad()
    torch.manual_seed(3)  # the same target, the same noise, the same critic
    states, actions = batch["observations"], batch["actions"]
    (module.critic(states, actions) - module._target(batch)).square().mean(1).sum().backward()
    torch.testing.assert_close(gradients(module.critic), critic)
    bc_loss, chosen = module._clone(states, actions)
    values = module.critic(states, chosen)
    one = torch.randint(2, (1,)).item()
    (bc_loss - values[one].mean() / values[1 - one].detach().abs().mean()).backward()
    torch.testing.assert_close(gradients(module.denoiser), actor)


def test_gradient_through_the_chain_is_that_of_finite_differences():
    """Along random directions in weight space, with the chain's noise held, in double precision."""
    module = small(hidden_dim=8).double()
    states = torch.randn(16, 3, dtype=torch.float64)
    critic = frozen(module.critic)
    weights = list(module.denoiser.parameters())

    def value():
        torch.manual_seed(5)
        x = module.sample_actions(module.denoiser, states, differentiable=True)
        return critic(states, x).mean()

    gradient = torch.autograd.grad(value(), weights)
    for _ in range(3):
        direction = [torch.randn_like(w) for w in weights]
        slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)).item()
        ends = []
        with torch.no_grad():
            for sign in (1, -2):
                for w, d in zip(weights, direction, strict=True):
                    w += sign * 1e-6 * d
                ends.append(value().item())
            for w, d in zip(weights, direction, strict=True):
                w += 1e-6 * d
        assert abs(slope) > 1e-4
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_the_one_step_estimate_is_the_clean_action_of_the_cloning_step():
    """Exact where the network knows the noise; and the critics see that very action."""
    module = small(actor_loss="one_step")
    states, actions = torch.randn(64, 3), torch.rand(64, 1) * 2 - 1

    class Knows(torch.nn.Module):
        def forward(self, x, t, cond):
            signal, noise = module.diffusion.signal_noise(t, 2)
            return (x - signal * actions) / noise

    module.denoiser = Knows()
    bc_loss, estimate = module._clone(states, actions)
    assert bc_loss < 1e-8
    torch.testing.assert_close(estimate, actions, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.2, 0.3])
def test_bias_of_the_one_step_estimate_in_closed_form(sigma):
    """Actions N(0, sigma^2) and the best network for them: what the critics see is too narrow.

    E[x0 | x_t] keeps rho_t = abar sigma^2 / (abar sigma^2 + 1 - abar) of the variance, and the five
    steps of the chain more of it; a linear value is unbiased by both, a curved one by neither.
    """
    module = small(actor_loss="one_step")
    diffusion, n = module.diffusion, 200_000

    class Best(torch.nn.Module):
        def forward(self, x, t, cond):
            signal, noise = diffusion.signal_noise(t, 2)
            return noise * x / ((signal * sigma).square() + noise.square())

    module.denoiser = Best()
    states = torch.zeros(n, 3)
    with torch.no_grad():
        one_step = module._clone(states, sigma * torch.randn(n, 1))[1] / sigma
        chain = module.sample_actions(module.denoiser, states) / sigma
    # Step t goes from abar[t + 1] to abar[t].
    abar = [1.0, *diffusion.alphas_cumprod.tolist()]
    kept = [a * sigma**2 / (a * sigma**2 + 1 - a) for a in abar]
    variance = 1.0
    for t in reversed(range(5)):
        a, before = abar[t + 1], abar[t]
        beta = 1 - a / before
        towards = before**0.5 * beta / (1 - a) * kept[t + 1] / a**0.5
        slope = towards + (a / before) ** 0.5 * (1 - before) / (1 - a)
        variance = slope**2 * variance + beta * (1 - before) / (1 - a)
    for sample, expected in ((one_step, sum(kept[1:]) / 5), (chain, variance / sigma**2)):
        assert abs(sample.mean()) < 0.01
        assert sample.var().item() == pytest.approx(expected, rel=0.03)
    assert one_step.var() < 0.4 * chain.var() < 0.4


class Scores(torch.nn.Module):
    """A critic that likes an action by its value, and one that likes all alike."""

    def forward(self, states, actions):
        return torch.stack([actions[:, 0], torch.full_like(actions[:, 0], 0.3)])


def test_acting_draws_by_the_softmax_of_the_lesser_value(monkeypatch):
    """Of 0.5 and -0.5 the higher one comes with probability sigmoid((0.3 + 0.5) / T)."""
    module = small().eval()
    module.target_critic = Scores()
    pairs = torch.tensor([0.5, -0.5]).repeat(4000)[:, None]
    monkeypatch.setattr("diffrl_lightning.modules.diffusion_ql.draw", lambda *a, **k: pairs)
    states = torch.zeros(4000, 3)
    for temperature, share in ((1.0, 0.690), (0.25, 0.961), (0.0, 1.0)):
        chosen = module.decide(states, QActing(num_candidates=2, choice_temperature=temperature))
        assert (chosen > 0).float().mean().item() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("average", [False, True])
def test_acting_draws_candidates_of_the_last_or_of_the_averaged_actor(monkeypatch, average):
    module = small().eval()
    module.ema.net, module.denoiser = Answers(2.0), Answers(1.0)
    asked = {}

    def draw(diffusion, denoise, shape, how, **kwargs):
        asked.update(shape=shape, net=denoise(torch.zeros(shape), None)[0, 0].item())
        return torch.zeros(shape)

    monkeypatch.setattr("diffrl_lightning.modules.diffusion_ql.draw", draw)
    policy = module.make_policy(num_candidates=4, average=average)
    policy.reset(torch.ones(2, dtype=torch.bool), [0, 1])
    policy.act(torch.zeros(2, 3))
    assert asked == {"shape": (8, 1), "net": 2.0 if average else 1.0}


class Answers(torch.nn.Module):
    """An actor with one answer."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, cond):
        return torch.full_like(x, self.value)


def test_actions_of_the_chain_stay_in_bounds():
    module = small()
    module.denoiser = Answers(-5.0)
    assert module.sample_actions(module.denoiser, torch.zeros(50, 3)).abs().max() <= 1


@pytest.mark.parametrize("actor_loss", ["chain", "one_step"])
def test_units(actor_loss):
    module = small(actor_loss=actor_loss, normalizer="gaussian")

    def decide(states):
        return module.decide(states, QActing(num_candidates=3))

    units_do_not_matter(module, transitions(), decide=decide)


def test_gradients_are_clipped_network_by_network(tmp_path, pendulum_file):
    data = ready(TransitionData(str(pendulum_file), batch_size=32))
    module, norms = small(), []
    clip = module.configure_gradient_clipping

    def norm(net):
        return torch.cat([g.flatten() for g in gradients(net)]).norm().item()

    def watched(*args, **kwargs):
        before = norm(module.denoiser), norm(module.critic)
        clip(*args, **kwargs)
        norms.append((before, (norm(module.denoiser), norm(module.critic))))

    module.configure_gradient_clipping = watched
    trainer = quiet_trainer(tmp_path, max_steps=3, gradient_clip_val=0.05, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    assert len(norms) == 3
    for before, after in norms:
        expected = [min(0.05, b) for b in before]
        assert after == pytest.approx(expected, rel=1e-3)


def test_rates_of_actor_and_critics():
    module = small(lr=1e-3, critic_lr=3e-4)
    actor, critic = module.configure_optimizers().param_groups
    assert (actor["lr"], critic["lr"]) == (1e-3, 3e-4)
    assert [len(g["params"]) for g in (actor, critic)] == [12, 8]


@pytest.mark.parametrize(
    ("dims", "actor", "critics"),
    [
        ((11, 3), 141_363, 271_362),
        ((17, 6), 144_438, 275_970),
        ((29, 8), 148_536, 283_138),
        ((45, 24), 160_840, 299_522),
        ((60, 9), 156_985, 299_522),
    ],
)
def test_published_size(dims, actor, critics):
    module = DiffusionQL(*dims)
    assert sum(p.numel() for p in module.denoiser.parameters()) == actor
    assert sum(p.numel() for p in module.critic.parameters()) == critics


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"goal_dim": 2}, "does not pursue goals"),
        ({"actor_loss": "two_step"}, "is unknown"),
        ({"tau": 1.5}, "tau=1.5 must lie in"),
        ({"num_backup_actions": 0}, "must be at least 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        small(**kwargs)


@pytest.mark.parametrize("kwargs", [{"num_candidates": 0}, {"choice_temperature": -1.0}])
def test_bad_choices(kwargs):
    with pytest.raises(InputError, match="must be at least"):
        small().make_policy(**kwargs)
