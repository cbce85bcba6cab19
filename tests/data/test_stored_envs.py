"""A stored environment is rebuilt whole, and by nothing but plain values."""

import sys

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from conftest import write_d4rl
from minari.data_collector import EpisodeBuffer

from diffrl_lightning.data import SequenceData, TransitionData
from diffrl_lightning.data.sources import SourceOptions
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.types import InputError

MODULE = """
import gymnasium as gym
import numpy as np


class Toy(gym.Env):
    def __init__(self, size=1.0, xml_file="toy.xml", low=-1.0, fail=False, render_mode=None):
        if fail:
            raise OSError("no\\nengine")
        self.size, self.xml_file = size, xml_file
        self.observation_space = gym.spaces.Box(-1, 1, (4,))
        self.action_space = gym.spaces.Box(low, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, "f4"), {}

    def step(self, action):
        return np.zeros(4, "f4"), 0.0, False, False, {}


class Own(gym.Wrapper):
    pass


class OwnAction(gym.utils.RecordConstructorArgs, gym.ActionWrapper):
    def __init__(self, env, scale=2.0):
        gym.utils.RecordConstructorArgs.__init__(self, scale=scale)
        gym.ActionWrapper.__init__(self, env)

    def action(self, action):
        return action


gym.register("Toy-v0", entry_point="toys_of_mine:Toy", max_episode_steps=50)
gym.register("Endless-v0", entry_point="toys_of_mine:Toy")
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A module of the user's, which registers its environments when it is imported."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "toys_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import toys_of_mine

    yield toys_of_mine
    forget()
    gym.registry.pop("Endless-v0", None)


def forget():
    """As in a process that has not imported the module."""
    sys.modules.pop("toys_of_mine", None)
    gym.registry.pop("Toy-v0", None)


def record(name, env, steps=3, **more):
    """Two episodes of random actions."""
    episodes = []
    for i in range(2):
        states, actions = [env.reset(seed=i)[0]], []
        for _ in range(steps):
            actions.append(env.action_space.sample())
            states.append(env.step(actions[-1])[0])
        episodes.append(
            EpisodeBuffer(
                id=i,
                observations=np.stack(states),
                actions=np.stack(actions),
                rewards=np.zeros(steps),
                terminations=np.zeros(steps, bool),
                truncations=np.arange(steps) == steps - 1,
            )
        )
    minari.create_dataset_from_buffers(name, episodes, env=env, **more)
    return name


def made(dataset, **options):
    return TransitionData(dataset, **options).make_env()


def test_the_time_limit_of_recording(toys):
    name = record("toys/limit-v0", gym.make("Pendulum-v1", max_episode_steps=40))
    assert made(name).spec.max_episode_steps == 40
    vector = TransitionData(name).make_vector_env(2)
    assert [env.spec.max_episode_steps for env in vector.envs] == [40, 40]
    longer = made(name, env_kwargs={"max_episode_steps": 70})
    assert longer.spec.max_episode_steps == 70
    with pytest.raises(InputError, match="do not match"):
        made(name, env_id="MountainCarContinuous-v0")


def test_the_environment_of_evaluation_comes_first(toys):
    name = record(
        "toys/eval-v0",
        gym.make("Pendulum-v1", max_episode_steps=10**9),
        eval_env=gym.make("Pendulum-v1", max_episode_steps=90),
    )
    assert made(name).spec.max_episode_steps == 90


def test_a_limit_that_says_nothing_is_told(toys):
    name = record("toys/huge-v0", gym.make("Pendulum-v1", max_episode_steps=10**9))
    with pytest.warns(UserWarning, match=r"1000000000 steps .* end after 200 steps"):
        assert made(name).spec.max_episode_steps == 200
    name = record("toys/none-v0", gym.make("Pendulum-v1", max_episode_steps=-1))
    with pytest.warns(UserWarning, match=r"limit of no steps .* end after 200 steps"):
        assert made(name).spec.max_episode_steps == 200


def test_wrappers_of_gymnasium(toys):
    env = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0)
    env = gym.wrappers.FrameStackObservation(env, 2)
    env = gym.wrappers.FlattenObservation(env)
    data = TransitionData(record("toys/wrap-v0", gym.wrappers.RecordEpisodeStatistics(env)))
    found = data.make_env()
    assert found.action_space == env.action_space == data.action_space()
    assert (data.observation_dim, found.observation_space.shape) == (6, (6,))
    for one in (found, env):
        one.reset(seed=3)
    for action in ([0.5], [-0.25]):
        a, b = (one.step(np.array(action, np.float32)) for one in (found, env))
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1] == b[1]
    vector = data.make_vector_env(2)
    assert vector.single_action_space == env.action_space


@pytest.mark.parametrize("named", [False, True])
def test_wrappers_that_can_not_be_rebuilt(toys, named):
    for k, wrapper in enumerate((toys.Own, toys.OwnAction, gym.wrappers.NormalizeObservation)):
        name = record(f"toys/own-v{k}", wrapper(gym.make("Toy-v0")))
        if named:
            with pytest.warns(UserWarning, match=f"{wrapper.__name__}'.*is evaluated without"):
                made(name, env_id="Toy-v0")
            continue
        data = TransitionData(name)
        assert data.env_id is None
        with pytest.raises(InputError, match=f"{wrapper.__name__}', which can not be rebuilt"):
            data.make_env()


def test_keywords_hold_where_the_same_id_is_named_with_its_module(toys):
    name = record("toys/size-v0", gym.make("Toy-v0", size=3.0, max_episode_steps=7))
    forget()
    env = made(name, env_id="toys_of_mine:Toy-v0")
    assert (env.unwrapped.size, env.spec.max_episode_steps) == (3.0, 7)
    env = made(name, env_id="toys_of_mine:Toy-v0", env_kwargs={"size": 5.0})
    assert (env.unwrapped.size, env.spec.max_episode_steps) == (5.0, 7)
    env = made(name, env_id="Endless-v0")
    assert (env.unwrapped.size, env.spec.max_episode_steps) == (1.0, None), "another environment"
    assert made(name).unwrapped.size == 3.0


def test_a_stored_id_imports_nothing(toys):
    name = record("toys/size-v0", gym.make("Toy-v0"))
    forget()
    data = TransitionData(name)
    with pytest.raises(InputError, match=r"give env_id, as module:Toy-v0"):
        data.make_env()
    assert "toys_of_mine" not in sys.modules


@pytest.mark.parametrize("path", ["/etc/passwd", "./toy.xml", "~/toy.xml", "c:toy", "a\\b"])
def test_a_stored_keyword_reads_no_file(toys, path):
    name = record("toys/file-v0", gym.make("Toy-v0", xml_file=path))
    data = TransitionData(name)
    with pytest.raises(InputError, match="give xml_file in env_kwargs yourself if you trust it"):
        data.make_env()
    assert made(name, env_kwargs={"xml_file": path}).unwrapped.xml_file == path
    plain = record("toys/plain-v0", gym.make("Toy-v0", xml_file="other.xml"))
    assert made(plain).unwrapped.xml_file == "other.xml"


def test_bounds_of_actions_are_compared(toys):
    name = record("toys/bounds-v0", gym.make("Toy-v0"))
    assert made(name, env_kwargs={"size": 2.0}).action_space.low[0] == -1
    with pytest.raises(InputError, match=r"records actions in \[-1, 1\], but 'Toy-v0' takes them"):
        TransitionData(name, env_kwargs={"low": -3.0})
    with pytest.warns(UserWarning, match="records actions in"):
        TransitionData(name, env_kwargs={"low": -3.0}, env_id="Toy-v0")


def test_actions_outside_the_bounds_are_told(tmp_path, recwarn):
    actions = np.zeros((1000, 1), np.float32)
    actions[:50] = 2.0005  # Pendulum's are in [-2, 2]: rounding is no other scale
    file = str(write_d4rl(tmp_path / "a.hdf5", actions=actions))
    TransitionData(file).setup("fit")
    assert not [w for w in recwarn if "outside the bounds" in str(w.message)]
    actions[:50] = 3.0
    with pytest.warns(UserWarning, match=r"5.00% of the actions .* outside the bounds"):
        TransitionData(str(write_d4rl(tmp_path / "b.hdf5", actions=actions))).setup("fit")


def named(path, value):
    write_d4rl(path)
    with h5py.File(path, "a") as file:
        del file["metadata/env_id"]
        file["metadata/env_id"] = value
    return str(path)


def test_the_id_that_a_file_names(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("Pendulum-v1", np.array(["Pendulum-v1"], "S"), ["Pendulum-v1"]):
        assert made(named(tmp_path / "a.hdf5", value)).spec.id == "Pendulum-v1"
    data = SequenceData(named(tmp_path / "a.hdf5", "evil:Id-v0"), horizon=4)
    data.setup("fit")
    with pytest.raises(InputError, match="names the environment 'evil:Id-v0', which would import"):
        data.make_env()
    for value in (3, 2.5, ["a", "b"], np.zeros(0)):
        with pytest.raises(InputError, match="metadata/env_id must be"):
            TransitionData(named(tmp_path / "a.hdf5", value))


def test_time_outs_by_the_limit_of_the_users_module(toys, tmp_path, recwarn):
    file = write_d4rl(
        tmp_path / "a.hdf5", observation_dim=4, action_dim=2, length=200, timeouts=None
    )
    forget()
    data = TransitionData(str(file), env_id="toys_of_mine:Toy-v0")
    data.setup("fit")
    assert data.episodes.lengths.tolist() == [50] * 40
    assert not [w for w in recwarn if "no timeouts" in str(w.message)]
    for options in ({}, {"env_id": "Endless-v0"}):
        data = TransitionData(str(file), **options)
        with pytest.warns(UserWarning, match="has no timeouts, .* end every 1000 steps"):
            data.setup("fit")
        assert data.episodes.lengths.tolist() == [1000, 1000]


@pytest.mark.parametrize("wrong", [3, 2.5, [], ["Hopper-v5"], "", b"Hopper-v5"])
def test_an_id_is_a_string(wrong):
    for make in (EnvConfig, SourceOptions):
        with pytest.raises(InputError, match="env_id must be a Gymnasium id"):
            make(env_id=wrong)


@pytest.mark.parametrize("wrong", ["a:b:c", "no_such_module_of_mine:Id-v0", "bad id", "Nope-v0"])
def test_an_id_that_is_not_there(pendulum_file, wrong):
    with pytest.raises(InputError, match="can not be made"):
        TransitionData(str(pendulum_file), env_id=wrong)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"env_kwargs": [1]}, "env_kwargs must be a dictionary"),
        ({"env_kwargs": {1: 2}}, "env_kwargs must be a dictionary"),
        ({"observation_keys": "observation"}, "observation_keys must be a list"),
        ({"observation_keys": [3]}, "observation_keys must be a list"),
        ({"generate_steps": 0}, "generate_steps"),
    ],
)
def test_options_of_other_types(wrong, match):
    with pytest.raises(InputError, match=match):
        SourceOptions(**wrong)


def test_a_constructor_that_fails_is_one_sentence(toys):
    message = r"^Environment 'Toy-v0' can not be made \(OSError: no engine\): correct .*\.$"
    config = EnvConfig("Toy-v0", {"fail": True})
    for make in (config.make, lambda: config.make_vector(2)):
        with pytest.raises(InputError, match=message) as caught:
            make()
        assert isinstance(caught.value.__cause__, OSError)
