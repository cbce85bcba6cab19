"""IDQL: its losses by their formulas, its choices, and what every role must do."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector

from diffrl_lightning import IDQL, IDQLActing, InputError, TransitionData
from modules.role_tester import (
    quiet_trainer,
    transitions,
    units_do_not_matter,
)

SMALL = {"hidden_dim": 16, "critic_hidden_dim": 16, "ema_decay": 0.9}


def small(**kwargs):
    return IDQL(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


@pytest.mark.parametrize("num_critics", [2, 5])
def test_losses_are_those_of_the_paper(num_critics):
    module = small(expectile=0.8, discount=0.9, dropout=0.0, num_critics=num_critics)
    batch = transitions()
    with torch.no_grad():
        for p in module.target_critic.parameters():
            p += 0.2 * torch.randn_like(p)
    states, actions = batch["observations"], batch["actions"]
    least = module.target_critic(states, actions).min(0).values
    short = least - module.value(states)[:, 0]
    assert (short > 0).any()
    assert (short < 0).any()
    value_loss = torch.where(short > 0, 0.8 * short**2, 0.2 * short**2).mean()
    ended = batch["terminations"].bool()
    following = module.value(batch["next_observations"])[:, 0]
    target = (
        batch["rewards"] + torch.where(ended, 0.0, 0.9 ** batch["steps"] * following)
    ).detach()
    ours = module.critic(states, actions)
    assert len(ours) == num_critics
    critic_loss = sum(mse_loss(q, target) for q in ours)
    torch.manual_seed(2)
    bc_loss = module.diffusion.loss(lambda x, t: module.denoiser(x, t, states), actions).mean()
    torch.manual_seed(2)
    loss, _ = module.compute_loss(batch)
    torch.testing.assert_close(loss, bc_loss + value_loss + critic_loss)

    loss.backward()
    found = [[p.grad.clone() for p in n.parameters()] for n in (module.value, module.critic)]
    module.zero_grad()
    (value_loss + critic_loss).backward()
    own = [[p.grad for p in n.parameters()] for n in (module.value, module.critic)]
    torch.testing.assert_close(found, own)
    assert all(p.grad is None for n in (module.ema, module.target_critic) for p in n.parameters())


def test_the_value_is_the_expectile_of_q():
    """One state, rewards of two sizes at the end of the episode: V solves the expectile's equation."""
    module = small(expectile=0.9, tau=0.2)
    n = 400
    actions = torch.cat([torch.full((n // 2, 1), -1.0), torch.full((n // 2, 1), 1.0)])
    batch = transitions(n) | {"observations": torch.zeros(n, 3), "actions": actions}
    batch |= {"rewards": actions[:, 0].clone(), "terminations": torch.ones(n)}
    nets = [*module.value.parameters(), *module.critic.parameters()]
    optimizer = torch.optim.Adam(nets, lr=1e-2)
    for step in range(300):
        optimizer.zero_grad()
        module.compute_loss(batch)[0].backward()
        optimizer.step()
        module.target_critic.update(step + 1)
    # 0.9 (1 - v) = 0.1 (v + 1)
    assert module.value(torch.zeros(1, 3)).item() == pytest.approx(0.8, abs=0.03)


class Scores(torch.nn.Module):
    """Critics that like an action by its value."""

    def forward(self, states, actions):
        return torch.stack([actions[:, 0], actions[:, 0] + 1])


def test_choices(monkeypatch):
    """Of -0.5, 0.1 and 0.5 against V = 0: the best, or each by the weight that V's loss gives it."""
    module = small(expectile=0.75).eval()
    module.target_critic = Scores()
    with torch.no_grad():
        for p in module.value.parameters():
            p.zero_()
    three = torch.tensor([-0.5, 0.1, 0.5]).repeat(8000)[:, None]
    asked = {}
    monkeypatch.setattr(
        "diffrl_lightning.modules.idql.draw", lambda *a, **k: asked.update(k) or three
    )
    states = torch.zeros(8000, 3)
    best = module.decide(states, IDQLActing(num_candidates=3))
    assert (best == 0.5).all()
    drawn = module.decide(states, IDQLActing(num_candidates=3, choice="expectile"))[:, 0, 0]
    shares = [torch.isclose(drawn, x).float().mean().item() for x in three[:3, 0]]
    assert shares == pytest.approx([0.25 / 1.75, 0.75 / 1.75, 0.75 / 1.75], abs=0.02)
    assert asked["variance"] == "beta"
    assert asked["clip"] == 1.0


def test_units():
    module = small(dropout=0.0, normalizer="gaussian")

    def decide(states):
        return module.decide(states, IDQLActing(num_candidates=3))

    units_do_not_matter(module, transitions(), decide=decide)


def test_acting_samples_from_the_average(monkeypatch):
    module, asked = small().eval(), []
    monkeypatch.setattr(module.ema.net, "forward", lambda x, t, cond: torch.full_like(x, 7.0))

    def draw(diffusion, denoise, shape, how, **kwargs):
        asked.append(denoise(torch.zeros(shape), None)[0, 0].item())
        return torch.zeros(shape)

    monkeypatch.setattr("diffrl_lightning.modules.idql.draw", draw)
    module.make_policy().act(torch.zeros(2, 3))
    assert asked == [7.0]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_critics_stay_after_their_last_step_and_the_actor_learns_on(
    tmp_path, pendulum_file, schedule
):
    data = TransitionData(str(pendulum_file), batch_size=32)
    module = small(critic_steps=3, critic_lr_schedule=schedule)
    trainer, seen = quiet_trainer(tmp_path, max_steps=6), []
    names = ("denoiser", "ema", "critic", "target_critic", "value")

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            nets = {name: getattr(module, name) for name in names}
            seen.append({k: parameters_to_vector(n.parameters()).clone() for k, n in nets.items()})
            assert all(p.grad is not None for p in module.parameters() if p.requires_grad)

    trainer.callbacks.append(Watch())
    trainer.fit(module, datamodule=data)
    assert len(seen) == 6
    for step, (before, after) in enumerate(pairwise(seen), start=2):
        for name in names:
            learns = step <= 3 or name in ("denoiser", "ema")
            assert torch.equal(before[name], after[name]) != learns, (step, name)
    with pytest.raises(InputError, match="critic_steps=0 must be at least 1"):
        small(critic_steps=0)


@pytest.mark.parametrize("critics", ["constant", "cosine"])
def test_the_actor_alone_decays(critics):
    """Its matrices in weight; and its rate, where that alone follows a cosine."""
    module = small(weight_decay=0.1, lr_schedule="cosine", critic_lr_schedule=critics)
    module._trainer = SimpleNamespace(estimated_stepping_batches=100)
    chosen = module.configure_optimizers()
    groups, factors = (
        chosen["optimizer"].param_groups,
        chosen["lr_scheduler"]["scheduler"].lr_lambdas,
    )
    actors = {id(p) for p in module.denoiser.parameters()}
    for group, factor in zip(groups, factors, strict=True):
        falls = factor(100) == pytest.approx(0)
        assert falls == (id(group["params"][0]) in actors or critics == "cosine")
        assert factor(50) == pytest.approx(0.5 if falls else 1)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    matrices = {id(p) for p in module.denoiser.parameters() if p.ndim > 1}
    assert decayed == matrices
    counted = [id(p) for g in groups for p in g["params"]]
    assert sorted(counted) == sorted(id(p) for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("dims", "actor", "critics", "value"),
    [
        ((11, 3), 1_640_483, 139_778, 69_121),
        ((17, 6), 1_643_558, 144_386, 70_657),
        ((29, 8), 1_647_656, 151_554, 73_729),
    ],
)
def test_published_size(dims, actor, critics, value):
    module = IDQL(*dims)
    nets = (module.denoiser, module.critic, module.value)
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert counts == [actor, critics, value]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"goal_dim": 2}, "does not pursue goals"),
        ({"expectile": 1.0}, "must lie in"),
        ({"tau": 0.0}, "tau=0.0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        small(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"num_candidates": 0}, "at least 1"), ({"choice": "softmax"}, "one of argmax, expectile")],
)
def test_bad_choices(kwargs, message):
    with pytest.raises(InputError, match=message):
        small().make_policy(**kwargs)
