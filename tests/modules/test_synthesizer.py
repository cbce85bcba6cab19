"""Data synthesizers: sizes, what is encoded, what is drawn, and what every role must do."""

import numpy as np
import pytest
import torch
from conftest import write_d4rl

from diffrl_lightning import (
    DataSynthesizer,
    GaussianActing,
    InputError,
    SequenceData,
    SynthesisSampling,
    TrajectorySynthesizer,
    TransitionData,
)
from diffrl_lightning.diffusion import EDM
from modules.role_tester import ready, transitions

SMALL = {"hidden_dim": 32, "num_blocks": 1, "embed_dim": 16, "ema_start": 0, "ema_update_every": 1}
WINDOWS = {"horizon": 8, "dim": 16, "dim_mults": (1, 2), "ema_start": 0, "ema_update_every": 1}


def small(**kwargs):
    return DataSynthesizer(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


def windows(**kwargs):
    return TrajectorySynthesizer(**({"observation_dim": 3, "action_dim": 1} | WINDOWS | kwargs))


@pytest.mark.parametrize(
    ("observation_dim", "action_dim", "hidden_dim", "parameters"),
    [(11, 3, 2048, 25_520_027), (11, 3, 1024, 6_479_771), (17, 6, 2048, 25_552_682)],
)
def test_published_size(observation_dim, action_dim, hidden_dim, parameters):
    with torch.device("meta"):
        module = DataSynthesizer(observation_dim, action_dim, hidden_dim=hidden_dim)
    assert sum(p.numel() for p in module.denoiser.parameters()) == parameters


def sample(module, num_samples, *, generator=None, **choices):
    return module.sample(num_samples, SynthesisSampling(**choices), generator=generator)


def fitted(data, module):
    module.fit_normalizers(ready(data))
    return module


@pytest.mark.parametrize("next_state", ["itself", "change"])
def test_what_is_encoded_is_decoded(pendulum_file, next_state):
    module = fitted(TransitionData(str(pendulum_file)), small(next_state=next_state))
    batch = transitions()
    found = module.decode(module.encode(batch))
    for name, value in found.items():
        torch.testing.assert_close(value, batch[name])
    assert module.encode(batch)[:, -1].tolist() == batch["terminations"].tolist(), "as they are"


def test_changes_are_of_unit_size(pendulum_file):
    """So an error of what is diffused is one of the change, however far apart the states are."""
    data = TransitionData(str(pendulum_file))
    module = fitted(data, small(next_state="change"))
    batch = data.train_data[torch.arange(len(data.train_data))]
    x = module.encode(batch)
    torch.testing.assert_close(x[:, 5:8].std(0), torch.ones(3), atol=0.01, rtol=0)
    x[:, 5:8] += 0.1
    found = module.decode(x)
    torch.testing.assert_close(found["observations"], batch["observations"])
    change = (batch["next_observations"] - batch["observations"]).std(0)
    error = found["next_observations"] - batch["next_observations"]
    torch.testing.assert_close(error, (0.1 * change).expand_as(error), rtol=0.01, atol=1e-3)


def test_a_next_state_that_was_not_recorded_is_not_learned(tmp_path):
    """The last of these episodes' states are missing, so the rows that end them repeat the state."""
    terminals = np.arange(1, 1001) % 100 == 0
    path = write_d4rl(tmp_path / "ends.hdf5", episodes=10, terminals=terminals)
    data = TransitionData(str(path), val_fraction=0.0)
    module = fitted(data, small())
    batch = data.train_data[torch.arange(len(data.train_data))]
    weight = module.loss_weight(batch)
    ends = batch["terminations"] > 0
    assert ends.sum() == 10
    assert (weight[~ends] == 1).all()
    assert (weight[ends] == torch.tensor([1.0] * 5 + [0.0] * 3 + [1.0])).all()
    batch["next_observations"] += 0.1
    assert (module.loss_weight(batch) == 1).all(), "recorded"


def test_clipped_actions_are_drawn_exact(tmp_path):
    """What falls short of a bound a little, is at the bound."""
    clipped = np.random.default_rng(0).normal(size=(1000, 1)).clip(-1, 1).astype(np.float32)
    data = TransitionData(str(write_d4rl(tmp_path / "clipped.hdf5", actions=clipped)))
    module = fitted(data, small(bound_gap=0.5))
    batch = data.train_data[torch.arange(len(data.train_data))]
    x = module.encode(batch)
    torch.testing.assert_close(x.std(0)[:8], torch.ones(8), atol=0.1, rtol=0)
    found = module.decode(x + 0.1 * torch.randn(x.shape))["actions"]
    at_bound = batch["actions"].abs() == 1
    assert 0.25 < at_bound.float().mean() < 0.4
    assert ((found.abs() == 1) == at_bound).float().mean() > 0.97


def test_what_is_encoded_is_decoded_of_trajectories(pendulum_file):
    data = SequenceData(str(pendulum_file), horizon=8)
    module = fitted(data, windows())
    batch = next(iter(data.train_dataloader()))
    for name, value in module.decode(module.encode(batch)).items():
        torch.testing.assert_close(value, batch[name])


def test_a_share_of_terminals_is_kept():
    """Of data with 5 % of them the exact denoiser draws 5 %, within half a point."""
    module = small()

    def exact(x, c_noise, *_):
        """F whose D is the posterior mean: zeros, but for the last entry, which is 0 or 1."""
        edm = EDM()
        sigma = (4 * c_noise[:, None].double()).exp()
        c_skip, c_out, c_in, _ = edm.coefficients(sigma)
        clean = x.double() / c_in
        odds = np.log(0.05 / 0.95) + (clean[:, -1:] - 0.5) / sigma.square()
        x0 = torch.zeros_like(clean)
        x0[:, -1:] = torch.sigmoid(odds)
        return ((x0 - c_skip * clean) / c_out).to(x)

    module.ema.net.forward = exact
    generator = torch.Generator().manual_seed(0)
    found = sample(module, 40_000, num_inference_steps=255, generator=generator)
    assert set(found["terminations"].tolist()) == {0.0, 1.0}
    assert found["terminations"].mean() == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(("every", "spread"), [(250, 0.1), (10, 0.3)])
def test_terminals_have_a_spread_of_their_own(tmp_path, every, spread):
    terminals = np.arange(1, 1001) % every == 0
    data = TransitionData(
        str(write_d4rl(tmp_path / "ends.hdf5", terminals=terminals)), val_fraction=0.0
    )
    module = fitted(data, small())
    sigma_data = module.diffusion.sigma_data
    torch.testing.assert_close(sigma_data[:-1], torch.ones(8))
    assert sigma_data[-1].item() == pytest.approx(spread, abs=1e-3)
    # So an untrained network, whose estimate is the mean, draws few terminals where there are few.
    found = module.sample(2_000, generator=torch.Generator().manual_seed(0))["terminations"]
    assert found.mean() == pytest.approx(0.0 if every == 250 else 0.05, abs=0.02)


def test_classified_terminals_are_those_of_the_state_and_the_action(tmp_path):
    """An episode ends with a chance of 80 % beyond a boundary of the states, and never before."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2_000, 3)).astype(np.float32)
    ends = (states[:, 0] > 1) & (rng.random(2_000) < 0.8)
    path = write_d4rl(tmp_path / "ends.hdf5", episodes=20, observations=states, terminals=ends)
    data = TransitionData(str(path), val_fraction=0.0)
    module = fitted(data, small(terminals="classified", ema_decay=0.9))
    assert module.encode(transitions()).shape[1] == sum(module.widths) == 8
    batch = data.train_data[torch.arange(len(data.train_data))]
    optimizer = torch.optim.Adam(module.classifier.parameters(), lr=1e-2)
    for step in range(200):
        loss, info = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.classifier_ema.update(step + 1)
    assert info["terminal_loss"] < 0.13
    x = module.encode(batch).repeat(5, 1)
    found = [module.decode(x, torch.Generator().manual_seed(s))["terminations"] for s in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    beyond = batch["observations"][:, 0].repeat(5) > 1
    assert found[0][beyond].mean() == pytest.approx(0.8, abs=0.05)
    assert found[0][~beyond].mean() < 0.01


def test_actions_stay_within_bounds(pendulum_file):
    module = fitted(TransitionData(str(pendulum_file), env_id="Pendulum-v1"), small())
    assert (module.action_low.item(), module.action_high.item()) == (-2.0, 2.0)
    torch.nn.init.constant_(module.ema.net.last.bias, 50.0)
    free = sample(module, 20, bound_actions=False)["actions"]
    bound = module.sample(20)["actions"]
    assert free.abs().max() > 2
    assert bound.abs().max() <= 2


def test_states_beyond_the_datas_are_drawn_anew(pendulum_file, monkeypatch):
    data = TransitionData(str(pendulum_file), val_fraction=0.0)
    module = fitted(data, small())
    observations, _ = data.training_rows("observations")
    torch.testing.assert_close(module.state_low, observations.amin(0))
    torch.testing.assert_close(module.state_high, observations.amax(0))
    rounds = []
    decode = module.decode

    def halves(x, generator=None):
        """Of every second row the state is beyond the data's, of every other the next one."""
        found = decode(0.1 * x, generator)
        even = torch.arange(len(x)) % 2 == 0
        found["observations"][even] = module.state_high + 1
        found["next_observations"][~even] = module.state_low - 1
        found["terminations"] = (~even).float()
        rounds.append(len(x))
        return found

    monkeypatch.setattr(module, "decode", halves)
    free = sample(module, 64, num_inference_steps=5)
    assert module.out_of_bounds(free).sum() == 32, (
        "what ends an episode may leave the data's states"
    )
    assert module.out_of_bounds(free | {"terminations": torch.zeros(64)}).all()
    rounds.clear()
    bound = sample(module, 64, num_inference_steps=5, bound_states=True)
    assert rounds[:5] == [64, 32, 16, 8, 4]
    assert len(rounds) <= 21
    assert module.out_of_bounds(bound).sum() <= 1


def test_bounds_are_of_states_that_episodes_go_on_from(tmp_path):
    """A file that records what it ends in: beyond the bounds, as far as these are concerned."""
    states = np.zeros((1000, 3), np.float32)
    following = states.copy()
    following[99::100] = 5
    ends = np.arange(1, 1001) % 100 == 0
    extra = {"observations": states, "next_observations": following, "terminals": ends}
    path = write_d4rl(tmp_path / "ends.hdf5", **extra)
    data = TransitionData(str(path), val_fraction=0.0)
    module = fitted(data, small())
    assert data.training_rows("observations")[0].max() == 5
    assert module.state_high.tolist() == [0, 0, 0]


def test_windows_beyond_the_datas_states(pendulum_file):
    module = fitted(SequenceData(str(pendulum_file), horizon=8), windows())
    samples = {"observations": module.state_low.expand(2, 8, 3).clone()}
    assert not module.out_of_bounds(samples).any()
    samples["observations"][1, 5, 2] -= 0.1
    assert module.out_of_bounds(samples).tolist() == [False, True]


@pytest.mark.parametrize("sampler", ["heun", "ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("steps", [1, 5])
def test_samplers(sampler, steps):
    module = small()

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        how = SynthesisSampling(sampler=sampler, num_inference_steps=steps)
        return module.sample(6, how, generator=generator)["observations"]

    assert draw(0).shape == (6, 3)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_evaluations_are_counted(monkeypatch):
    module, calls = small(), []
    forward = module.ema.net.forward
    monkeypatch.setattr(module.ema.net, "forward", lambda *a: calls.append(1) or forward(*a))
    for sampler, steps in (("heun", 31), ("ddim", 12), ("ddpm", 7), ("dpmpp", 5)):
        calls.clear()
        sample(module, 4, sampler=sampler, num_inference_steps=steps)
        assert len(calls) == steps


def test_conditions_change_samples():
    module = small(conditions=("return", "task"), num_origins=2)

    def draw(**kwargs):
        generator = torch.Generator().manual_seed(0)
        return sample(module, 4, generator=generator, **kwargs)["observations"]

    free = draw()
    for kwargs in ({"target_return": 0.9}, {"task": 1}, {"target_return": 0.9, "task": 0}):
        assert not torch.equal(free, draw(**kwargs))
        torch.testing.assert_close(free, draw(**kwargs, guidance_scale=0.0))
    with pytest.raises(InputError, match=r"task=2 must lie in \[0, 1\]"):
        draw(task=2)
    with pytest.raises(InputError, match="not trained on the condition 'return'"):
        sample(small(), 4, target_return=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(process="vp"), "process='vp' is unknown: choose one of edm, ddpm"),
        (lambda: small(conditions=("goal",)), "choose one of return, task"),
        (lambda: small(terminals="x"), "choose one of diffused, classified"),
        (lambda: small(goal_dim=2), "does not pursue goals"),
        (lambda: windows(stride=2), "must be 1"),
        (lambda: windows(horizon=9), "horizon=9 must divide by 2"),
        (lambda: sample(small(process="ddpm"), 2, sampler="heun"), "needs a model of process=edm"),
        (lambda: sample(small(), 2, num_inference_steps=30), "must be odd"),
        (lambda: SynthesisSampling(sampler="euler"), "choose one of heun, ddpm, ddim, dpmpp"),
        (lambda: small().sample(2, GaussianActing()), "GaussianActing is no way to synthesize"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_changed_rewards_are_refused(pendulum_file):
    for kwargs in ({"rewards": "standard"}, {"n_steps": 3}):
        data = ready(TransitionData(str(pendulum_file), **kwargs))
        with pytest.raises(InputError, match=r"use (rewards=raw|n_steps=1)"):
            small().fit_normalizers(data)
