"""Actions as environments take them, in evaluation and while an agent learns; failing environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import write_d4rl
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from diffrl_lightning import ChunkData, DynamicsAgent, OnlineData
from diffrl_lightning.data import TransitionData
from diffrl_lightning.envs.actions import outside, playable
from diffrl_lightning.envs.collect import Collector
from diffrl_lightning.envs.evaluate import evaluate
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.metrics import RolloutMetrics
from diffrl_lightning.policies.planner import Plan
from diffrl_lightning.tools.compare import _statistics
from diffrl_lightning.types import InputError

WHOLE = Box(-3, 3, (2,), np.int64)


class Toy(gym.Env):
    """Remembers what is played; ends after five steps."""

    def __init__(self, space=WHOLE, observation_space=None, fail_at=-1, wins=()):
        self.action_space = space
        self.observation_space = observation_space or Box(-1, 1, (3,))
        self.fail_at, self.wins = fail_at, wins

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.played, self.seed = [], seed
        if self.fail_at == 0:
            raise ZeroDivisionError("on\nreset")
        return self.observation_space.sample(), {}

    def step(self, action):
        self.played.append(action)
        if len(self.played) == self.fail_at:
            raise ZeroDivisionError("in\nstep")
        over = len(self.played) == 5
        told = {"success": True} if over and self.seed in self.wins else {}
        return self.observation_space.sample(), 0.0, over, False, told


@pytest.fixture(autouse=True)
def registered():
    gym.register("ToyActions-v0", entry_point=Toy)
    yield
    gym.registry.pop("ToyActions-v0")


def vector(n=2, **kwargs):
    return SyncVectorEnv([lambda: Toy(**kwargs)] * n, autoreset_mode=AutoresetMode.DISABLED)


class Constant:
    def __init__(self, *actions):
        self.actions, self.steps = torch.tensor(actions), 0

    def reset(self, mask, seeds=None):
        pass

    def act(self, observations):
        self.steps += 1
        return self.actions.expand(len(observations), -1)


def test_integers_are_rounded():
    envs = vector()
    evaluate(Constant(1.7, -2.6), envs, [0, 1])
    assert envs.envs[0].played[0].tolist() == [2, -3]
    assert envs.envs[0].played[0].dtype == np.int64
    envs = vector()
    Collector(envs).step(lambda o: torch.tensor([[0.6, 9.0]] * 2))
    assert envs.envs[0].played[0].tolist() == [1, 3]


def test_real_numbers_are_clipped_and_no_more():
    space = Box(-1, 1, (2,))
    actions = np.array([[0.123456, -5]], np.float32)
    found = playable(actions, space)
    assert found.dtype == np.float32
    assert found.tolist() == [[actions[0, 0], -1]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused(value):
    policy = Constant(0.0, value)
    with pytest.raises(InputError, match="actions are NaN or infinite in 2 of 2 environments"):
        evaluate(policy, vector(), [0, 1])
    assert policy.steps == 1
    with pytest.raises(InputError, match="actions are NaN or infinite"):
        Collector(vector()).step(lambda o: torch.tensor([[0.0, value]] * 2))


def test_rewards_that_are_not_finite_are_refused_wherever_steps_are_made():
    class Endless(Toy):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, np.nan, *rest

    envs = SyncVectorEnv([Endless] * 2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(InputError, match="a reward is NaN or infinite"):
        evaluate(Constant(0.0, 0.0), envs, [0, 1])
    with pytest.raises(InputError, match="a reward is NaN or infinite"):
        Collector(envs).step(lambda o: torch.zeros(2, 2))


class Broken(Constant):
    """Acts well by plans that are not finite."""

    def act(self, observations):
        n = len(observations)
        states = torch.zeros(n, 4, 3)
        states[0, 2, 1] = torch.nan
        self.new_plans = [(torch.arange(n), Plan(states, torch.zeros(n, 4, 2)))]
        return super().act(observations)


def test_plans_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="plans are NaN or infinite"):
        evaluate(Broken(0.0, 0.0), vector(), [0, 1])


class LateNaN(Constant):
    """Knows no action for the first environment once it has ended: nobody looks at it then."""

    def act(self, observations):
        actions = super().act(observations).clone()
        if self.steps > 5:
            actions[0] = torch.nan
        return actions


def test_environments_without_an_episode_may_do_anything():
    envs = vector(2, space=Box(-1, 1, (2,)))
    envs.envs[1].step = lambda action: (np.zeros(3, np.float32), 0.0, False, False, {})
    long = envs.envs[1].played = []

    def step(action):
        long.append(action)
        return np.zeros(3, np.float32), 0.0, len(long) == 9, False, {}

    steps = []

    def first(action, own=envs.envs[0].step):
        steps.append(own(action))
        return steps[-1] if len(steps) <= 5 else (steps[-1][0], np.nan, *steps[-1][2:])

    envs.envs[0].step, envs.envs[1].step = first, step
    assert [e.length for e in evaluate(LateNaN(0.0, 0.0), envs, [0, 1]).episodes] == [5, 9]


DISCRETE = [Discrete(3), MultiDiscrete([3, 3]), MultiBinary(2), Box(-1, 1, (2, 1)), Dict(a=WHOLE)]


@pytest.mark.parametrize("space", DISCRETE, ids=str)
def test_only_vectors_of_numbers_are_acted_by(tmp_path, space):
    file = str(write_d4rl(tmp_path / "a.hdf5", action_dim=2))
    options = {"env_id": "ToyActions-v0", "env_kwargs": {"space": space}}
    for make in (lambda: TransitionData(file, **options), lambda: OnlineData(**options)):
        with pytest.raises(InputError, match="Policies act by vectors of real numbers"):
            make()
    with pytest.raises(InputError, match="Policies act by vectors of real numbers"):
        evaluate(Constant(0.0, 0.0), vector(space=space), [0])


@pytest.mark.parametrize("low", [-np.inf, -1.0])
def test_bounds_that_are_infinite(tmp_path, low):
    """An agent that acts between them refuses; shares outside are of the bounds that there are."""
    space = Box(np.float32(low), np.inf, (1,))
    options = {"env_id": "ToyActions-v0", "env_kwargs": {"space": space}}
    data = ChunkData(str(write_d4rl(tmp_path / "a.hdf5")), horizon=6, **options)
    data.setup("fit")
    agent = DynamicsAgent(3, 1, horizon=6, dim=16, depth=1, policy_dim=8)
    with pytest.raises(InputError, match="bounded on both sides"):
        agent.fit_normalizers(data)
    with pytest.raises(InputError, match="bounded vectors"):
        OnlineData(**options)
    actions = np.array([[-2.0], [0], [5], [-1]], np.float32)
    assert outside(actions, space) == (0.25 if np.isfinite(low) else 0.0)


def test_dictionaries_name_the_entries_that_can_be_used():
    space = Dict(pose=Box(-1, 1, (3,)), mode=Discrete(4), name=Dict(x=Box(-1, 1, (2,))))
    for keys, listed in ((None, "pose"), (["mode"], "pose"), (["nothing"], "pose")):
        config = EnvConfig("ToyActions-v0", {"observation_space": space}, keys)
        with pytest.raises(InputError, match=rf"among {listed}\.$"):
            config.make()
    config = EnvConfig("ToyActions-v0", {"observation_space": space}, ["pose"])
    assert config.make().observation_space.shape == (3,)


@pytest.mark.parametrize(("fail_at", "what"), [(0, "reset"), (3, "step")])
def test_an_environment_that_fails_is_one_sentence(fail_at, what):
    def collect():
        collector = Collector(vector(fail_at=fail_at))
        for _ in range(3):
            collector.step(lambda o: torch.zeros(2, 2))

    for run in (collect, lambda: evaluate(Constant(0.0, 0.0), vector(fail_at=fail_at), [0, 1])):
        with pytest.raises(InputError, match=rf"{what}.* failed \(ZeroDivisionError: ") as caught:
            run()
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def successes(wins):
    return evaluate(Constant(0.0, 0.0), vector(wins=wins), list(range(10))).episodes


def test_silence_is_failure_once_an_episode_tells_its_success():
    """On any rank: the other one's episodes never tell."""
    ranks = []
    for wins in ((3,), ()):
        episodes = successes(wins)
        assert [e.success for e in episodes] == [True if i in wins else None for i in range(10)]
        metrics = RolloutMetrics()
        metrics.update("return", torch.tensor([e.episode_return for e in episodes]))
        metrics.update("length", torch.tensor([e.length for e in episodes]))
        told = [e.success for e in episodes if e.success is not None]
        metrics.update("success", torch.tensor(told))
        ranks.append(metrics)
        assert _statistics(episodes, None).get("success_rate") == (0.1 if wins else None)
    assert ranks[0].compute()["success_rate"] == pytest.approx(0.1)
    assert "success_rate" not in ranks[1].compute()
    for name in ("counts", "sums", "squares"):  # as torchmetrics reduces them
        setattr(ranks[0], name, getattr(ranks[0], name) + getattr(ranks[1], name))
    ranks[0]._computed = None
    assert ranks[0].compute()["success_rate"] == pytest.approx(0.05)
