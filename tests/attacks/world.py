"""What attacks are made of: good inputs to spoil, a canary, and arguments around them."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import lightning.pytorch as pl
import minari
import numpy as np
import torch
from conftest import write_d4rl
from helpers import CONFIGS, TINY
from minari.data_collector import EpisodeBuffer
from modules.role_tester import ready, saved, small_skills

from diffrl_lightning import (
    DataSynthesizer,
    Diffuser,
    LatentDiffusion,
    SequenceData,
    TransitionData,
)
from diffrl_lightning.cli import main
from diffrl_lightning.data import ChunkData

# Few steps: an input that passes should not take long to be seen to.
SHORT = (
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--rollout.num_envs=1",
    "--rollout.num_episodes=1",
)


class Attack(NamedTuple):
    """A bad input.

    ``args`` makes it and gives the command; ``words``: one of them, split at "|", is in the sentence.
    ``late``: it shows itself only while something runs, so that files of the run may be there.
    ``why``: what is right, where that is not plain.
    """

    name: str
    args: Callable[[World], list[Any]]
    words: str
    late: bool = False
    why: str = ""


class World:
    """A folder of inputs, and good ones to spoil.

    Args:
        folder: of this attack alone.
        good: what all share: ``data.hdf5``, checkpoints by role, and a Minari dataset.
    """

    def __init__(self, folder: Path, good: Path) -> None:
        self.inputs, self.canary = folder / "inputs", folder / "canary"
        self.minari, self.good = folder / "minari", good
        self.inputs.mkdir()
        self.data = str(good / "data.hdf5")

    @property
    def touch(self) -> str:
        """A command that shows that code ran."""
        return f"touch {self.canary}"

    def file(self, name: str, content: str | bytes = b"") -> str:
        """A file of the inputs."""
        path = self.inputs / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def fit(self, dataset: Any = None, *options: Any, role: str = "diffuser") -> list[Any]:
        """A short fit of a tiny role."""
        config = CONFIGS / f"{role}.yaml"
        dataset = self.data if dataset is None else dataset
        return ["fit", "-c", TINY, "-c", config, f"--data.dataset={dataset}", *SHORT, *options]

    def test(self, checkpoint: Any, *options: Any, role: str = "diffuser") -> list[Any]:
        """A short test of a checkpoint."""
        few = ("--data.env_kwargs.max_episode_steps=5", f"--ckpt_path={checkpoint}")
        return ["test", *self.fit(None, *few, *options, role=role)[1:]]

    def checkpoint(self, role: str = "diffuser") -> dict[str, Any]:
        """A good checkpoint, to be spoiled."""
        return torch.load(self.good / f"{role}.ckpt", weights_only=True)

    def save(self, checkpoint: Any) -> str:
        """A checkpoint of the inputs."""
        torch.save(checkpoint, self.inputs / "bad.ckpt")
        return str(self.inputs / "bad.ckpt")

    def dataset(self) -> Path:
        """A good Minari dataset ``attack/toy-v0``, to be spoiled."""
        shutil.copytree(self.good / "minari", self.minari, dirs_exist_ok=True)
        return self.minari / "attack" / "toy-v0" / "data"


class Bomb:
    """An object that runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def pickled(world: World) -> bytes:
    return pickle.dumps(Bomb(world.touch))


def make_good(folder: Path, monkeypatch: Any) -> Path:
    """Good inputs: a file, checkpoints of four roles, one of a run, and a Minari dataset."""
    data = write_d4rl(folder / "data.hdf5")
    windows = ready(SequenceData(str(data), horizon=8))
    diffuser = Diffuser(3, 1, horizon=8, dim=8, dim_mults=(1, 2), num_train_timesteps=8)
    diffuser.fit_normalizers(windows)
    saved(diffuser, folder / "diffuser.ckpt")
    synthesizer = DataSynthesizer(3, 1, hidden_dim=16, num_blocks=1, embed_dim=16)
    synthesizer.fit_normalizers(ready(TransitionData(str(data))))
    saved(synthesizer, folder / "data_synthesizer.ckpt")
    sizes = {"latent_dim": 4, "hidden_dim": 16, "num_blocks": 1, "embed_dim": 16}
    prior = LatentDiffusion(3, 1, horizon=8, num_train_timesteps=8, **sizes)
    prior.skills = small_skills(data)
    prior.fit_normalizers(ready(ChunkData(str(data), horizon=8)))
    saved(prior, folder / "latent_diffusion.ckpt")
    saved(small_skills(data), folder / "latent_skills.ckpt")
    for path in folder.glob("*.ckpt"):
        torch.save(torch.load(path) | {"pytorch-lightning_version": pl.__version__}, path)
    (folder / "run").mkdir()
    monkeypatch.chdir(folder / "run")
    main([str(a) for a in World(folder / "run", folder).fit(None, "--rollout.val_episodes=0")])
    shutil.copy(next((folder / "run").rglob("last.ckpt")), folder / "run.ckpt")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    record("attack/toy-v0")
    return folder


def record(name: str, **changes: Any) -> str:
    """A Minari dataset of Pendulum; ``changes`` are arrays of its second episode."""
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    rng, episodes = np.random.default_rng(0), []
    for i in range(3):
        steps = {
            "observations": rng.uniform(-1, 1, (21, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (20, 1)).astype(np.float32),
            "rewards": [0.0] * 20,
            "terminations": [False] * 20,
            "truncations": [False] * 19 + [True],
        }
        episodes.append(EpisodeBuffer(id=i, **steps | (changes if i == 1 else {})))
    minari.create_dataset_from_buffers(name, episodes, env=env, eval_env=env)
    return name
