"""A grid of runs: its plan, its protocol, and what is left of it whatever is killed."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from helpers import CONFIGS, TINY, diffrl_command

from diffrl_lightning.inputs import DEVELOPMENT_SEED
from diffrl_lightning.tools.benchmark import benchmark
from diffrl_lightning.tools.benchmarks.estimates import estimate
from diffrl_lightning.tools.benchmarks.grid import TEST_SEED, read_grid
from diffrl_lightning.tools.benchmarks.jobs import still_to_do
from diffrl_lightning.tools.benchmarks.plan import make_jobs
from diffrl_lightning.tools.benchmarks.runs import without_folders
from diffrl_lightning.types import InputError

SECONDS = ("wall_seconds", "cpu_seconds", "test_seconds", "decision_ms", "date", "revision")


def grid(folder, **changes):
    """A grid of tiny roles, as a file."""
    small = {"trainer.max_steps": 60, "trainer.val_check_interval": 10}

    def training(role, **more):
        args = small | {"rollout.val_episodes": 1} | more
        return {"config": [TINY, str(CONFIGS / f"{role}.yaml")], "args": args}

    found = {
        "datasets": {
            "pendulum": {
                "dataset": "pendulum.hdf5",
                "args": {"data.env_kwargs": {"max_episode_steps": 6}},
            }
        },
        "trainings": {
            "cloning": training("behaviour_cloning"),
            "value": training("trajectory_value", **{"rollout.val_episodes": 0}),
            "planner": training("diffuser", **{"model.normalizer": "gaussian"}),
        },
        "rows": {
            "Cloning": {"training": "cloning"},
            "Planner": {
                "training": "planner",
                "acting": "chosen",
                "choices": {
                    "drawn": {"num_inference_steps": 2},
                    "by value": {"value_ckpt": "{value}", "num_candidates": 2},
                },
            },
            "random": {"control": "random"},
        },
        "seeds": [0, 1],
        "num_episodes": 3,
        "development_episodes": 2,
        "choose_on": 1,
        "checkpoint": "best",
    } | changes
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(found))
    return str(path)


@pytest.fixture
def jobs(tmp_path, pendulum_file):
    return make_jobs(read_grid(grid(tmp_path)), tmp_path / "out", pendulum_file.parent, None)


def start(path, output, data, *more):
    """The command, in a process of its own."""
    command = ("benchmark", path, f"--output={output}", f"--data_dir={data}", "--workers=2", *more)
    return subprocess.Popen(
        diffrl_command(*command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )


def figures(output):
    """All results of a benchmark, without times."""
    found = {}
    for path in sorted(Path(output).glob("tiny/*/*/*.json")):
        record = json.loads(path.read_text())
        record["trainings"] = {
            name: {k: v for k, v in training.items() if k not in SECONDS}
            for name, training in record.get("trainings", {}).items()
        }
        record["curve"] = [
            {k: v for k, v in point.items() if not k.endswith(("_seconds", "_ms"))}
            for point in record.get("curve", [])
        ]
        record.pop("configuration", None)  # names folders of versions
        found[str(path.relative_to(output))] = {k: v for k, v in record.items() if k not in SECONDS}
    return found


def test_every_run_comes_after_what_it_needs(jobs):
    seen = set()
    for name, job in jobs.items():
        assert seen.issuperset(job.needs), name
        seen.add(name)
    assert list(jobs) == [
        "prepare pendulum",
        "train cloning on pendulum with seed 0",
        "test Cloning on pendulum with seed 0",
        "train planner on pendulum with seed 0",
        "train value on pendulum with seed 0",
        "choose Planner on pendulum",
        "test Planner on pendulum with seed 0",
        "test random on pendulum with seed 0",
        "train cloning on pendulum with seed 1",
        "test Cloning on pendulum with seed 1",
        "train planner on pendulum with seed 1",
        "train value on pendulum with seed 1",
        "test Planner on pendulum with seed 1",
    ]
    test = jobs["test Planner on pendulum with seed 1"]
    assert test.needs == (
        "prepare pendulum",
        "train planner on pendulum with seed 1",
        "train value on pendulum with seed 1",
        "choose Planner on pendulum",
    )
    assert json.loads(test.to_json())["spec"] == test.spec


def test_choosing_and_judging_share_no_episode(jobs):
    of = {kind: [j.spec for j in jobs.values() if j.kind == kind] for kind in ("choose", "test")}
    seeds = {
        kind: {s["first_seed"] + i for s in specs for i in range(s["num_episodes"])}
        for kind, specs in of.items()
    }
    assert min(seeds["test"]) == TEST_SEED
    assert min(seeds["choose"]) == DEVELOPMENT_SEED
    assert not seeds["test"] & seeds["choose"]


def test_too_many_test_episodes_would_reach_those_of_development(tmp_path):
    many = DEVELOPMENT_SEED - TEST_SEED
    read_grid(grid(tmp_path, num_episodes=many))
    with pytest.raises(InputError, match="num_episodes"):
        read_grid(grid(tmp_path, num_episodes=many + 1))


def test_models_of_finished_tests_are_not_needed(jobs):
    name = "test Cloning on pendulum with seed 1"
    for job in jobs.values():
        if job.kind == "choose" or job.name.endswith("seed 0"):
            Path(job.result).parent.mkdir(parents=True, exist_ok=True)
            seconds = (
                {"wall_seconds": 120} if job.kind == "train" else {"test_seconds": {"wall": 30}}
            )
            Path(job.result).write_text(json.dumps(seconds))
    left = [job.name for job in still_to_do(jobs)]
    assert name in left
    assert "prepare pendulum" in left
    assert not [n for n in left if n.endswith("seed 0") or n.startswith("choose")]
    minutes = estimate(jobs)
    assert minutes[name] == 0.5
    assert minutes["train value on pendulum with seed 1"] == 2.0


def test_a_result_of_another_definition_is_refused(tmp_path, jobs):
    test = jobs["test Cloning on pendulum with seed 0"]
    result = Path(test.result)
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"definition": test.spec["definition"]}))
    read = read_grid(grid(tmp_path))
    data = Path(test.spec["dataset"]).parent
    assert make_jobs(read, tmp_path / "out", data, None)[test.name].done
    found = yaml.safe_load(Path(grid(tmp_path)).read_text())
    found["trainings"]["cloning"]["args"]["model.lr"] = 0.1
    other = read_grid(grid(tmp_path, trainings=found["trainings"]))
    with pytest.raises(
        InputError, match="another definition of its row: give the row another name"
    ):
        make_jobs(other, tmp_path / "out", data, None)


WRONG = {
    "has no key 'row'": {"row": {}},
    "must hold NAME: VALUE lines": {"rows": {"a": 3}},
    "the row 'a' needs a training or a control": {"rows": {"a": {}}},
    "the row 'a' names 'nothing': choose among cloning": {"rows": {"a": {"training": "nothing"}}},
    "control='clever' is unknown": {"rows": {"a": {"control": "clever"}}},
    "acting='best' is unknown": {"rows": {"a": {"training": "cloning", "acting": "best"}}},
    "give choices with acting: chosen": {
        "rows": {"a": {"training": "cloning", "acting": "chosen"}}
    },
    "too much alike": {"rows": {"a b": {"control": "random"}, "a_b": {"control": "random"}}},
    "signs that no file name has": {"rows": {"../a": {"control": "random"}}},
    "seeds must be a list of different": {"seeds": [1, 1]},
    "seeds=.* must be at least 0": {"seeds": [-1]},
    "checkpoint='first' is unknown": {"checkpoint": "first"},
    "num_episodes of .* must be a whole number": {"num_episodes": "many"},
    "num_episodes of .* must be a whole number, not True": {"num_episodes": True},
    "the training 'a' needs 'config'": {"trainings": {"a": {}}},
    "waits for itself: a -> b -> a": {
        "trainings": {
            "cloning": {"config": "quickstart"},
            "value": {"config": "quickstart"},
            "planner": {"config": "quickstart"},
            "a": {"config": "quickstart", "args": {"model.x_ckpt": "{b}"}},
            "b": {"config": "quickstart", "args": {"model.x_ckpt": "{a}"}},
        }
    },
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_grid_is_a_sentence(sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        read_grid(grid(tmp_path, **WRONG[sentence]))


def test_names_that_are_not_there(tmp_path, pendulum_file):
    read = read_grid(grid(tmp_path))
    with pytest.raises(InputError, match="only names 'nobody': choose among Cloning"):
        make_jobs(read, tmp_path, pendulum_file.parent, ["nobody"])
    with pytest.raises(InputError, match=r"There is no 'pendulum.hdf5' in .*: give its --data_dir"):
        make_jobs(read, tmp_path, tmp_path, None)


def test_configurations_name_no_folder():
    found = {"data": {"dataset": "/a/b.hdf5", "paths": ["/a/c", "d/e"], "env_id": "Hopper-v5"}}
    kept = {"data": {"dataset": "b.hdf5", "paths": ["c", "d/e"], "env_id": "Hopper-v5"}}
    assert without_folders(found) == kept


def test_a_dry_run_runs_nothing(tmp_path, pendulum_file, capsys):
    benchmark(
        grid(tmp_path),
        output=str(tmp_path / "out"),
        data_dir=str(pendulum_file.parent),
        only=["Cloning"],
        workers=2,
        dry_run=True,
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith(
        "5 of 5 runs to do, about 0.2 hours of one run at a time, 0.1 with 2"
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pendulum_file):
    """A grid that ran in one piece."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = start(grid(folder), folder / "out", pendulum_file.parent)
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    return folder / "out"


