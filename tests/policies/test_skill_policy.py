"""Acting by skills: when one is chosen, and what its decoder sees."""

import pytest
import torch

from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import InputError


class Recorder:
    """Skills that count the choices, and actions that tell the skill and the state."""

    def __init__(self):
        self.calls = []

    def choose(self, states, goals, *, generator):
        self.calls.append(
            (states.clone(), goals, torch.stack([g.get_state()[:8] for g in generator]))
        )
        return torch.full((len(states), 1), float(len(self.calls)))

    def decode(self, states, skills, steps, *, generator):
        assert len(generator) == len(states)
        return torch.cat([skills, states[:, 1:2], steps[:, None]], 1)


def observe(n, clock):
    return torch.tensor([[row, clock, 7.0 + row] for row in range(n)])


def test_a_skill_acts_for_a_while_and_sees_every_state():
    recorder = Recorder()
    policy = SkillPolicy(recorder.choose, recorder.decode, horizon=3, observation_dim=2)
    policy.reset(torch.ones(2, dtype=torch.bool), [0, 1])
    played = torch.stack([policy.act(observe(2, step))[1] for step in range(7)])
    assert played[:, 0].tolist() == [1, 1, 1, 2, 2, 2, 3]
    assert played[:, 1].tolist() == list(range(7))
    assert played[:, 2].tolist() == [0, 1, 2, 0, 1, 2, 0]
    states, goals, _ = recorder.calls[1]
    assert states.tolist() == [[0, 3], [1, 3]]
    assert goals.tolist() == [[7], [8]]


def test_each_environment_has_a_clock_of_its_own():
    recorder = Recorder()
    policy = SkillPolicy(recorder.choose, recorder.decode, horizon=3, observation_dim=2)
    policy.reset(torch.ones(2, dtype=torch.bool), [0, 1])
    policy.act(observe(2, 0))
    policy.reset(torch.tensor([False, True]), [0, 5])
    assert policy.act(observe(2, 1))[:, [0, 2]].tolist() == [[1, 1], [2, 0]]
    assert recorder.calls[1][0].tolist() == [[1, 1]]
    assert policy.act(observe(2, 2))[:, 0].tolist() == [1, 2]
    assert policy.act(observe(2, 3))[:, 0].tolist() == [3, 2]


@pytest.mark.parametrize("wrong", [0, 4])
def test_refuses_skills_that_do_not_act_or_were_not_learned_for_so_long(wrong):
    with pytest.raises(InputError, match=r"n_action_steps=\d must lie in \[1, 3\]"):
        SkillPolicy(None, None, horizon=3, n_action_steps=wrong, observation_dim=2)
