"""Who may import whom, as the README draws it; and every shipped configuration parses."""

import ast
import inspect
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

import diffrl_lightning
from diffrl_lightning import cli
from diffrl_lightning.cli import DiffRLCLI

PACKAGE = Path(diffrl_lightning.__file__).parent
ROOT = PACKAGE.parent
TORCH = {"types"}
ALLOWED = {
    "types": set(),
    "normalizers": TORCH,
    "diffusion": TORCH,
    "nets": TORCH,
    "metrics": TORCH,
    "policies": TORCH,
    "envs": TORCH,
    "data": TORCH | {"normalizers", "envs"},
    "modules": TORCH | {"diffusion", "nets", "policies", "normalizers"},
    "callbacks": TORCH | {"policies", "metrics", "envs", "data"},
    "cli": TORCH | {"modules", "data", "callbacks"},
    "compare": TORCH | {"modules", "data", "callbacks", "cli"},
    "controls": TORCH | {"policies", "data", "callbacks", "envs", "cli"},
    "dynamics_error": TORCH | {"modules", "data", "normalizers", "cli"},
    "generate": {"data", "cli"},
    "imagination_error": TORCH | {"modules", "data", "envs", "cli"},
    "quality": TORCH | {"data", "envs", "metrics", "callbacks", "cli"},
    "relabel": TORCH | {"modules", "data", "cli"},
    "skill_error": TORCH | {"modules", "data", "envs", "dynamics_error", "cli"},
    "value_ranks": TORCH | {"modules", "data", "nets", "normalizers", "cli"},
    "__init__": TORCH | {"modules", "data", "callbacks"},
    "__main__": {"cli"},
}


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: absolute imports only"
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == PACKAGE.name and len(pieces) > 1:
                candidate = PACKAGE / pieces[1]
                if candidate.is_dir() or candidate.with_suffix(".py").is_file():
                    yield pieces[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports(path):
    me = part(path)
    assert me in ALLOWED, f"{me} has no place in the architecture"
    assert set(imported_parts(path)) - {me} <= ALLOWED[me]


def test_roles_never_import_roles():
    for path in (PACKAGE / "modules").glob("*.py"):
        if path.stem in ("__init__", "base", "checkpoints", "optimization"):
            continue
        text = path.read_text()
        imports = [
            line.split()[1] for line in text.splitlines() if "diffrl_lightning.modules" in line
        ]
        assert len(imports) == 1
        base = imports[0].rsplit(".", 1)[-1]
        kinds = {"dynamics_agent": "diffusion_dynamics"}  # a role that is a kind of another
        assert base in ("base", "synthesizer", kinds.get(path.stem)), "bases alone"


@pytest.mark.parametrize(
    "name", [n for n in diffrl_lightning.__all__ if n not in ("InputError", "Role")]
)
def test_constructors_take_plain_values_that_are_documented(name):
    """Scalars, tuples and Literals: the one style whose checkpoints reload everywhere."""
    cls = getattr(diffrl_lightning, name)
    for argument in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        assert argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL), name
    if hasattr(cls, "compute_loss"):
        for argument in inspect.signature(cls.__init__).parameters:
            if argument not in ("self", "args", "kwargs"):
                assert f"{argument}:" in cls.__doc__, f"{name} does not explain {argument}"


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
