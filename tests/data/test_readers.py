"""Every format through one path."""

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from conftest import write_d4rl
from minari.data_collector import EpisodeBuffer

from diffrl_lightning.data import Transitions
from diffrl_lightning.data.sources import SourceOptions, reader
from diffrl_lightning.data.sources import load as load_all
from diffrl_lightning.data.sources import minari as minari_reader
from diffrl_lightning.types import InputError

OPTIONS = SourceOptions()


def load(dataset, options=OPTIONS):
    return reader(str(dataset)).load(str(dataset), options)


def describe(dataset, options=OPTIONS):
    return reader(str(dataset)).describe(str(dataset), options)


def test_d4rl_layout(tmp_path):
    terminals = np.zeros(1000, bool)
    terminals[[49, 999]] = True
    episodes = load(write_d4rl(tmp_path / "a.hdf5", terminals=terminals))
    assert len(episodes) == 11
    assert episodes.lengths[:3].tolist() == [50, 50, 100]
    assert episodes.terminations.sum() == 2
    assert not episodes.final_observed.any()
    # Only the real ends keep a last transition, since nothing depends on its next observation.
    assert len(Transitions(episodes)) == 1000 - 11 + 2


def test_d4rl_next_observations_and_a_cut_off_file(tmp_path):
    timeouts = np.zeros(1000, bool)
    timeouts[99:900:100] = True
    following = np.full((1000, 3), 5.0, np.float32)
    path = write_d4rl(tmp_path / "a.hdf5", timeouts=timeouts, next_observations=following)
    episodes = load(path)
    assert episodes.lengths.tolist() == [100] * 10
    assert (episodes.observations[100] == 5).all()
    assert episodes.final_observed.all()
    assert len(Transitions(episodes)) == 1000


