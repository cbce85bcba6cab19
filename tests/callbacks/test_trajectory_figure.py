"""Plans outside mazes: what an evaluation keeps of them, and that they are drawn."""

from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from lightning.pytorch.loggers import TensorBoardLogger
from modules.role_tester import quiet_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffrl_lightning import (
    Diffuser,
    PlanActing,
    PlanFigure,
    Rollout,
    SequenceData,
    TrajectoryValue,
)
from diffrl_lightning.callbacks import plan_figure
from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.envs.evaluate import evaluate
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.figures.trajectories import draw_imagined
from diffrl_lightning.policies.planner import Plan

SIZE = {"dim": 16, "dim_mults": (1, 2), "num_train_timesteps": 8, "horizon": 8}


class Planner:
    """Makes a plan at every third step; environment n's plan at call c is all 10 n + c."""

    stride = 2

    def __init__(self, n, num_candidates=0):
        self.n, self.num_candidates, self.calls, self.made = n, num_candidates, 0, []

    def reset(self, mask, seeds=None):
        pass

    def act(self, observations):
        rows = torch.arange(self.n if self.calls % 3 == 0 else 0)
        states = (10 * rows + self.calls).float()[:, None, None].repeat(1, 5, 3)
        self.calls += 1
        plan = Plan(states, states[..., :1])
        if self.num_candidates:
            shape = (len(rows), self.num_candidates)
            plan = Plan(*plan[:2], torch.rand(*shape, 5, 3), torch.rand(shape))
        self.new_plans = [(rows, plan)]
        self.made.append(plan)
        return torch.zeros(self.n, 1)


def run(policy, steps, **options):
    kwargs = {"max_episode_steps": steps}
    envs = EnvConfig("Pendulum-v1", kwargs).make_vector(policy.n)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    return evaluate(policy, envs, list(range(policy.n)), keep_paths=1, **options).episodes


def test_snapshots_of_the_kept_episodes_alone_and_some_steps_apart():
    kept, other = run(Planner(2), 70)
    assert [s.step for s in kept.snapshots] == [0, 21, 42, 63]
    assert all(s.stride == 2 and s.observations.shape == (5, 3) for s in kept.snapshots)
    assert [s.observations[0, 0] for s in kept.snapshots] == [0, 21, 42, 63]
    assert all(s.candidates is None and s.values is None for s in kept.snapshots)
    assert other.snapshots == []
    assert len(other.plans) == len(kept.plans) == 24


def test_there_are_never_many_snapshots():
    (episode,) = run(Planner(1), 190, snapshot_every=1)
    assert [s.step for s in episode.snapshots] == list(range(0, 36, 3))


@pytest.mark.parametrize(("made", "kept"), [(1, 1), (4, 4), (32, 32), (100, 32)])
def test_of_the_candidates_the_best_and_the_worst_are_kept(made, kept):
    policy = Planner(2, made)
    snapshot = run(policy, 1)[0].snapshots[0]
    candidates, values = (part[0].numpy() for part in policy.made[0][2:])
    assert snapshot.candidates.shape == (kept, 5, 3)
    order = values.argsort()
    ranks = [order.tolist().index(np.flatnonzero(values == v).item()) for v in snapshot.values]
    assert ranks[0] == 0
    assert ranks[-1] == made - 1
    assert set(np.diff(ranks)) <= {made // kept, made // kept + 1}
    np.testing.assert_array_equal(snapshot.candidates, candidates[order[ranks]])


@pytest.fixture
def roles(tmp_path, pendulum_file):
    """A Diffuser, the checkpoint of its value, and their data."""
    data = SequenceData(
        str(pendulum_file), horizon=8, batch_size=32, env_kwargs={"max_episode_steps": 50}
    )
    for role in (TrajectoryValue, Diffuser):
        module = role(3, 1, **SIZE, normalizer="limits")
        trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(tmp_path / f"{role.__name__}.ckpt")
    return module, str(tmp_path / "TrajectoryValue.ckpt"), data


POLICY = {"num_candidates": 4, "replan_every": 4, "num_inference_steps": 2}


def test_snapshots_of_a_diffuser(roles):
    module, value_ckpt, data = roles
    policy = module.eval().make_policy(value_ckpt=value_ckpt, **POLICY)
    with torch.no_grad():
        evaluation, _ = roll_out(policy, data, [0, 1, 2], keep_episodes=2, show_progress=False)
    first, second, third = evaluation.episodes
    assert third.snapshots == []
    for episode in (first, second):
        assert [s.step for s in episode.snapshots] == [0, 20, 40]
        for snapshot in episode.snapshots:
            assert snapshot.candidates.shape == (4, 8, 3)
            assert (np.diff(snapshot.values) >= 0).all()
            np.testing.assert_array_equal(snapshot.observations, snapshot.candidates[-1])
            now = episode.path[snapshot.step]
            np.testing.assert_allclose(snapshot.observations[0], now, atol=1e-3)
    axes = draw_imagined(first).axes
    assert len(axes) == 4, "three dimensions and the bar"


@pytest.mark.parametrize("keep_episodes", [0, 2])
def test_the_callback_draws_outside_mazes(roles, tmp_path, keep_episodes):
    module, value_ckpt, data = roles
    rollout = Rollout(
        num_episodes=2,
        keep_episodes=keep_episodes,
        acting=PlanActing(value_ckpt=value_ckpt, **POLICY),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path / "logs"),
        callbacks=[rollout, PlanFigure()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(module, datamodule=data, verbose=False)
    pictures = [path.name for path in (tmp_path / "logs").rglob("*.png")]
    assert pictures == ["plans_test.png"] * bool(keep_episodes)
    events = EventAccumulator(trainer.log_dir).Reload()
    assert events.Tags()["images"] == ["plans/test"] * bool(keep_episodes)


def test_the_callback_still_draws_mazes(tmp_path):
    data = SequenceData("pointmaze/umaze", horizon=8, padding="edge", generate_steps=6000)
    module = Diffuser(4, 2, goal_dim=2, **SIZE)
    options = {"num_episodes": 2, "acting": PlanActing(num_inference_steps=2)}
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[Rollout(**options), PlanFigure()])
    with (
        patch.object(plan_figure, "draw_plans", wraps=plan_figure.draw_plans) as draw_plans,
        patch.object(plan_figure, "draw_imagined") as draw_imagined,
    ):
        trainer.test(module, datamodule=data, verbose=False)
    assert draw_plans.call_count == 1
    assert not draw_imagined.called
    assert (tmp_path / "plans_test.png").is_file()
