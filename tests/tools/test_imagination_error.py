"""Errors of what is imagined: an agent that imagines with the simulator, and what is refused."""

import json

import gymnasium as gym
import pytest
import torch
from modules.role_tester import saved

from diffrl_lightning import DynamicsAgent, EnsembleDynamics, InputError, Role
from diffrl_lightning.tools.imagination_error import imagination_error, played
from diffrl_lightning.types import Imagined

SMALL = {"num_states": 30, "num_envs": 4, "most_steps": 20}


def agent(observation_dim=4, action_dim=1):
    sizes = {"dim": 8, "depth": 1, "policy_dim": 8, "num_train_timesteps": 4}
    return DynamicsAgent(observation_dim, action_dim, horizon=5, **sizes)


class Simulating(DynamicsAgent):
    """Imagines with the simulator, and is off by half a deviation at two steps."""

    def imagine(self, states, policy, *, num_inference_steps):
        env = gym.make("InvertedPendulum-v5")
        found = played(env, states, torch.full((len(states), self.horizon, 1), 0.5))
        off = (0.5 if num_inference_steps == 2 else 0.0) * self.trajectory.observations.std
        return Imagined(found.observations + off, *found[1:]), torch.ones(())


def test_a_simulator_is_not_off(tmp_path, monkeypatch):
    sizes = {"dim": 8, "depth": 1, "policy_dim": 8, "num_train_timesteps": 4}
    module = Simulating(4, 1, horizon=5, **sizes)
    module.trajectory.observations.std.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    monkeypatch.setattr(Role, "load_from_checkpoint", lambda path: module)
    output = tmp_path / "errors"
    found = imagination_error("InvertedPendulum-v5", "a.ckpt", output=str(output), **SMALL)
    assert list(found) == ["1", "2", "4"]
    assert found["4"]["error"] == pytest.approx(0, abs=1e-6)
    assert found["2"]["error"] == pytest.approx(0.5, abs=1e-4)
    for result in found.values():
        assert result["ended"] == result["really_ended"]
        assert result["trajectories_a_second"] > 0
    assert 0 < found["4"]["ended"] < 1  # pushed to one side, some fall
    assert json.loads(output.with_suffix(".json").read_text()) == found
    assert output.with_suffix(".png").stat().st_size > 10_000


def test_a_checkpoint_is_enough(tmp_path):
    path = saved(agent(), tmp_path / "agent.ckpt")
    found = imagination_error(
        "InvertedPendulum-v5", path, steps=[2], output=str(tmp_path / "e"), **SMALL
    )
    assert found["2"]["spread"] > 0


def test_what_it_can_not_measure_is_refused(tmp_path):
    other = saved(EnsembleDynamics(4, 1, hidden_dim=8), tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="holds a EnsembleDynamics"):
        imagination_error("InvertedPendulum-v5", other)
    path = saved(agent(3), tmp_path / "agent.ckpt")
    with pytest.raises(InputError, match="has 4 observations, the agent 3"):
        imagination_error("InvertedPendulum-v5", path)
