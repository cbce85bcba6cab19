"""A benchmark's YAML file: rows, datasets and training seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from diffrl_lightning.inputs import DEVELOPMENT_SEED, InputError, check_ranges, one_of, within
from diffrl_lightning.tools.configs import check_yaml, find_config

TEST_SEED = 10_000  # of the first test episode
_REFERENCE = re.compile(r"\{(\w+)\}")  # of another training's checkpoint
_NAME = re.compile(r"\w[\w .,:=+()-]*")
_KINDS: dict[Any, str] = {
    str: "a text",
    dict: "NAME: VALUE lines",
    list: "a list",
    int: "a whole number",
    float: "a number",
}
_Part = TypeVar("_Part", bound="_FromYAML")


class _FromYAML:
    """A part of the file, made of a dictionary."""

    @classmethod
    def read(cls: type[_Part], found: Any, where: str) -> _Part:
        """Refuse what is no dictionary of this part's keys and types.

        Raises:
            InputError: naming the place, and what there may be.
        """
        if not isinstance(found, dict):
            raise InputError(f"{where} must hold NAME: VALUE lines, not {found!r}.")
        hints = get_type_hints(cls)
        for key, value in found.items():
            if key not in hints:
                raise InputError(f"{where} has no key {key!r}: choose among {', '.join(hints)}.")
            kinds = {get_origin(kind) or kind for kind in _alternatives(hints[key])}
            if type(value) not in kinds | ({int} if float in kinds else set()):
                named = " or ".join(_KINDS[kind] for kind in _KINDS if kind in kinds)
                raise InputError(f"{key} of {where} must be {named}, not {value!r}.")
        for name in fields(cls):  # type: ignore[arg-type]
            if name.default is name.default_factory is MISSING and name.name not in found:
                raise InputError(f"{where} needs {name.name!r}.")
        return cls(**found)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


@dataclass(frozen=True, kw_only=True)
class Data(_FromYAML):
    """A dataset of a grid.

    Args:
        dataset: a file, looked for under ``--data_dir`` too, a Minari id, or a PointMaze to generate.
        env: word that ``{env}`` stands for in names of configurations: ``hopper``.
        args: options of ``diffrl fit`` for every training on it.
    """

    dataset: str
    env: str = ""
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Training(_FromYAML):
    """A model that is trained with every training seed on every dataset whose rows need it.

    Args:
        config: configuration of ``diffrl fit``, or several, later ones over earlier ones.
        args: options over it; ``{NAME}`` in a value is the checkpoint of another training, of the same
            dataset and seed, which is trained before.
        minutes: that one run takes, for estimates before any has ended.
    """

    config: str | list[str]
    args: dict[str, Any] = field(default_factory=dict)
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row(_FromYAML):
    """A line of the table: a trained model and how it acts.

    Args:
        training: which model; without one, ``control`` acts.
        acting: fields of the role's way to act, over those of its configuration; values may refer to
            checkpoints as those of trainings do. ``chosen``: the best of ``choices``.
        choices: names, each with the fields that it sets, over the class's own defaults, or a file of
            such rows (``compare/idql``). Development episodes choose among them.
        control: ``random`` actions, or the waypoint ``planner`` of PointMaze, in place of a model.
        datasets: names of the datasets that it is for; default all.
    """

    training: str | None = None
    acting: str | dict[str, Any] = field(default_factory=dict)
    choices: str | dict[str, Any] | None = None
    control: str | None = None
    datasets: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Grid(_FromYAML):
    """A benchmark: every row on every dataset with every training seed.

    Args:
        datasets: by name.
        trainings: by name.
        rows: by name.
        seeds: training seeds.
        num_episodes: test episodes of each run; their seeds begin at 10,000, those of development
            episodes, which choose, at 1,000,000.
        development_episodes: for each choice and training seed.
        choose_on: how many of the training seeds' models choose; default all.
        checkpoint: ``last``, or ``best`` where validations choose it.
        num_envs: environments that run at once.
        threads: of a run.
        num_gpus: of a run, or a share of one, for ``engine: ray``.
    """

    datasets: dict[str, Any]
    rows: dict[str, Any]
    seeds: list[int]
    trainings: dict[str, Any] = field(default_factory=dict)
    num_episodes: int = 20
    development_episodes: int = 10
    choose_on: int | None = None
    checkpoint: str = "last"
    num_envs: int = 20
    threads: int = 1
    num_gpus: float = 0.0


@dataclass(frozen=True)
class Benchmark:
    """A grid that was read and checked."""

    name: str
    grid: Grid
    datasets: Mapping[str, Data]
    trainings: Mapping[str, Training]
    rows: Mapping[str, Row]

    def datasets_of(self, row: Row) -> list[str]:
        """Names of the datasets that a row is for."""
        return list(row.datasets if row.datasets is not None else self.datasets)

    def references(self, *values: Any) -> list[str]:
        """Trainings whose checkpoints these values refer to, those within dictionaries too."""
        found: list[str] = []
        for value in values:
            if isinstance(value, dict):
                found += self.references(*value.values())
            elif isinstance(value, str):
                found += [n for n in _REFERENCE.findall(value) if n in self.trainings]
        return list(dict.fromkeys(found))


def read_grid(path: str) -> Benchmark:
    """Read and check a grid.

    Args:
        path: a YAML file, or a shipped one (``benchmarks/core``).

    Raises:
        InputError: naming the place of the first mistake.
    """
    file = find_config(path)
    grid = Grid.read(check_yaml(file, repr(path)), repr(path))
    check_ranges(vars(grid) | {"train_seeds": grid.seeds})
    within(1, DEVELOPMENT_SEED - TEST_SEED, num_episodes=grid.num_episodes)
    one_of(("last", "best"), checkpoint=grid.checkpoint)
    benchmark = Benchmark(
        file.stem,
        grid,
        {
            n: Data.read({"dataset": d} if isinstance(d, str) else d, f"the dataset {n!r}")
            for n, d in grid.datasets.items()
        },
        {n: Training.read(t, f"the training {n!r}") for n, t in grid.trainings.items()},
        {n: _read_row(n, r) for n, r in grid.rows.items()},
    )
    _check(benchmark)
    return benchmark


def _read_row(name: str, found: Any) -> Row:
    where = f"the row {name!r}"
    row = Row.read(found, where)
    if (row.training is None) == (row.control is None):
        raise InputError(f"{where} needs a training or a control, one of the two.")
    one_of(("random", "planner"), control=row.control)
    if isinstance(row.acting, str):
        one_of(("chosen",), acting=row.acting)
    if (row.acting == "chosen") != (row.choices is not None):
        raise InputError(f"{where}: give choices with acting: chosen, and with nothing else.")
    if row.choices is None:
        return row
    choices = row.choices
    if isinstance(choices, str):
        choices = check_yaml(find_config(choices), repr(choices))
    wrong = [n for n, acting in choices.items() if not isinstance(acting, dict | None)]
    if wrong or not choices:
        raise InputError(f"{where}: choices must hold names, each with the fields that it sets.")
    return replace(row, choices={n: acting or {} for n, acting in choices.items()})


def _check(benchmark: Benchmark) -> None:
    """Refuse names that mean nothing, or the same, and trainings that wait for each other."""
    grid = benchmark.grid
    if not grid.seeds or len(set(grid.seeds)) < len(grid.seeds):
        raise InputError("seeds must be a list of different training seeds.")
    for kind in ("datasets", "trainings", "rows"):
        folders: dict[str, str] = {}
        for name in getattr(benchmark, kind):
            if not _NAME.fullmatch(name):
                raise InputError(f"The name {name!r} in {kind} has signs that no file name has.")
            if (other := folders.setdefault(slug(name), name)) != name:
                raise InputError(
                    f"{other!r} and {name!r} in {kind} are too much alike: rename one."
                )
    for name, row in benchmark.rows.items():
        _known(row.training, benchmark.trainings, f"the row {name!r}")
        for dataset in row.datasets or ():
            _known(dataset, benchmark.datasets, f"the row {name!r}")
    for name in benchmark.trainings:
        upstream(benchmark, name)


def _known(name: str | None, names: Mapping[str, Any], where: str) -> None:
    if name is not None and name not in names:
        raise InputError(f"{where} names {name!r}: choose among {', '.join(names) or 'none'}.")


def upstream(benchmark: Benchmark, name: str, *, below: Sequence[str] = ()) -> list[str]:
    """The trainings that a training needs, the first to run first, itself last.

    Raises:
        InputError: if it needs itself.
    """
    if name in below:
        raise InputError(f"The training {name!r} waits for itself: {' -> '.join([*below, name])}.")
    found: list[str] = []
    for needed in benchmark.references(benchmark.trainings[name].args):
        found += upstream(benchmark, needed, below=[*below, name])
    return list(dict.fromkeys([*found, name]))


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_").lower()


def fill_in(value: Any, known: Mapping[str, str]) -> Any:
    """Put words and checkpoints in place of ``{NAME}``, within dictionaries too."""
    if isinstance(value, dict):
        return {key: fill_in(inner, known) for key, inner in value.items()}
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: known.get(found[1], found[0]), value)
    return value


def find_data(dataset: str, data_dir: str | Path) -> str:
    """A dataset's path under a folder, if it is a file there or by itself, else its name.

    Raises:
        InputError: if the name is a file's and there is none.
    """
    for path in (Path(data_dir) / dataset, Path(dataset)):
        if path.is_file():
            return str(path.resolve())
    if dataset.endswith((".hdf5", ".h5", ".npz")):
        raise InputError(f"There is no {dataset!r} in {str(data_dir)!r}: give its --data_dir.")
    return dataset
