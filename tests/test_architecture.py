"""Who may import whom; arguments that are written once; and every shipped configuration parses."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import diffrl_lightning
from diffrl_lightning import cli
from diffrl_lightning.cli import lightning
from diffrl_lightning.cli.lightning import DiffRLCLI
from diffrl_lightning.modules.checkpoints import roles
from diffrl_lightning.tools.benchmarks.grid import fill_in, read_grid
from diffrl_lightning.tools.benchmarks.plan import make_jobs
from diffrl_lightning.tools.benchmarks.runs import fit_args
from diffrl_lightning.tools.configs import find_config, shipped_configs

PACKAGE = Path(diffrl_lightning.__file__).parent
ROOT = PACKAGE.parent
LEAF = {"types", "inputs"}
CALLBACKS = LEAF | {"files", "policies", "metrics", "envs", "data", "figures"}
MODULES = LEAF | {"files", "diffusion", "nets", "policies", "normalizers"}
ALLOWED = {
    "inputs": set(),
    "types": {"inputs"},
    "files": LEAF,
    "normalizers": LEAF,
    "diffusion": LEAF,
    "nets": LEAF,
    "metrics": LEAF,
    "policies": LEAF,
    "envs": LEAF,
    "figures": LEAF,
    "data": LEAF | {"files", "normalizers", "envs"},
    "modules": MODULES,
    "callbacks": CALLBACKS,
    "tools": CALLBACKS | MODULES | {"modules", "callbacks"},
    "public": LEAF | {"modules", "data", "callbacks", "diffusion"},
    "cli": LEAF | {"public", "tools", "modules", "data", "callbacks"},
    "__init__": {"public"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULE_NAMES = {module_name(path) for path in FILES}


def imported_modules(path):
    """Modules of the package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: absolute imports only"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULE_NAMES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part(name):
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    me = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert me in ALLOWED, f"{me} has no place in the architecture"
    found = {part(name) for name in imported_modules(path) if name in MODULE_NAMES}
    assert found - {me, "__init__"} <= ALLOWED[me]


def test_imports_make_no_circle():
    graph = {
        module_name(path): {n for n in imported_modules(path) if n in MODULE_NAMES}
        for path in FILES
    }
    left = dict(graph)
    while free := [name for name, wanted in left.items() if not wanted & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_read_at_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 300


def test_roles_never_import_roles():
    """But for bases, and for the role that they are a kind of."""
    kinds = {"dynamics_agent": {"diffusion_dynamics"}}
    concrete = [cls for cls in roles(diffrl_lightning.Role).values() if not inspect.isabstract(cls)]
    files = {Path(inspect.getfile(cls)).stem for cls in concrete}
    for path in (PACKAGE / "modules").glob("*.py"):
        if path.stem in files:
            names = {n.rsplit(".", 1)[-1] for n in imported_modules(path) if ".modules." in n}
            assert not names & files - {path.stem} - kinds.get(path.stem, set()), path.stem


PUBLIC = [getattr(diffrl_lightning, name) for name in diffrl_lightning.__all__]
BASES = ("InputError", "Role", "Role", "Synthesizer")
CLASSES = [cls for cls in PUBLIC if cls.__name__ not in BASES]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_help_explains_every_argument(cls):
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "it", fail_untyped=True)
    for action in parser._actions:
        if action.dest.startswith("it."):
            assert action.help, action.dest


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_arguments_are_documented_once(cls):
    seen = set()
    for base in cls.__mro__:
        if base.__module__.startswith("diffrl_lightning"):
            text = inspect.getdoc(base) if "__doc__" in vars(base) else ""
            found = set(
                re.findall(
                    r"^    (\w+): ", text.partition("Args:")[2].partition("Raises:")[0], re.M
                )
            )
            found -= {"training", "shared"}
            assert not found & seen, f"{base.__name__} documents {found & seen} again"
            seen |= found


@pytest.mark.parametrize("cls", roles(diffrl_lightning.Role).values(), ids=lambda c: c.__name__)
def test_constructors_take_plain_values(cls):
    """Scalars, tuples and Literals: the one style whose checkpoints reload everywhere."""
    for argument in inspect.signature(cls.__init__).parameters.values():
        plain = not re.search(r"\b(Any|Module|list|dict)\b", str(argument.annotation))
        assert plain or argument.kind is argument.VAR_KEYWORD or argument.name == "self"


