"""Who may import whom; arguments that are written once; and every shipped configuration parses."""

import ast
import inspect
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from jsonargparse import ArgumentParser

import diffrl_lightning
from diffrl_lightning import cli
from diffrl_lightning.cli import DiffRLCLI
from diffrl_lightning.modules.checkpoints import roles

PACKAGE = Path(diffrl_lightning.__file__).parent
ROOT = PACKAGE.parent
LEAF = {"types"}
CALLBACKS = LEAF | {"policies", "metrics", "envs", "data", "figures"}
MODULES = LEAF | {"diffusion", "nets", "policies", "normalizers"}
ALLOWED = {
    "types": set(),
    "normalizers": LEAF,
    "diffusion": LEAF,
    "nets": LEAF,
    "metrics": LEAF,
    "policies": LEAF,
    "envs": LEAF,
    "figures": LEAF,
    "data": LEAF | {"normalizers", "envs"},
    "modules": MODULES,
    "callbacks": CALLBACKS,
    "tools": CALLBACKS | MODULES | {"modules", "callbacks"},
    "cli": LEAF | {"tools", "modules", "data", "callbacks"},
    "__init__": LEAF | {"modules", "data", "callbacks", "diffusion"},
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
    found = roles(diffrl_lightning.Role)
    bases = {"base", "environment_model", "synthesizer"}
    files = {Path(inspect.getfile(cls)).stem for cls in found.values()} - bases
    for path in (PACKAGE / "modules").glob("*.py"):
        if path.stem in files:
            names = {n.rsplit(".", 1)[-1] for n in imported_modules(path) if ".modules." in n}
            assert not names & files - kinds.get(path.stem, set()), path.stem


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
            found = set(re.findall(r"^    (\w+): ", text.partition("Args:")[2], re.M))
            found -= {"training", "shared"}
            assert not found & seen, f"{base.__name__} documents {found & seen} again"
            seen |= found


@pytest.mark.parametrize("cls", roles(diffrl_lightning.Role).values(), ids=lambda c: c.__name__)
def test_constructors_take_plain_values(cls):
    """Scalars, tuples and Literals: the one style whose checkpoints reload everywhere."""
    for argument in inspect.signature(cls.__init__).parameters.values():
        text = str(argument.annotation)
        assert argument.name in ("self", "training") or not re.search(r"Any|Module|list|dict", text)


CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "compare")


def files_with(path):
    """An overlay names no class: the experiment that it belongs to comes before it."""
    if "class_path" in yaml.safe_load(path.read_text()).get("model", {}):
        return [path]
    if path.parent.name != "overlays":
        for base in path.parent.glob("*.yaml"):
            if path.stem.startswith(f"{base.stem}_"):
                return [base, path]
        base = "kitchen" if path.parent.name == "diffusion_policy" else "mujoco"
        alone = path.parent / f"{base}_paper.yaml"
        if path.stem.endswith("_paper") and path != alone:
            base = alone.stem
        return [path.parent / f"{base}.yaml", path]
    bases = {"halfcheetah": "diffuser/mujoco.yaml"}
    return [ROOT / "configs" / bases.get(path.stem, "quickstart.yaml"), path]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_shipped_configurations_parse(path):
    pytest.importorskip("gymnasium_robotics")
    args = ["fit", *(a for f in files_with(path) for a in ("-c", str(f)))]
    config = parse(args)
    assert config.fit.model.class_path
    data = config.fit.data.init_args
    assert data.get("dataset") or data.get("env_id")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_an_overlay_drops_no_keyword_of_the_policy(path):
    """A later file's dictionary takes the place of an earlier one's as a whole."""
    texts = [yaml.safe_load(file.read_text()) for file in files_with(path)]
    given = [text.get("rollout", {}).get("policy_kwargs") for text in texts]
    if None not in given:
        assert given[0].keys() <= given[-1].keys()


@pytest.mark.parametrize(
    "role", ["Diffuser", "DecisionDiffuser", "DiffusionPolicy", "DiffusionQL", "IDQL", "LatentQ"]
)
def test_rows_of_comparisons_are_keywords_of_the_policy(role):
    name = re.sub("(?<=[a-z])(?=[A-Z])", "_", role).lower()
    role = getattr(diffrl_lightning, role)
    keywords = set(inspect.signature(role.make_policy).parameters)
    paths = list((ROOT / "configs" / "compare").glob(f"{name}*.yaml"))
    assert paths
    for path in paths:
        for row, kwargs in yaml.safe_load(path.read_text()).items():
            assert set(kwargs) <= keywords, row


def parse(args):
    """What the command line makes of its arguments, without building anything."""

    class ParsedError(Exception):
        def __init__(self, config):
            self.config = config

    class ParseOnly(DiffRLCLI):
        def before_instantiate_classes(self):
            raise ParsedError(self.config)

    with patch.object(cli, "DiffRLCLI", ParseOnly), pytest.raises(ParsedError) as parsed:
        cli.main(args)
    return parsed.value.config
