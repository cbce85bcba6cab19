"""Executing plans: whose turn it is to plan, what is played, what is tracked."""

import pytest
import torch

from diffrl_lightning.policies.planner import Plan, PlannerPolicy
from diffrl_lightning.types import InputError

H = 6


class Recorder:
    """Plans that count: environment n's step h of call c is 100 c + 10 n + h."""

    def __init__(self):
        self.calls = []

    def __call__(self, observations, goals, *, generator, elapsed, previous):
        c = len(self.calls)
        self.calls.append(
            {
                "observations": observations,
                "goals": goals,
                "elapsed": elapsed,
                "previous": previous,
                "noise": [torch.rand((), generator=g).item() for g in generator],
            }
        )
        now = observations if observations.ndim == 2 else observations[:, -1]
        rows = now[:, :1] * 10 + 100 * c
        steps = torch.arange(H)
        return Plan((rows + steps)[..., None].repeat(1, 1, 4), (rows + steps)[..., None])


def observe(n, goal=True):
    first = torch.arange(n).float()[:, None]
    return (
        torch.cat([first.repeat(1, 4), torch.full((n, 2), 9.0)], 1) if goal else first.repeat(1, 4)
    )


def everyone(n):
    return torch.ones(n, dtype=torch.bool)


def test_open_loop_plays_each_action_for_stride_steps_and_holds_the_last():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4, stride=2)
    policy.reset(everyone(2), [0, 1])
    played = [policy.act(observe(2))[1].item() for _ in range(14)]
    assert played == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15, 15]
    assert len(plan.calls) == 1
    assert plan.calls[0]["goals"].tolist() == [[9, 9], [9, 9]]


def test_replanning_and_warm_start():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4, stride=2, replan_every=4, warm_start=True)
    policy.reset(everyone(2), [0, 1])
    played = [policy.act(observe(2, goal=False))[0].item() for _ in range(10)]
    assert played == [0, 0, 1, 1, 100, 100, 101, 101, 200, 200]
    assert plan.calls[0]["goals"] is None
    assert plan.calls[0]["previous"] is None
    before = plan.calls[1]["previous"]  # moved on by two of its steps, the last repeated
    assert before.actions[0, :, 0].tolist() == [2, 3, 4, 5, 5, 5]
    assert before.observations.shape == (2, H, 4)
    assert [c["elapsed"].tolist() for c in plan.calls] == [[0, 0], [2, 2], [4, 4]]


def test_an_episode_that_begins_replans_alone_with_its_own_noise():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4)
    policy.reset(everyone(3), [7, 8, 9])
    policy.act(observe(3))
    policy.reset(torch.tensor([False, True, False]), [7, 9, 9])
    policy.act(observe(3))
    assert plan.calls[1]["observations"].shape == (1, 4)
    ((rows, new),) = policy.new_plans
    assert rows.tolist() == [1]
    assert new.observations.shape == (1, H, 4)
    assert plan.calls[1]["noise"][0] == plan.calls[0]["noise"][2], "noise is the seed's alone"
    policy.act(observe(3))
    assert policy.new_plans == []


def test_a_neighbour_that_begins_does_not_take_a_warm_start_away():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4, replan_every=2, warm_start=True)
    policy.reset(everyone(2), [0, 1])
    for _ in range(2):
        policy.act(observe(2))
    policy.reset(torch.tensor([False, True]), [0, 5])
    policy.act(observe(2))
    cold, warm = plan.calls[1:]
    assert cold["previous"] is None
    assert cold["observations"][:, 0].tolist() == [1]
    assert warm["previous"].actions.shape == (1, H, 1)
    assert [rows.tolist() for rows, _ in policy.new_plans] == [[1], [0]]


def count_on(policy, steps, begin):
    """Act in two environments whose states count on from ``begin``."""
    for step in range(steps):
        states = (torch.tensor(begin) + step)[:, None].float().repeat(1, 4)
        policy.act(torch.cat([states, torch.full((2, 2), 9.0)], 1))


def test_history_is_a_stride_apart_and_begins_with_its_first_state():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4, stride=2, replan_every=1, n_obs_steps=3)
    policy.reset(everyone(2), [0, 1])
    count_on(policy, 7, [10, 50])
    assert [call["observations"][0, :, 0].tolist() for call in plan.calls] == [
        [10, 10, 10],
        [10, 10, 11],
        [10, 10, 12],
        [10, 11, 13],
        [10, 12, 14],
        [11, 13, 15],
        [12, 14, 16],
    ]
    assert [call["observations"][1, 0, 0].item() for call in plan.calls] == [50] * 5 + [51, 52]
    assert all(call["observations"].shape == (2, 3, 4) for call in plan.calls), "without the goal"
    assert [call["goals"].tolist() for call in plan.calls] == [[[9, 9], [9, 9]]] * 7
    assert [call["elapsed"].tolist() for call in plan.calls] == [
        [c, c] for c in (0, 0, 1, 1, 2, 2, 3)
    ]


def test_history_goes_on_between_plans_and_beside_an_episode_that_begins():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4, stride=2, replan_every=3, n_obs_steps=3)
    policy.reset(everyone(2), [0, 1])
    count_on(policy, 5, [10, 50])  # plans at 0 and 3
    assert plan.calls[1]["observations"][..., 0].tolist() == [[10, 11, 13], [50, 51, 53]]
    policy.reset(torch.tensor([False, True]), [0, 2])
    count_on(policy, 5, [15, 80])
    # the one at its steps 6 and 9; the other, begun anew beside the first's step 5, at 0 and 3
    found = [(c["observations"][..., 0].tolist(), c["elapsed"].tolist()) for c in plan.calls[2:]]
    assert found == [
        ([[80, 80, 80]], [0]),
        ([[12, 14, 16]], [3]),
        ([[80, 81, 83]], [1]),
        ([[15, 17, 19]], [4]),
    ]


def test_history_of_another_number_of_environments_begins_anew():
    plan = Recorder()
    policy = PlannerPolicy(plan, observation_dim=4, replan_every=1, n_obs_steps=2)
    policy.act(observe(2) + 7)
    policy.act(observe(3))
    assert plan.calls[1]["observations"][..., 0].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert plan.calls[1]["elapsed"].tolist() == [0, 0, 0]


def test_tracking_interpolates_between_planned_states_and_stops_at_the_end():
    def plan(observations, goals, *, generator, elapsed, previous):
        position = torch.arange(H).float()[None, :, None].repeat(1, 1, 2)
        return Plan(torch.cat([position, torch.full_like(position, 0.5)], -1), position)

    policy = PlannerPolicy(
        plan, observation_dim=4, stride=4, execute="states", kp=2.0, kd=1.0, lookahead=2
    )
    state = torch.tensor([[0.0, 0.0, 0.25, 0.25]])
    forces = [policy.act(state)[0, 0].item() for _ in range(30)]
    # the target is (age + 2) / 4 planned steps ahead, its velocity 0.5
    assert forces[0] == pytest.approx(2 * 0.5 + 0.25)
    assert forces[5] == pytest.approx(2 * 1.75 + 0.25)
    assert forces[-1] == pytest.approx(2 * 5.0 - 0.25), "holds the last position, at rest"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"execute": "waypoints"}, "one of actions, states"),
        ({"replan_every": 0}, "at least 1"),
        ({"warm_start": True}, "needs replan_every"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(InputError, match=message):
        PlannerPolicy(Recorder(), observation_dim=4, **kwargs)
