"""What every role must do, over the one list of them."""

import numpy as np
import pytest
import torch
from conftest import write_d4rl

from diffrl_lightning import DiffusedValue, Diffuser, FutureData, InputError, Role
from diffrl_lightning.modules.checkpoints import roles
from modules.role_tester import (
    check_role,
    policy_is_deterministic_by_seed,
    quiet_trainer,
    ready,
    saved,
    small_prior,
    small_skills,
)
from modules.roles import REWARD, ROLES


@pytest.fixture(scope="session")
def role_data(tmp_path_factory):
    """Two datasets, of negative and of positive actions; every other episode really ends."""
    folder, last = tmp_path_factory.mktemp("roles"), np.arange(1000) % 100 == 99
    ends = last & (np.arange(1000) % 200 > 100)
    size = np.random.default_rng(0).uniform(0.2, 1, (1000, 1)).astype(np.float32)
    options = {"terminals": ends, "timeouts": last & ~ends}
    return [
        str(write_d4rl(folder / f"{k}.hdf5", seed=k, actions=(2 * k - 1) * size, **options))
        for k in (0, 1)
    ]


@pytest.fixture(scope="session")
def companions(tmp_path_factory, role_data):
    """Arguments that name the checkpoints that roles build on, made when they are asked for."""
    folder, made = tmp_path_factory.mktemp("companions"), {}

    def make(name):
        torch.manual_seed(0)
        if name == "diffusers":
            case, paths = next(c for c in ROLES if c.role is Diffuser), []
            for part in (0, 1):
                data = case._replace(data={"train_on": [part], "val_fraction": 0.2})
                sizes = {k: v for k, v in REWARD.items() if k != "num_origins"}
                module = Diffuser(3, 1, **case.arguments | sizes | {"dim": 16, "lr": 2e-3})
                trainer = quiet_trainer(folder, max_steps=200, limit_val_batches=0)
                trainer.fit(module, datamodule=data.datamodule(role_data))
                paths.append(saved(module, folder / f"{part}.ckpt"))
            return dict(zip(("base_ckpt", "expert_ckpt"), paths, strict=True))
        if name == "value_ckpt":
            module = DiffusedValue(3, 1, hidden_dim=16, num_blocks=1, embed_dim=16)
            module.fit_normalizers(ready(FutureData(role_data[0])))
        else:
            module = {"skills_ckpt": small_skills, "prior_ckpt": small_prior}[name](role_data[0])
        return {name: saved(module, folder / f"{name}.ckpt")}

    def find(name):
        if name and name not in made:
            made[name] = make(name)
        return made.get(name, {})

    return find


def parameters():
    """Cases; those of a U-Net that is differentiated for its input take long."""
    for case in ROLES:
        slow = case.arguments.get("network") == "unet"
        yield pytest.param(case, marks=pytest.mark.slow if slow else (), id=case.role.__name__)


@pytest.mark.parametrize("case", parameters())
def test_role(case, tmp_path, role_data, companions):
    data = case.datamodule(role_data if "num_origins" in case.arguments else role_data[0])
    module = case.role(3, 1, **case.arguments, **companions(case.needs))
    check_role(module, data, tmp_path, **case.check)
    module.eval()
    for choices in case.acting:
        policy_is_deterministic_by_seed(module, data, **choices)
    if not case.check.get("acts", True):
        with pytest.raises(InputError, match="does not act"):
            module.make_policy()


def test_all_roles_are_on_the_list():
    abstract = {"Role", "DiffusionModule"}
    own = [r for r in roles(Role).values() if r.__module__.startswith("diffrl_lightning.")]
    found = {r.__name__ for r in own if not getattr(r, "__abstractmethods__", None)} - abstract
    assert {case.role.__name__ for case in ROLES} == found