def test_d4rl_without_timeouts_counts_to_a_thousand(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", length=250, timeouts=None)
    assert load(path).lengths.tolist() == [200] * 12 + [100], "the time limit of Pendulum-v1"
    path = write_d4rl(tmp_path / "a.hdf5", length=250, timeouts=None, observation_dim=4)
    assert load(path).lengths.tolist() == [1000, 1000, 500]
    rewards = np.zeros((2500, 1), np.float32)
    path = write_d4rl(tmp_path / "b.hdf5", length=250, rewards=rewards)
    assert load(path).rewards.shape == (2500,)


def test_ogbench_layout(tmp_path):
    terminals = np.zeros(22, np.float32)
    terminals[[10, 21]] = 1
    observations = np.arange(44, dtype=np.float64).reshape(22, 2)
    actions = np.arange(22, dtype=np.float32)[:, None]
    path = tmp_path / "a.npz"
    np.savez(path, observations=observations, actions=actions, terminals=terminals)
    episodes = load(path)
    assert episodes.lengths.tolist() == [10, 10]
    assert episodes.observations.dtype == np.float32
    assert episodes.actions[:, 0].tolist() == [*range(10), *range(11, 21)]
    assert episodes.observations[10].tolist() == [20, 21], "the last row is the next observation"
    assert describe(path).observation_dim == 2


def write_npz(path, **arrays):
    whole = {
        "observations": np.zeros((10, 2)),
        "actions": np.zeros((10, 1)),
        "terminals": np.arange(10) == 9,
    }
    np.savez(path, **(whole | arrays))
    return path


def test_damaged_npz_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|not a readable"):
        load(path)
    with pytest.raises(InputError, match="without an action"):
        load(write_npz(tmp_path / "b.npz", terminals=np.ones(10)))


def bad_hdf5(tmp_path):
    (tmp_path / "bad.hdf5").write_text("this is not HDF5")
    return tmp_path / "bad.hdf5"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.hdf5", "no file"),
        (bad_hdf5, "not a readable HDF5 file"),
        (lambda p: write_d4rl(p / "a.hdf5", actions=None), "no array 'actions'"),
        (lambda p: write_d4rl(p / "a.hdf5", rewards=np.zeros(9)), "unequal lengths"),
        (lambda p: write_d4rl(p / "a.hdf5", timeouts=np.zeros(9, bool)), "unequal lengths"),
        (lambda p: write_d4rl(p / "a.hdf5", next_observations=np.zeros((7, 3))), "unequal lengths"),
        (lambda p: write_d4rl(p / "a.hdf5", next_observations=np.zeros((1000, 2))), "shaped like"),
        (lambda p: write_d4rl(p / "a.hdf5", episodes=0), "no steps"),
        (lambda p: write_d4rl(p / "a.hdf5", rewards=np.float32(1)), "one row a step"),
        (lambda p: write_d4rl(p / "a.hdf5", rewards=np.array([b"a"] * 1000)), "must be numbers"),
        (lambda p: write_npz(p / "a.npz", actions=np.zeros(10)), "one row a step"),
        (lambda p: write_npz(p / "a.npz", terminals=np.float32(1)), "one row a step"),
        (lambda p: write_npz(p / "a.npz", observations=np.zeros((10, 2, 2))), "one row a step"),
        (lambda p: write_npz(p / "a.npz", actions=np.zeros((9, 1))), "unequal lengths"),
        (lambda p: "unknown/dataset-v0", "can not be downloaded"),
        (lambda p: "not a minari id!", "can not be downloaded"),
        (lambda p: "pointmaze/tiny", "no maze 'tiny'"),
    ],
)
def test_bad_datasets_are_refused_from_metadata_alone(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        describe(make(tmp_path))


def test_nan_is_refused(tmp_path):
    observations = np.zeros((1000, 3), np.float32)
    observations[7, 1] = np.nan
    with pytest.raises(InputError, match="first is row 7"):
        load(write_d4rl(tmp_path / "a.hdf5", observations=observations))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_npz_with_pickled_objects_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.npz"
    np.savez(
        path,
        observations=np.zeros((3, 2), np.float32),
        actions=np.array([Evil()] * 3, dtype=object),
        terminals=np.zeros(3),
    )
    capsys.readouterr()
    for call in (describe, load):
        with pytest.raises(InputError, match="pickled objects"):
            call(path)
    assert "code ran" not in capsys.readouterr().out


def goal_buffers(count=3, length=6):
    """Episodes whose first goal is still the one before, as in Minari's PointMaze."""
    buffers = []
    for i in range(count):
        goals = np.full((length + 1, 2), float(i))
        goals[0] = i - 1
        observation = np.random.default_rng(i).normal(size=(length + 1, 4))
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations={
                    "achieved_goal": observation[:, :2],
                    "desired_goal": goals,
                    "observation": observation,
                },
                actions=np.zeros((length, 2), np.float32),
                rewards=np.ones(length),
                terminations=np.zeros(length, bool),
                truncations=np.arange(length) == length - 1,
            )
        )
    return buffers


def test_minari_dictionary_observations_goals_and_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path / "cache"))
    box = gym.spaces.Box(-np.inf, np.inf, (2,))
    space = gym.spaces.Dict(
        {"achieved_goal": box, "desired_goal": box, "observation": gym.spaces.Box(-9, 9, (4,))}
    )
    minari.create_dataset_from_buffers(
        "test/goals-v0",
        goal_buffers(),
        observation_space=space,
        action_space=gym.spaces.Box(-1, 1, (2,)),
        data_format="hdf5",
    )
    info = describe("test/goals-v0")
    assert (info.observation_dim, info.action_dim, info.goal_dim) == (4, 2, 2)
    episodes = load("test/goals-v0")
    assert episodes.goals.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert episodes.observations.shape == (21, 4)
    expected = np.concatenate([b.observations["observation"] for b in goal_buffers()])
    np.testing.assert_allclose(episodes.observations, expected, rtol=1e-6)

    keys = SourceOptions(observation_keys=("desired_goal", "observation"), goal_key="achieved_goal")
    reordered = load("test/goals-v0", keys)
    assert reordered.observations.shape == (21, 6)
    np.testing.assert_allclose(reordered.observations[:, 2:], expected, rtol=1e-6)

    both = load_all(["test/goals-v0"] * 2, OPTIONS)
    assert both.goals.tolist() == 2 * episodes.goals.tolist()
    assert both.origins.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(both.observations, np.tile(episodes.observations, (2, 1)))

    caches = sorted((tmp_path / "cache").iterdir())
    assert len(caches) == 2, "one cache for each choice of keys"
    monkeypatch.setattr(minari_reader, "read_episodes", lambda *_: pytest.fail("no cache was used"))
    np.testing.assert_array_equal(load("test/goals-v0").observations, episodes.observations)
    with pytest.raises(InputError, match="choose observation_keys and goal_key among"):
        load("test/goals-v0", SourceOptions(observation_keys=("position",)))


