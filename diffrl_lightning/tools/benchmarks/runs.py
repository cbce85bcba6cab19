"""What a run of a benchmark does, in a process of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.callbacks.versions import device_name, revision, run_versions
from diffrl_lightning.data import SequenceData
from diffrl_lightning.data.sources.base import SourceOptions
from diffrl_lightning.files import write_whole
from diffrl_lightning.tools.benchmarks.digests import dataset_digest
from diffrl_lightning.tools.benchmarks.grid import fill_in
from diffrl_lightning.tools.benchmarks.jobs import LAST, Job
from diffrl_lightning.tools.configs import check_yaml
from diffrl_lightning.tools.controls import control_policy
from diffrl_lightning.tools.sources import load_role
from diffrl_lightning.types import InputError


def prepare(job: Job) -> None:
    """Generate or download a dataset where it is not on disk, and write its digest."""
    data = SequenceData(job.spec["dataset"], **_source(job.spec["source"]))
    data.prepare_data()
    record = {"dataset": Path(job.spec["dataset"]).name, **dataset_digest(data)}
    _write(job, record)


def fit_args(job: Job) -> list[str]:
    """The arguments of ``diffrl fit`` that train a model, or go on from its last checkpoint."""
    spec, folder = job.spec, Path(job.spec["folder"])
    options, last = fill_in(spec["args"], _checkpoints(spec)), folder / LAST
    args = ["fit", *(f"--config={path}" for path in spec["configs"])]
    args += [f"--{name}={_yaml(value)}" for name, value in options.items()]
    args += [
        "--test_after_fit=false",
        f"--name={folder.name}",
        f"--trainer.logger.init_args.save_dir={folder.parent}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--checkpoint.dirpath={last.parent}",  # of all versions, so that the best one is kept too
        "--trainer.callbacks+=TrainingRecord",
        f"--trainer.callbacks.path={job.result}",
    ]
    return [*args, f"--ckpt_path={last}"] if last.is_file() else args


def checkpoint(folder: Path, which: str) -> str:
    """The last or the best checkpoint of a training that has ended."""
    path = folder / LAST.with_name(f"{which}.ckpt")
    if not path.is_file():
        raise InputError(f"{str(folder)!r} has no {which} checkpoint: set checkpoint: last.")
    return str(path)


def choose(job: Job) -> None:
    """Roll out all choices in development episodes, and write which one has the highest return."""
    spec = job.spec
    means: dict[str, list[float]] = {name: [] for name in spec["choices"]}
    for model in spec["models"]:
        data, role = _trained_on(model, spec["dataset"]), _role(model)
        for name, acting in spec["choices"].items():
            result = _evaluate(_choice_policy(role, model, acting), data, spec)
            means[name].append(float(np.mean(result["returns"])))
    record = {
        "row": spec["row"],
        "chosen": max(means, key=lambda name: float(np.mean(means[name]))),
        "choices": {
            name: {"acting": acting, "seed_means": means[name]}
            for name, acting in spec["choices"].items()
        },
    }
    _write(job, record | {k: spec[k] for k in ("train_seeds", "first_seed", "num_episodes")})


def test(job: Job) -> None:
    """Roll a model out in the test episodes, once, and write all that a table needs of it."""
    spec, model = job.spec, job.spec["model"]
    acting, chosen = spec["acting"], None
    began = time.perf_counter(), time.process_time()
    if model is None:
        data = SequenceData(spec["dataset"], **_source(spec["source"]))
        num_envs = min(spec["num_envs"], spec["num_episodes"])
        policy = control_policy(spec["control"], data, num_envs)
    elif spec["choice"] is None:
        data, role = _trained_on(model, spec["dataset"]), _role(model)
        policy = role.make_policy(**fill_in(acting, _checkpoints(model)))
    else:
        choice = _read(Path(spec["choice"]))
        chosen = choice["chosen"]
        acting = choice["choices"][chosen]["acting"]
        data = _trained_on(model, spec["dataset"])
        policy = _choice_policy(_role(model), model, acting)
    result = _evaluate(policy, data, spec)
    seconds = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}
    use = {k: spec[k] for k in ("row", "dataset_name", "seed")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {
        **{k: spec[k] for k in ("benchmark", "row", "seed", "definition", "control")},
        "dataset": spec["dataset_name"],
        "data": _read(Path(spec["data"])),
        "acting": acting,
        "chosen": chosen,
        **result,
        "ref_scores": data.ref_scores,
        "test_seconds": seconds,
        "test_use": 1 + _count_uses(Path(spec["uses"]), use),
        **_training(model),
        "env_id": data.env_id,
        "date": now,
        "revision": revision(),
        "device": device_name(torch.device("cpu")),
        "versions": run_versions(),
    }
    _write(job, record)
    with Path(spec["uses"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(use | {"definition": spec["definition"], "date": now}) + "\n")


def _count_uses(path: Path, use: Mapping[str, Any]) -> int:
    """How often a row's test episodes were run before with this training seed."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return sum(use.items() <= json.loads(line).items() for line in lines)


