"""Errors of decoded skills in the simulator: skills that know their chunk, and what is refused."""

import json

import pytest
import torch
from modules.role_tester import saved

from diffrl_lightning import BehaviourCloning, InputError, LatentSkills, Role
from diffrl_lightning.nets import Normal
from diffrl_lightning.tools.skill_error import skill_error

MAZE = {"generate_steps": 6000, "join_episodes": 6000, "val_fraction": 0.3}


class Recorded(LatentSkills):
    """Its skills are the actions of the chunk, its prior's mean is none at all."""

    def encode(self, batch):
        actions = batch["actions"].flatten(1)
        return Normal(actions, torch.ones_like(actions))

    def skill_prior(self, states):
        zero = torch.zeros(len(states), self.horizon * self.action_dim)
        return Normal(zero, zero + 1)

    def decode(self, states, skills, steps):
        actions = skills.unflatten(1, (self.horizon, -1))
        return actions.take_along_dim(steps[:, None, None], 1)[:, 0]


def test_a_skill_that_is_its_actions_repeats_the_chunk(tmp_path, monkeypatch):
    module = Recorded(4, 2, goal_dim=2, horizon=6, hidden_dim=8, num_layers=1)
    monkeypatch.setattr(Role, "load_from_checkpoint", lambda path: module)
    output = tmp_path / "errors"
    found = skill_error("pointmaze/umaze", "a.ckpt", num_chunks=40, **MAZE, output=str(output))
    assert found["skill"]["horizons"] == [1, 2, 5, 6]
    for name in ("recorded actions", "skill"):
        assert found[name]["mean"] == pytest.approx([0] * 4, abs=1e-4)
    still, prior = found["no change"]["mean"], found["prior's mean"]["mean"]
    assert 0.01 < prior[0] < prior[-1]
    assert prior[-1] < still[-1]  # without a force it rolls on
    assert found["skill"]["of_the_priors"] == pytest.approx([0] * 4, abs=1e-2)
    assert json.loads(output.with_suffix(".json").read_text()) == found
    assert output.with_suffix(".png").stat().st_size > 10_000


def test_what_it_can_not_measure_is_refused(tmp_path):
    other = saved(BehaviourCloning(4, 2, hidden_dim=8), tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="holds a BehaviourCloning"):
        skill_error("pointmaze/umaze", other, **MAZE)
    skills = LatentSkills(4, 2, goal_dim=2, horizon=6, hidden_dim=8, num_layers=1)
    path = saved(skills, tmp_path / "skills.ckpt")
    with pytest.raises(InputError, match=r"must lie in \[1, 6\]"):
        skill_error("pointmaze/umaze", path, horizons=[7], **MAZE)
