"""Runs the command line as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from modules.role_tester import ready, saved, small_prior, small_skills

import diffrl_lightning
from diffrl_lightning import DiffusedValue, Diffuser, FutureData, SequenceData

CONFIGS = Path(__file__).parent / "configs"
TINY = str(CONFIGS / "tiny.yaml")


def _role(path):
    """The class that a configuration names."""
    return getattr(diffrl_lightning, yaml.safe_load(path.read_text())["model"]["class_path"])


ROLES = {path.stem: _role(path) for path in sorted(CONFIGS.glob("*.yaml")) if path.stem != "tiny"}
SILENT = [name for name, role in ROLES.items() if role.acting is None]  # roles that do not act
ACTING = [name for name in ROLES if name not in SILENT]


def diffrl_command(*args):
    return [sys.executable, "-m", "diffrl_lightning", *map(str, args)]


def diffrl(*args, cwd, check=True, timeout=240):
    """Run ``diffrl`` in a process of its own, in a folder of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        diffrl_command(*args), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
    return result


def fit_args(dataset, *more, role="diffuser"):
    """Arguments that fit a tiny role on a dataset."""
    config = str(CONFIGS / f"{role}.yaml")
    return ["fit", "-c", TINY, "-c", config, f"--data.dataset={dataset}", *more]


def companions(role, folder, dataset):
    """Options that name the checkpoints that a role learns from; here models as they begin."""
    if role == "value_policy":
        value = DiffusedValue(3, 1, hidden_dim=16, num_blocks=1, embed_dim=16)
        value.fit_normalizers(ready(FutureData(str(dataset))))
        return [f"--model.value_ckpt={saved(value, folder / 'value_ckpt.ckpt')}"]
    if role == "latent_diffusion":
        return [f"--model.skills_ckpt={saved(small_skills(dataset), folder / 'skills.ckpt')}"]
    if role == "latent_q":
        return [f"--model.prior_ckpt={saved(small_prior(dataset), folder / 'prior.ckpt')}"]
    if role != "relative_reward":
        return []
    data = ready(SequenceData(str(dataset), horizon=8))
    options = []
    for name in ("base_ckpt", "expert_ckpt"):
        module = Diffuser(3, 1, horizon=8, dim=16, dim_mults=(1, 2), num_train_timesteps=8)
        module.fit_normalizers(data)
        options.append(f"--model.{name}={saved(module, folder / f'{name}.ckpt')}")
    return options


def rows(n, mean, seed):
    """n random transitions of 3 observations and 1 action, around a mean."""
    g = torch.Generator().manual_seed(seed)
    return {
        "observations": mean + torch.randn(n, 3, generator=g),
        "actions": torch.rand(n, 1, generator=g) * 2 - 1,
        "rewards": torch.randn(n, generator=g),
        "next_observations": mean + torch.randn(n, 3, generator=g),
        "terminations": torch.zeros(n),
    }