NO_ROLES = ("benchmarks/", "compare/", "overlays/")
CONFIGS = {name for name in shipped_configs() if not name.startswith(NO_ROLES)}
ACTING = {name: role for name, role in roles(diffrl_lightning.Role).items() if role.acting}


def parse(args, monkeypatch):
    """What the command line makes of its arguments, without building anything."""

    class ParsedError(Exception):
        pass

    class ParseOnly(DiffRLCLI):
        def instantiate_classes(self):
            raise ParsedError(self.config[self.config.subcommand])

    monkeypatch.setattr(lightning, "DiffRLCLI", ParseOnly)
    with pytest.raises(ParsedError) as parsed:
        cli.main(args)
    return parsed.value.args[0]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shipped_configurations_are_whole(name, monkeypatch):
    """They parse alone, say what they are, and are called by their role and environment."""
    config = parse(["fit", "-c", name], monkeypatch)
    text = shipped_configs()[name].read_text().splitlines()
    assert 1 <= sum(line.startswith("#") for line in text) <= 3
    assert text[0].startswith("# ")
    data = config.data.init_args
    assert data.get("dataset") or data.get("env_id")
    role = getattr(diffrl_lightning, config.model.class_path.rpartition(".")[2])
    if config.rollout.acting is not None:
        assert config.rollout.acting.class_path.endswith(f".{role.acting.__name__}")
    if name != "quickstart":
        folder, _, env = name.partition("/")
        assert folder.replace("_", "") == role.__name__.lower()
        assert config.name == f"{env.removesuffix('_paper')}_{folder}" + "_paper" * (
            env.endswith("_paper")
        )


@pytest.mark.parametrize(
    "name", sorted(n for n in shipped_configs() if n.startswith("benchmarks/"))
)
def test_benchmarks_are_whole(name, monkeypatch, tmp_path):
    """Options of their trainings parse, and their rows are ways in which these roles act."""
    read = read_grid(name)
    for file in (data.dataset for data in read.datasets.values()):
        if file.endswith(".hdf5"):
            (tmp_path / file).touch()
    for job in make_jobs(read, tmp_path, tmp_path, None).values():
        if job.kind == "train" and job.spec["args"]["seed_everything"] == read.grid.seeds[0]:
            ready = replace(job, spec=job.spec | {"checkpoints": {}})
            config = parse(fit_args(ready), monkeypatch)
            assert config.trainer.callbacks[-1].class_path.endswith("TrainingRecord")
            assert config.data.init_args.dataset == job.spec["args"]["data.dataset"]
    for row in read.rows.values():
        if row.training is not None:
            of = read.trainings[row.training]
            env = read.datasets[read.datasets_of(row)[0]].env
            path = find_config(fill_in(of.config, {"env": env}))
            role = ACTING[yaml.safe_load(path.read_text())["model"]["class_path"]]
            for acting in (row.choices or {"": row.acting}).values():
                role.acting(**acting)


@pytest.mark.parametrize("name", ["overlays/gpu", "overlays/ddp", "overlays/debug"])
def test_overlays_are_the_machine_alone(name, monkeypatch):
    plain = parse(["fit", "-c", "quickstart"], monkeypatch)
    laid_over = parse(["fit", "-c", "quickstart", "-c", name], monkeypatch)
    assert laid_over.trainer != plain.trainer
    assert laid_over.model == plain.model
    assert laid_over.rollout.acting == plain.rollout.acting


@pytest.mark.parametrize("name", sorted(n for n in shipped_configs() if n.startswith("compare/")))
def test_rows_of_comparisons_are_ways_to_act(name):
    """Of the role that the file is called by."""
    file = name.removeprefix("compare/").replace("_", "")
    kinds = [role.acting for role in ACTING.values() if file.startswith(role.__name__.lower())]
    assert len(kinds) == 1 or file == "plain"
    for row, choices in yaml.safe_load(shipped_configs()[name].read_text()).items():
        assert not choices or kinds[0](**choices), row
