"""DiffusionPolicy: which actions are played, which modes are kept, and what every role must do."""

import pytest
import torch

from diffrl_lightning import (
    BehaviourCloning,
    ChunkActing,
    DiffusionPolicy,
    GaussianActing,
    InputError,
    SequenceData,
)
from diffrl_lightning.normalizers import TrajectoryNormalizer
from modules.role_tester import (
    ready,
    units_do_not_matter,
)

SMALL = {"dim": 16, "dim_mults": (1, 2), "depth": 1, "num_heads": 2, "num_train_timesteps": 8}
SMALL |= {"horizon": 8, "n_action_steps": 4, "lr_warmup_steps": 0, "lr_schedule": "constant"}


def small(**kwargs):
    return DiffusionPolicy(**({"observation_dim": 3, "action_dim": 1} | SMALL | kwargs))


class Remembers(torch.nn.Module):
    """A denoiser of x0 that answers with fixed chunks and keeps what it was shown."""

    def __init__(self, chunk):
        super().__init__()
        self.chunk = chunk

    def forward(self, x, t, cond):
        self.cond = cond
        return self.chunk.expand_as(x)


def test_the_chunk_begins_with_the_first_observation_and_is_played_from_now_on():
    module = small(n_obs_steps=3, prediction_type="x0", n_action_steps=4)
    module.ema = Remembers(torch.linspace(-0.7, 0.7, 8)[:, None])
    policy = module.make_policy(num_inference_steps=2)
    policy.reset(torch.ones(1, dtype=torch.bool), [0])
    played = [policy.act(torch.full((1, 3), step / 10)).item() for step in range(5)]
    expected = [-0.3, -0.1, 0.1, 0.3, -0.3]  # steps 2 to 5 of the chunk, then a new one's
    assert played == pytest.approx(expected, abs=1e-6)
    seen = module.ema.cond.view(3, 3)[:, 0]
    torch.testing.assert_close(seen, torch.tensor([0.2, 0.3, 0.4]))  # steps 2 to 4


def test_the_network_sees_the_first_observations_of_the_window_and_all_its_actions():
    module = small(n_obs_steps=2)
    seen = {}

    def denoiser(x, t, cond):
        seen.update(x=x, cond=cond)
        return torch.zeros_like(x)

    module.denoiser = torch.nn.Module()
    module.denoiser.forward = denoiser
    batch = {"observations": torch.rand(4, 8, 3), "actions": torch.rand(4, 8, 1)}
    module.compute_loss(batch)
    torch.testing.assert_close(seen["cond"], batch["observations"][:, :2].flatten(1))
    assert seen["x"].shape == (4, 8, 1)


@pytest.mark.slow
def test_two_modes_are_kept_that_a_cloner_averages():
    """Chunks that go left with 30 % and right with 70 %, in one and the same state."""
    torch.manual_seed(0)
    sides = torch.where(torch.rand(4000, 1, 1) < 0.3, -0.8, 0.8)
    actions = (sides + 0.05 * torch.randn(4000, 2, 1)).clamp(-1, 1)
    observations = torch.zeros(4000, 2, 3)
    share = (actions[:, 0] < 0).float().mean().item()
    toy = {"horizon": 2, "n_obs_steps": 1, "n_action_steps": 2, "backbone": "mlp", "dim": 64}
    module = small(**toy, num_train_timesteps=50)
    optimizer = torch.optim.Adam(module.denoiser.parameters(), lr=1e-3)
    for step in range(1500):
        rows = torch.randint(4000, (256,))
        optimizer.zero_grad()
        batch = {"observations": observations[rows], "actions": actions[rows]}
        module.compute_loss(batch)[0].backward()
        optimizer.step()
        module.ema.update(step + 1)
    with torch.no_grad():
        drawn = module.decide(torch.zeros(4000, 3), ChunkActing())
    assert ((drawn.abs() - 0.8).abs() < 0.25).float().mean() > 0.98, "nothing lies between"
    assert (drawn[:, 0] * drawn[:, 1] > 0).float().mean() > 0.99, "a chunk keeps its side"
    assert (drawn[:, 0] < 0).float().mean().item() == pytest.approx(share, abs=0.05)

    cloner = BehaviourCloning(3, 1, hidden_dim=64)
    optimizer = torch.optim.Adam(cloner.actor.parameters(), lr=1e-2)
    batch = {"observations": observations[:, 0], "actions": actions[:, 0]}
    for _ in range(200):
        optimizer.zero_grad()
        cloner.compute_loss(batch)[0].backward()
        optimizer.step()
    cloner.ema.net.load_state_dict(cloner.actor.state_dict())
    assert cloner.decide(torch.zeros(1, 3), GaussianActing()).item() == pytest.approx(
        0.32, abs=0.05
    )


@pytest.mark.parametrize("normalizer", ["limits", "gaussian"])
def test_units(normalizer):
    module = small(n_obs_steps=2, normalizer="limits")
    module.trajectory = TrajectoryNormalizer(normalizer, 3, 1, "limits")
    batch = {"observations": torch.randn(6, 8, 3), "actions": torch.rand(6, 8, 1) * 2 - 1}

    def decide(windows):
        return module.decide(windows[:, :2], ChunkActing(num_inference_steps=2))

    units_do_not_matter(module, batch, decide=decide)


@pytest.mark.parametrize(
    ("n_obs_steps", "options"),
    [(3, {"padding": "edge", "pad_before": 1}), (1, {"padding": "zero"}), (2, {})],
)
def test_windows_that_begin_otherwise_than_episodes_do_are_refused(
    pendulum_file, n_obs_steps, options
):
    data = ready(SequenceData(str(pendulum_file), horizon=8, **options))
    with pytest.raises(InputError, match=f"set data.pad_before={n_obs_steps - 1}"):
        small(n_obs_steps=n_obs_steps).fit_normalizers(data)


def test_dropout_reaches_the_networks():
    for backbone in ("transformer", "mlp"):
        layers = small(backbone=backbone, dropout=0.25).denoiser.modules()
        assert {layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)} == {0.25}


def test_windows_for_a_history(pendulum_file):
    """The first window of an episode shows its first observation n_obs_steps times."""
    pads = {"pad_before": 2, "pad_after": 3}
    data = ready(SequenceData(str(pendulum_file), horizon=8, padding="edge", **pads))
    first = data.train_data[0]
    episode = int(data.train_indices[0])
    begin = data.episodes.offsets[episode]
    rows = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5]) + begin
    expected = torch.from_numpy(data.episodes.observations)[rows + episode]
    torch.testing.assert_close(first["observations"], expected)
    assert first["mask"].tolist() == [False, False, True, True, True, True, True, True]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"goal_dim": 2}, "does not pursue goals"),
        ({"stride": 2}, "must be 1"),
        ({"n_obs_steps": 6}, "use a horizon of at least 9"),
        ({"horizon": 7, "n_action_steps": 2}, "use 6 or 8"),
        ({"n_action_steps": 0}, "at least 1"),
        ({"backbone": "dit"}, "is unknown"),
        ({"backbone": "transformer", "num_heads": 3}, "a multiple of"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        small(**kwargs)


def test_more_actions_than_the_chunk_has_are_refused():
    with pytest.raises(InputError, match=r"n_action_steps=8 must lie in \[1, 7\]"):
        small().make_policy(n_action_steps=8)