def test_cache_is_renewed_when_the_dataset_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path / "cache"))
    spaces = {
        "observation_space": gym.spaces.Dict(
            {k: gym.spaces.Box(-9, 9, (d,)) for k, d in
             (("achieved_goal", 2), ("desired_goal", 2), ("observation", 4))}
        ),
        "action_space": gym.spaces.Box(-1, 1, (2,)),
    }  # fmt: skip
    minari.create_dataset_from_buffers(
        "test/goals-v0", goal_buffers(), data_format="hdf5", **spaces
    )
    assert len(load("test/goals-v0")) == 3
    minari.load_dataset("test/goals-v0").storage.update_episodes(goal_buffers(5)[3:])
    assert len(load("test/goals-v0")) == 5


# Episode counts, returns and shapes as the README beside the data states them.
@pytest.mark.parametrize(
    ("name", "count", "steps", "mean", "std", "dims"),
    [
        ("hopper-medium", 500, 200_000, 1463, 679, (11, 3)),
        ("hopper-expert", 219, 200_000, 3335, 575, (11, 3)),
        ("hopper-mixed", 406, 200_000, 1516, 1062, (11, 3)),
        ("halfcheetah-medium", 200, 200_000, 5335, 1173, (17, 6)),
        ("halfcheetah-expert", 200, 200_000, 11444, 846, (17, 6)),
        ("halfcheetah-mixed", 200, 200_000, 2640, 1454, (17, 6)),
        ("adroit-door-expert", 200, 40_000, 2864, 579, (39, 28)),
        ("adroit-door-human", 25, 6_729, None, None, (39, 28)),
    ],
)
def test_real_d4rl_files(shared_data, name, count, steps, mean, std, dims):
    path = shared_data / f"{name}.hdf5"
    episodes = load(path)
    assert (len(episodes), episodes.num_steps) == (count, steps)
    assert (episodes.observations.shape[1], episodes.actions.shape[1]) == dims
    if mean is not None:
        assert abs(episodes.returns.mean() - mean) < 1
        assert abs(episodes.returns.std() - std) < 1
    with h5py.File(path) as file:  # an independent reading of a few rows
        row = int(episodes.offsets[3]) + 2
        np.testing.assert_array_equal(episodes.observations[row + 3], file["observations"][row])
        np.testing.assert_array_equal(episodes.actions[row], file["actions"][row])


def test_reference_scores(shared_data):
    assert describe(shared_data / "hopper-medium.hdf5").ref_scores == (-20.272305, 3234.3)
    fixture = shared_data / "fixtures" / "d4rl_hopper-medium-20k.hdf5"
    assert describe(fixture).ref_scores is None
    named = describe(fixture, SourceOptions(env_id="Hopper-v5"))
    assert named.ref_scores == (-20.272305, 3234.3)
    assert describe(shared_data / "adroit-door-expert.hdf5").ref_scores is None


def test_real_fixture_with_next_observations(shared_data):
    path = shared_data / "fixtures" / "d4rl_hopper-medium-20k.hdf5"
    episodes = load(path)
    transitions = Transitions(episodes)
    assert len(transitions) == episodes.num_steps
    with h5py.File(path) as file:
        batch = transitions[np.arange(episodes.num_steps)]
        np.testing.assert_allclose(
            batch["next_observations"], file["next_observations"][:], atol=1e-6
        )
        np.testing.assert_array_equal(batch["terminations"], file["terminals"][:].ravel())


def test_real_ogbench_fixture(shared_data):
    for name, count in (
        ("pointmaze-medium-navigate-v0", 20),
        ("pointmaze-medium-navigate-v0-val", 2),
    ):
        path = shared_data / "fixtures" / f"{name}.npz"
        episodes = load(path)
        assert (len(episodes), episodes.num_steps) == (count, 1000 * count)
        with np.load(path, allow_pickle=False) as file:
            np.testing.assert_array_equal(episodes.observations, file["observations"])