def _evaluate(policy: Any, data: SequenceData, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Roll out in the episodes of a run, and tell each."""
    first, count = spec["first_seed"], spec["num_episodes"]
    with torch.no_grad():
        evaluation, metrics = roll_out(
            policy,
            data,
            range(first, first + count),
            num_envs=spec["num_envs"],
            show_progress=False,
        )
    episodes = evaluation.episodes
    successes = [e.success for e in episodes]
    found = metrics.compute()
    result: dict[str, Any] = {
        "episode_seeds": [e.seed for e in episodes],
        "returns": [e.episode_return for e in episodes],
        "lengths": [e.length for e in episodes],
    }
    if any(s is not None for s in successes):  # those that are silent have failed
        result["successes"] = [bool(s) for s in successes]
    return result | {k: found[k] for k in ("wall_free_rate", "decision_ms") if k in found}


def _role(model: Mapping[str, Any]) -> Any:
    return load_role(checkpoint(Path(model["folder"]), model["checkpoint"]), "a role")


def _choice_policy(role: Any, model: Mapping[str, Any], acting: Mapping[str, Any]) -> Any:
    """A fresh policy that acts by a choice: fields over the class's defaults, as compare's rows."""
    base = role.acting and role.acting()  # rather than as it was trained
    return role.make_policy(base, **fill_in(acting, _checkpoints(model)))


def _checkpoints(model: Mapping[str, Any]) -> dict[str, str]:
    """Of all trainings that a row refers to, by name."""
    return {n: checkpoint(Path(f), model["checkpoint"]) for n, f in model["checkpoints"].items()}


def _config(model: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration that a model was trained with."""
    versions = sorted(Path(model["folder"]).glob("version_*/config.yaml"), key=os.path.getmtime)
    return check_yaml(versions[-1], repr(str(versions[-1])))


def _trained_on(model: Mapping[str, Any], dataset: str) -> SequenceData:
    return SequenceData(dataset, **_source(_config(model)["data"]["init_args"]))


def _source(given: Mapping[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(SourceOptions)]
    return {k: v for k, v in given.items() if k in names and v is not None}


def _training(model: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a model cost, by training, its learning curve and its configuration."""
    if model is None:
        return {"trainings": {}, "curve": [], "configuration": None}
    records = {n: _read(Path(f) / "training.json") for n, f in model["checkpoints"].items()}
    kept = ("role", "updates", "wall_seconds", "cpu_seconds", "device", "versions")
    return {
        "trainings": {n: {k: r[k] for k in kept} for n, r in records.items()},
        "curve": _read(Path(model["folder"]) / "training.json")["curve"],
        "configuration": without_folders(_config(model)),
    }


def without_folders(value: Any) -> Any:
    """A configuration with names of files in place of where they lie on this machine."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_path else value


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _write(job: Job, record: Mapping[str, Any]) -> None:
    write_whole(job.result, json.dumps(record, indent=1) + "\n")
