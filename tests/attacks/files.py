"""Bad YAML: what would run code, what is no YAML, misspelt keys, and values of the wrong kind."""

from __future__ import annotations

from typing import Any

import yaml
from helpers import CONFIGS

from attacks.world import Attack, World


def text(content: Any) -> Any:
    """A fit by a file with this content, over the tiny configurations."""

    def args(world: World) -> list[Any]:
        made = content(world) if callable(content) else content
        return world.fit(None, "-c", world.file("bad.yaml", made))

    return args


def key(path: str, value: Any = 1) -> Any:
    """A fit by a file that sets one key, given with dots, beside the tiny role's own."""

    def args(world: World) -> list[Any]:
        whole = yaml.safe_load((CONFIGS / "diffuser.yaml").read_text())
        inner, (*groups, last) = whole, path.split(".")
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value(world) if callable(value) else value
        file = world.file("bad.yaml", yaml.safe_dump(whole))
        args = world.fit()
        return [*args[:3], "-c", file, *args[5:]]

    return args


def command(world: World) -> dict[str, Any]:
    """A class that would run a command."""
    return {"class_path": "subprocess.Popen", "init_args": {"args": world.touch, "shell": True}}


def function(world: World) -> dict[str, Any]:
    return {"class_path": "os.system", "init_args": {"command": world.touch}}


def rows(content: Any) -> Any:
    """A comparison by a file of rows."""
    return lambda w: ["compare", w.file("rows.yaml", content(w) if callable(content) else content),
                      w.good / "diffuser.ckpt", w.data]  # fmt: skip


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
ROWS = [
    # Code
    ("a Python object", text(lambda w: f"trainer: !!python/object/apply:os.system ['{w.touch}']\n"),
     "bad.yaml|python|tag"),
    ("a Python name", text("trainer: !!python/name:os.system\n"), "bad.yaml|python|tag"),
    ("a Python module", text(lambda w: [w.file("canary_yaml.py", f"import os; os.system('{w.touch}')"),
                                        "trainer: !!python/module:canary_yaml\n"][1]),
                                        "bad.yaml|python|tag"),
    ("another tag", text("trainer: !secret 3\n"), "bad.yaml|secret|tag"),
    ("a function for a model", key("model", function), "os.system"),
    ("a function for data", key("data", function), "os.system"),
    ("a process for a logger", key("trainer.logger", command), "logger|Popen"),
    ("a process among the callbacks", key("trainer.callbacks", lambda w: [command(w)]),
     "callbacks|Popen"),
    ("a process for a strategy", key("trainer.strategy", command), "strategy|Popen"),
    ("a function for a way to act", key("rollout.acting", function), "os.system|acting"),
    ("a class that is nowhere", key("model.class_path", "nowhere.Model"), "nowhere.Model"),
    ("a role for data", key("data.class_path", "Diffuser"), "Diffuser"),
    ("data for a role", key("model.class_path", "SequenceData"), "SequenceData"),
    # No YAML
    ("an open bracket", text("trainer: [1, 2\n"), "bad.yaml"),
    ("tabs", text("trainer:\n\tmax_steps: 3\n"), "bad.yaml"),
    ("a list", text("- 1\n- 2\n"), "bad.yaml"),
    ("a number", text("17\n"), "bad.yaml"),
    ("bytes", text(bytes(range(128, 256))), "bad.yaml"),
    ("a zero byte", text(b"trainer:\n  max_steps: \x00\n"), "bad.yaml"),
    ("a billion laughs", text(BOMB), "bad.yaml|a0"),
    ("an anchor in itself", text("trainer: &a [*a]\n"), "bad.yaml|trainer"),
    ("a folder", lambda w: w.fit(None, "-c", w.inputs), "inputs"),
    ("no such file", lambda w: w.fit(None, "-c", "nowhere.yaml"), "nowhere.yaml"),
    ("deep brackets", text("[" * 5000), "bad.yaml"),
    # Misspelt keys
    ("a misspelt group", key("trainr.max_steps"), "trainer"),
    ("a misspelt key of the trainer", key("trainer.max_stepz"), "max_steps"),
    ("a misspelt key of the model", key("model.init_args.dimm"), "dim"),
    ("a misspelt key of the data", key("data.init_args.batchsize"), "batch_size"),
    ("a misspelt key of rollouts", key("rollout.num_episode"), "num_episodes"),
    ("a misspelt key of acting", key("rollout.acting.init_args.tempreture"), "temperature"),
    ("a misspelt key of checkpoints", key("checkpoint.monitr", "val/loss"), "monitor"),
    ("a misspelt key of synthesis", key("synthesis.num_sample"), "num_samples"),
    ("a misspelt key of a callback", key("trainer.callbacks", [
        {"class_path": "PlanFigure", "init_args": {"num_plan": 3}}]), "num_plans"),
    ("a misspelt init_args", key("model.init_arg", {}), "init_args|init_arg"),
    ("a misspelt seed", key("seed_everythin", 3), "seed_everything"),
    # Values of the wrong kind
    ("a list for a rate", key("model.init_args.lr", [1e-3, 1e-4]), "lr"),
    ("a mapping for a size", key("model.init_args.dim", {"a": 1}), "dim"),
    ("text for a size", key("model.init_args.dim", "eight"), "dim"),
    ("nothing for a size", key("data.init_args.horizon", None), "horizon"),
    ("a number for a list", key("model.init_args.dim_mults", 3), "dim_mults"),
    ("half a step", key("trainer.max_steps", 1.5), "max_steps"),
    ("a date for a dataset", lambda w: [*w.fit("2020-01-01")], "2020-01-01"),
    ("a list for a trainer", key("trainer", [1, 2]), "trainer"),
    ("text for a model", key("model", "a planner"), "a planner|model"),
    ("text for rollouts", key("rollout", "many"), "rollout"),
    # Rows of comparisons
    ("a Python object in rows", rows(lambda w: f"a: !!python/object/apply:os.system ['{w.touch}']\n"),
     "rows.yaml|python|tag"),
    ("rows that are a list", rows("- 1\n"), "rows.yaml|rows|names"),
    ("no rows", rows(""), "rows.yaml|rows|names"),
    ("a misspelt field in a row", rows("a: {tempreture: 1}\n"), "temperature"),
    ("text for a field in a row", rows("a: {temperature: hot}\n"), "temperature"),
]  # fmt: skip
TABLE = [Attack(name, args, words) for name, args, words in ROWS]