@pytest.mark.slow
def test_one_json_a_run(undisturbed):
    found = figures(undisturbed)
    names = [name.removeprefix("tiny/pendulum/") for name in found]
    tests = [
        "cloning/seed_0",
        "cloning/seed_1",
        "planner/seed_0",
        "planner/seed_1",
        "random/seed_0",
    ]
    assert sorted(names) == sorted(f"{n}.json" for n in [*tests, "planner/choice"])
    choice = found["tiny/pendulum/planner/choice.json"]
    means = {n: c["seed_means"] for n, c in choice["choices"].items()}
    assert choice["chosen"] == max(means, key=means.get)
    for path in Path(undisturbed).glob("tiny/pendulum/*/seed_*.json"):
        record = json.loads(path.read_text())
        assert record["episode_seeds"] == [TEST_SEED, TEST_SEED + 1, TEST_SEED + 2]
        assert len(record["returns"]) == len(record["lengths"]) == 3
        assert len(record["data"]["sha256"]) == 64
        assert record["test_use"] == 1
        assert record["versions"]["torch"]
        if record["control"]:
            continue
        steps = [point["step"] for point in record["curve"]]
        assert steps == [10, 20, 30, 40, 50, 60]
        assert all("val/return_mean" in point for point in record["curve"])
        cpu = [point["cpu_seconds"] for point in record["curve"]]
        assert cpu == sorted(cpu)
        assert record["configuration"]["trainer"]["max_steps"] == 60
        assert str(undisturbed) not in path.read_text(), "no folders of this machine"
        assert all(t["updates"] == 60 for t in record["trainings"].values())
    uses = (undisturbed / "tiny" / "test_uses.jsonl").read_text().splitlines()
    assert len(uses) == 5


