"""LatentSkills: its terms in closed form, what skills are good for, and what every role must do."""

import pytest
import torch

from diffrl_lightning import ChunkData, InputError, LatentSkills, TransitionData
from diffrl_lightning.nets import Normal
from modules.role_tester import quiet_trainer, units_do_not_matter

SMALL = {"horizon": 8, "latent_dim": 4, "hidden_dim": 32, "num_layers": 1}


def small(**kwargs):
    return LatentSkills(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


def chunks(n=16, horizon=8):
    """Chunks of which every other one is cut short."""
    steps = torch.tensor([8, 3]).repeat(n // 2)
    return {
        "observations": torch.randn(n, horizon, 3),
        "actions": torch.rand(n, horizon, 1) * 2 - 1,
        "rewards": torch.randn(n, horizon),
        "next_observations": torch.randn(n, 3),
        "terminations": torch.zeros(n),
        "mask": torch.arange(horizon) < steps[:, None],
        "steps": steps.float(),
        "chunks": torch.arange(n),
    }


def test_densities_and_divergences_are_those_of_torch():
    first, second = (Normal(torch.randn(5, 3), torch.rand(5, 3) + 0.1) for _ in range(2))
    theirs = [torch.distributions.Normal(*pair) for pair in (first, second)]
    x = torch.randn(5, 3)
    torch.testing.assert_close(first.log_prob(x), theirs[0].log_prob(x).sum(-1))
    expected = torch.distributions.kl_divergence(*theirs).sum(-1)
    torch.testing.assert_close(first.kl(second), expected)
    torch.testing.assert_close(first.kl(first), torch.zeros(5), atol=1e-6, rtol=0)


def test_the_networks_that_are_called_are_compiled():
    module = small()
    vae = module.vae
    assert set(module.compiled_nets()) == {vae.encoder, vae.prior, vae.policy, vae.dynamics}


def test_what_pads_a_chunk_does_not_matter():
    module, batch = small(), chunks()
    torch.manual_seed(1)
    expected = module.compute_loss(batch)[0]
    padding = ~batch["mask"]
    for name in ("observations", "actions"):
        batch[name][padding] = 100 * torch.randn_like(batch[name][padding])
    torch.manual_seed(1)
    torch.testing.assert_close(module.compute_loss(batch)[0], expected)


def test_the_end_does_not_shape_the_skill():
    """Of the end's likelihood nothing reaches the encoder."""
    module, batch = small(kl_weight=0.0), chunks()
    batch["mask"][:] = False  # no action to decode, so that the end's term is all there is
    module.compute_loss(batch)[0].backward()
    assert all(not p.grad.any() for p in module.vae.encoder.parameters() if p.grad is not None)
    assert all(p.grad.abs().sum() > 0 for p in module.vae.dynamics.parameters())


def test_actions_are_decoded_one_entry_after_the_other():
    policy = small(action_dim=3).vae.policy
    x, actions = torch.randn(6, 7), torch.randn(6, 3)
    before = policy(x, actions)
    actions[:, 1] += 1
    after = policy(x, actions)
    assert torch.equal(before.mean[:, :2], after.mean[:, :2])
    assert not torch.equal(before.mean[:, 2], after.mean[:, 2])
    # Acting feeds each entry to the next.
    drawn = policy.act(x)
    torch.testing.assert_close(policy(x, drawn).mean, drawn)
    noise = torch.randn(6, 3)
    drawn = policy.act(x, noise)
    found = policy(x, drawn)
    torch.testing.assert_close(found.mean + found.std * noise, drawn)


def learned(module, batch, num_updates):
    """Train a module in batches of a function; what its last loss logs."""
    optimizer = torch.optim.Adam(module.vae.parameters(), lr=3e-3)
    for step in range(num_updates):
        loss, info = module.compute_loss(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update(step + 1)
    return info


def test_skills_tell_what_the_state_does_not():
    """Chunks that go up or down by chance: decoded actions are right, the prior's mean is not."""
    torch.manual_seed(0)
    module = small(observation_dim=1, kl_weight=1.0, ema_decay=0.9)

    def batch(n=128):
        start = torch.randn(n, 1, 1)
        actions = (2.0 * torch.randint(2, (n, 1, 1)) - 1).expand(-1, 8, -1)
        states = start + 0.1 * torch.cat([torch.zeros(n, 1, 1), actions.cumsum(1)], 1)
        return {
            "observations": states[:, :-1],
            "actions": actions,
            "next_observations": states[:, -1],
            "mask": torch.ones(n, 8, dtype=torch.bool),
            "steps": torch.full((n,), 8.0),
        }

    info = learned(module, batch, 250)
    held_out = batch(500)
    skills, prior = (
        module.encode(held_out).mean,
        module.skill_prior(held_out["observations"][:, 0]).mean,
    )
    first, action = held_out["observations"][:, 0], held_out["actions"][:, 0]

    start = torch.zeros(500, dtype=torch.long)

    def errors(z):
        decoded = module.decode(first, z, start) - action
        end = module.ends(first, z) - held_out["next_observations"]
        return [x.square().mean().sqrt().item() for x in (decoded, end)]

    for found, control in zip(errors(skills), errors(prior), strict=True):
        assert found < 0.25 * control
    assert info["kl"] > 0.6  # what the state does not tell is one bit, 0.69
    drawn = module.choose(first, None)
    up = (module.decode(first, drawn, start) > 0).float().mean().item()
    assert 0.35 < up < 0.65


@pytest.mark.parametrize("step_aware", [False, True])
def test_steps_that_differ_by_chance_need_a_clock(step_aware):
    """In a state that stays, each action is up or down by chance: untimed, but the mean can be told."""
    torch.manual_seed(0)
    module = small(
        observation_dim=1, horizon=2, kl_weight=0.01, ema_decay=0.9, step_aware=step_aware
    )

    def batch(n=128):
        return {
            "observations": torch.zeros(n, 2, 1),
            "actions": 2.0 * torch.randint(2, (n, 2, 1)) - 1,
            "next_observations": torch.zeros(n, 1),
            "mask": torch.ones(n, 2, dtype=torch.bool),
            "steps": torch.full((n,), 2.0),
        }

    learned(module, batch, 400)
    held_out = batch(500)
    skills, state = module.encode(held_out).mean, torch.zeros(500, 1)
    decoded = [module.decode(state, skills, torch.full((500,), k)) for k in range(2)]
    error = (torch.stack(decoded, 1) - held_out["actions"]).square().mean().sqrt().item()
    assert error < 0.25 if step_aware else error > 0.6  # of the mean sqrt(1 / 2)


def test_validation_logs_its_errors(tmp_path, pendulum_file):
    trainer = quiet_trainer(tmp_path, max_steps=2, val_check_interval=2, limit_val_batches=2)
    trainer.fit(small(), ChunkData(str(pendulum_file), horizon=8, batch_size=32))
    for name in ("action_error", "action_error_prior", "end_error", "end_error_prior"):
        assert trainer.callback_metrics[f"val/{name}"] > 0


def test_units_do_not_matter():
    module, batch = small().eval(), chunks()
    z, steps = torch.randn(16, 4), torch.zeros(16, dtype=torch.long)
    units_do_not_matter(
        module, batch, decide=lambda states: module.decode(states.reshape(-1, 3)[:16], z, steps)
    )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"horizon": 0}, "horizon"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"min_std": 0.0}, "min_std"),
    ],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        small(**wrong)


def test_a_skill_acts_no_longer_than_it_was_learned():
    with pytest.raises(InputError, match=r"n_action_steps=9 must lie in \[1, 8\]"):
        small().make_policy(n_action_steps=9)


def test_data_of_another_kind_are_refused(tmp_path, pendulum_file):
    with pytest.raises(InputError, match="use ChunkData"):
        quiet_trainer(tmp_path, max_steps=1).fit(small(), TransitionData(str(pendulum_file)))
