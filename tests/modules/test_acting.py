"""Ways to act: checked, kept in checkpoints, and what a policy does by default."""

import pytest
import torch

from diffrl_lightning import (
    TD3BC,
    Acting,
    ChunkActing,
    Diffuser,
    DiffusionQL,
    InputError,
    PlanActing,
    QActing,
    Role,
    Rollout,
    TrajectoryValue,
    TransitionData,
)
from modules.role_tester import quiet_trainer, saved

SMALL = {"hidden_dim": 16, "num_train_timesteps": 8}


def role(**kwargs):
    return DiffusionQL(3, 1, **SMALL | kwargs)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
        ({"choice_temperature": float("nan")}, "must be a finite number"),
        ({"num_inference_steps": 0}, "must be at least 1"),
        ({"sampler": "euler"}, "sampler='euler' is unknown: choose one of ddpm, ddim, dpmpp"),
    ],
)
def test_choices_check_themselves(choices, message):
    with pytest.raises(InputError, match=message):
        QActing(**choices)


def test_a_value_without_a_bound_is_no_nan_either():
    with pytest.raises(InputError, match="value_guidance_scale=nan must be a finite number"):
        PlanActing(value_guidance_scale=float("nan"))


def test_what_is_refused_says_what_is_accepted():
    with pytest.raises(InputError, match="'speed' is unknown: DiffusionQL acts by QActing, which"):
        role().make_policy(speed=3)
    with pytest.raises(InputError, match="ChunkActing is not how DiffusionQL acts: it acts by QA"):
        role().make_policy(ChunkActing())
    with pytest.raises(InputError, match="acts by Acting, which has nothing to choose"):
        TD3BC(3, 1).make_policy(temperature=1.0)
    with pytest.raises(InputError, match="TrajectoryValue does not act"):
        TrajectoryValue(3, 1, horizon=8).make_policy()
    with pytest.raises(InputError, match="between 1 and the 8 steps"):
        role().make_policy(num_inference_steps=9)


def actions(policy):
    policy.reset(torch.ones(4, dtype=torch.bool), [0, 1, 2, 3])
    return policy.act(torch.linspace(-1, 1, 12).view(4, 3))


def test_a_checkpoint_acts_as_it_was_tested(tmp_path, pendulum_file):
    """Fields that are given lie over the tested ones; an object takes their place."""
    how = QActing(num_candidates=3, temperature=0.2)
    rollout = Rollout(acting=how, val_episodes=0)
    trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[rollout], limit_val_batches=1)
    module = role()
    trainer.fit(module, datamodule=TransitionData(str(pendulum_file), batch_size=8))
    trainer.save_checkpoint(tmp_path / "tested.ckpt")
    loaded = Role.load_from_checkpoint(tmp_path / "tested.ckpt")
    assert loaded.default_acting == how
    assert torch.equal(actions(loaded.make_policy()), actions(loaded.make_policy(how)))
    assert not torch.equal(actions(loaded.make_policy()), actions(loaded.make_policy(QActing())))
    mixed = actions(loaded.make_policy(num_candidates=1))
    assert torch.equal(
        mixed, actions(loaded.make_policy(QActing(num_candidates=1, temperature=0.2)))
    )


def test_what_a_checkpoint_stores_is_plain_and_may_be_of_another_version(tmp_path):
    module = role()
    module.default_acting = QActing(num_candidates=2)
    path = saved(module, tmp_path / "role.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["acting"]["init_args"]["gone"] = 1
    torch.save(checkpoint, path)
    assert Role.load_from_checkpoint(path).default_acting == QActing(num_candidates=2)
    checkpoint["acting"]["class_path"] = "PlanActing"
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="acting is no QActing"):
        Role.load_from_checkpoint(path)
    checkpoint.pop("acting")
    torch.save(checkpoint, path)
    assert Role.load_from_checkpoint(path).default_acting is None


def test_hyper_parameters_are_recorded_once_and_from_every_level():
    module = Diffuser(3, 1, horizon=8, dim=8, lr=1e-2, ema_decay=0.9, adam_betas=(0.8, 0.9))
    found = dict(module.hparams)
    expected = {"horizon": 8, "dim": 8, "lr": 1e-2, "ema_decay": 0.9, "adam_betas": (0.8, 0.9)}
    assert expected.items() <= found.items()
    assert {"goal_dim", "ema_start", "weight_decay", "backbone", "action_weight"} <= set(found)
    assert set(found) == set(module.arguments())
    assert type(Acting()) is Acting