@pytest.mark.slow
def test_what_is_done_is_skipped(undisturbed, pendulum_file):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.json")}
    run = start(grid(undisturbed.parent), undisturbed, pendulum_file.parent)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 0
    assert "All 13 runs are done" in said
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.json")} == before


@pytest.mark.slow
def test_killed_at_random_it_ends_alike(undisturbed, tmp_path, pendulum_file):
    """SIGKILL five times, of the command and of one of its runs in turn."""
    chance, path = random.Random(0), grid(tmp_path)
    for kill in range(5):
        run = start(path, tmp_path / "out", pendulum_file.parent)
        time.sleep(chance.uniform(8, 14))
        assert run.poll() is None, run.communicate()[0]
        if kill % 2:
            children = subprocess.run(
                ["pgrep", "-P", str(run.pid)], capture_output=True, text=True
            ).stdout.split()
            os.kill(int(chance.choice(children)), signal.SIGKILL)
            time.sleep(3)
        run.kill()
        run.wait()
    run = start(path, tmp_path / "out", pendulum_file.parent)
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    assert figures(tmp_path / "out") == figures(undisturbed)


@pytest.mark.slow
def test_a_run_that_raises_leaves_the_others_whole(undisturbed, tmp_path, pendulum_file):
    found = yaml.safe_load(Path(grid(tmp_path)).read_text())
    found["trainings"]["cloning"]["args"]["model.lr"] = -1
    path = grid(tmp_path, trainings=found["trainings"])
    run = start(path, tmp_path / "out", pendulum_file.parent)
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 1
    last = said.strip().splitlines()[-1]
    assert "4 of 13 runs failed" in last
    assert "train cloning on pendulum with seed 0: lr=-1.0 must be above 0" in last
    assert "test Cloning on pendulum with seed 1: what it needs failed" in last
    whole = figures(undisturbed)
    kept = figures(tmp_path / "out")
    assert kept == {n: f for n, f in whole.items() if "/cloning/" not in n}


@pytest.mark.slow
def test_ray_gives_equal_figures(undisturbed, tmp_path, pendulum_file):
    pytest.importorskip("ray", reason="Ray is an extra: pip install -e '.[ray]'")
    run = start(grid(tmp_path), tmp_path / "out", pendulum_file.parent, "--engine=ray")
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    assert figures(tmp_path / "out") == figures(undisturbed)
