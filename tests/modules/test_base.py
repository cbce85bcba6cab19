"""What the base does for every role: rates, groups, seeds of its own noise."""

import math
from types import SimpleNamespace

import pytest
import torch

from diffrl_lightning import TD3BC, Diffuser, DiffusionPolicy, InputError, TransitionData
from modules.role_tester import quiet_trainer

POLICY = {"horizon": 8, "n_action_steps": 4, "dim": 16, "depth": 1, "num_heads": 2}


def optimized(module, steps=100):
    """What a trainer of so many steps is given."""
    module._trainer = SimpleNamespace(estimated_stepping_batches=steps)
    return module.configure_optimizers()


def policy(**kwargs):
    return DiffusionPolicy(3, 1, backbone="transformer", **(POLICY | kwargs))


def test_rates_rise_and_then_fall_along_a_cosine():
    module = policy(lr=0.4, lr_warmup_steps=20, lr_schedule="cosine")
    chosen = optimized(module)
    factor = chosen["lr_scheduler"]["scheduler"].lr_lambdas[0]
    found = [factor(step) for step in (0, 10, 20, 60, 80, 100)]
    low = 0.5 * (1 + math.cos(0.75 * math.pi))
    assert found == pytest.approx([0, 0.5, 1, 0.5, low, 0], abs=1e-9)
    assert all(g["initial_lr"] == 0.4 for g in chosen["optimizer"].param_groups)
    constant = optimized(policy(lr_warmup_steps=20, lr_schedule="constant"), steps=math.inf)
    factor = constant["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [factor(step) for step in (0, 10, 20, 99)] == [0, 0.5, 1, 1]
    assert isinstance(optimized(Diffuser(3, 1, horizon=8)), torch.optim.AdamW)
    cut_short = optimized(policy(lr_warmup_steps=20, lr_schedule="cosine"), steps=10)
    factor = cut_short["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [factor(step) for step in (0, 5, 10)] == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("kwargs", "steps", "message"),
    [
        ({"lr_schedule": "linear"}, 100, "choose one of constant, cosine"),
        ({"lr_schedule": "cosine"}, math.inf, "give trainer.max_steps"),
        ({"lr_schedule": "constant", "lr_warmup_steps": -1}, 100, "must be at least 0"),
    ],
)
def test_rates_that_can_not_be(kwargs, steps, message):
    with pytest.raises(InputError, match=message):
        optimized(policy(**kwargs), steps)


def test_biases_norms_and_positions_do_not_decay():
    module = policy(weight_decay=0.1, adam_betas=(0.8, 0.9), lr_schedule="constant")
    optimizer = optimized(module)["optimizer"]
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in module.named_parameters() if id(p) in decayed}
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert names == {n for n, p in trained.items() if p.ndim > 1 and "position" not in n}
    assert all(g["betas"] == (0.8, 0.9) for g in optimizer.param_groups)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)


def test_critics_biases_do_not_decay():
    module = TD3BC(3, 1, hidden_dim=8, weight_decay=0.1)
    optimizer = module.configure_optimizers()
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert not decayed & {id(p) for p in module.critic.biases}
    assert {id(p) for p in module.critic.weights} <= decayed


def test_a_loaded_module_trains_in_training_mode():
    module = policy(dropout=0.5).eval()
    for part in module.trajectory.children():
        part.fitted.fill_(True)
    module._trainer = SimpleNamespace(global_rank=0)
    module.on_fit_start()
    assert module.denoiser.training
    assert not module.ema.net.training


def test_rewards_summed_at_another_discount_are_refused(tmp_path, pendulum_file):
    data = TransitionData(str(pendulum_file), n_steps=3, discount=0.9)
    module = TD3BC(observation_dim=3, action_dim=1, hidden_dim=8)
    with pytest.raises(InputError, match=r"give data\.discount and model\.discount the same"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
