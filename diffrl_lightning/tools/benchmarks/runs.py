"""What a run of a benchmark does, in a process of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffrl_lightning.callbacks.rollout import roll_out
from diffrl_lightning.callbacks.versions import device_name, revision, versions
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

_PACKAGES = ("diffrl_lightning", "torch", "lightning", "gymnasium", "mujoco", "numpy")


def prepare(job: Job) -> None:
    """Generate or download a dataset where it is not on disk, and write its digest."""
    data = SequenceData(job.spec["dataset"], **_source(job.spec["source"]))
    data.prepare_data()
    record = {"dataset": Path(job.spec["dataset"]).name, **dataset_digest(data)}
    _write(job, record)


def fit_args(job: Job) -> list[str]:
    """The arguments of ``diffrl fit`` that train a model, or go on from its last checkpoint."""
    spec, folder = job.spec, Path(job.spec["folder"])
    checkpoints = {
        n: checkpoint(Path(f), spec["checkpoint"]) for n, f in spec["checkpoints"].items()
    }
    options, last = fill_in(spec["args"], checkpoints), folder / LAST
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
    results: dict[str, dict[str, Any]] = {}
    for name, acting in spec["choices"].items():
        results[name] = {"acting": acting, "seed_means": []}
        for model in spec["models"]:
            data = _trained_on(model, spec["dataset"])
            result = _evaluate(_policy(model, acting, anew=True), data, spec)
            results[name]["seed_means"].append(float(np.mean(result["returns"])))
    chosen = max(results, key=lambda name: float(np.mean(results[name]["seed_means"])))
    record = {"row": spec["row"], "chosen": chosen, "choices": results}
    episodes = {k: spec[k] for k in ("train_seeds", "first_seed", "num_episodes")}
    _write(job, record | episodes)


def test(job: Job) -> None:
    """Roll a model out in the test episodes, once, and write all that a table needs of it."""
    spec, model = job.spec, job.spec["model"]
    acting, chosen = spec["acting"], None
    if spec["choice"]:
        choice = json.loads(Path(spec["choice"]).read_text("utf-8"))
        chosen = choice["chosen"]
        acting = choice["choices"][chosen]["acting"]
    began = time.perf_counter(), time.process_time()
    if model is None:
        data = SequenceData(spec["dataset"], **_source(spec["source"]))
        policy = control_policy(spec["control"], data, min(spec["num_envs"], spec["num_episodes"]))
    else:
        data, policy = (
            _trained_on(model, spec["dataset"]),
            _policy(model, acting, anew=bool(chosen)),
        )
    result = _evaluate(policy, data, spec)
    seconds = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}
    with _recorded_use(spec) as use:
        record = {
            **{k: spec[k] for k in ("benchmark", "row", "seed", "definition", "control")},
            "dataset": spec["dataset_name"],
            "data": json.loads(Path(spec["data"]).read_text("utf-8")),
            "acting": acting,
            "chosen": chosen,
            **result,
            "ref_scores": data.ref_scores,
            "test_seconds": seconds,
            "test_use": use,
            **_training(model),
            "env_id": data.env_id,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision(),
            "device": device_name(torch.device("cpu")),
            "versions": versions(*_PACKAGES),
        }
        _write(job, record)


@contextmanager
def _recorded_use(spec: Mapping[str, Any]) -> Iterator[int]:
    """How often these test episodes were run for this row and seed; the use is written down."""
    use = {k: spec[k] for k in ("row", "dataset_name", "seed")}
    path, line = Path(spec["uses"]), json.dumps(use)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        count = 1 + sum(other.startswith(line[:-1]) for other in file)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        yield count
        file.write(json.dumps(use | {"definition": spec["definition"], "date": now}) + "\n")


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


def _policy(model: Mapping[str, Any], acting: Mapping[str, Any], *, anew: bool) -> Any:
    """A fresh policy of a model, with these fields of its way to act.

    The others are as its configuration has them, or ``anew`` as the class has them, which choices
    mean: they stand beside each other.
    """
    folders, which = model["checkpoints"], model["checkpoint"]
    known = {n: checkpoint(Path(f), which) for n, f in folders.items()}
    role = load_role(checkpoint(Path(model["folder"]), which), "a role")
    base = role.acting() if anew and role.acting else None
    return role.make_policy(base, **fill_in(dict(acting), known))


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
    records = {
        name: json.loads((Path(folder) / "training.json").read_text("utf-8"))
        for name, folder in model["checkpoints"].items()
    }
    kept = ("role", "updates", "wall_seconds", "cpu_seconds", "device", "versions")
    own = json.loads((Path(model["folder"]) / "training.json").read_text("utf-8"))
    return {
        "trainings": {n: {k: r[k] for k in kept} for n, r in records.items()},
        "curve": own["curve"],
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


def _write(job: Job, record: Mapping[str, Any]) -> None:
    os.makedirs(Path(job.result).parent, exist_ok=True)
    write_whole(job.result, json.dumps(record, indent=1) + "\n")
