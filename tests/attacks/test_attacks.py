"""Bad input ends with exit code 2 and one sentence; nothing is written, and no code of it runs."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attacks import arguments, checkpoints, data, environments, files, minari_data
from attacks.world import World, make_good
from diffrl_lightning.cli import main

TABLES = {
    "data": data.TABLE + minari_data.TABLE,
    "checkpoints": checkpoints.TABLE,
    "yaml": files.TABLE,
    "arguments": arguments.TABLE,
    "environments": environments.TABLE,
}
CASES = {f"{kind}: {a.name}": a for kind, table in TABLES.items() for a in table}
ALONE = (  # tried in processes of their own, as a user would
    "data: an entry point that runs a command, without spaces",
    "data: pickled objects in an npz",
    "data: 1e9 rows declared",
    "checkpoints: pickled",
    "checkpoints: half of it",
    "yaml: a Python object",
    "arguments: a seed below 0",
    "environments: its constructor raises KeyError",
)
JARGON = (
    "Union",
    "NestedType",
    "<class",
    "subtypes",
    "NoneType",
    "Traceback",
    "jsonargparse",
    "type null",
)
LONGEST = 400  # letters
SECONDS = 20  # what hangs
GIGABYTES = 3  # above what the tests themselves take


def marked():
    """Every fourth attack of a table is among the quick tests, the others among the slow ones."""
    for table in TABLES.values():
        for number, attack in enumerate(table):
            yield pytest.param(attack, marks=pytest.mark.slow if number % 4 else ())


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return make_good(tmp_path_factory.mktemp("good"), patch)


@pytest.fixture
def world(tmp_path, good, monkeypatch):
    """An empty folder to work in, and the inputs beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "inputs")
    return World(tmp_path, good)


@pytest.fixture
def bounded():
    """Stop what hangs, and what takes all memory; leave the process as it was."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    before, modules = dict(os.environ), set(sys.modules)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    taken = pages * resource.getpagesize()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + GIGABYTES * 2**30, limits[1]))
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("canary_"):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(marked()), ids=CASES)
def test_bad_input(case, world, bounded, capfd):
    args = [str(a) for a in case.args(world)]
    before = listing(world)
    capfd.readouterr()
    code: object = 0
    try:
        main(args)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = f"traceback of {type(error).__name__}: {str(error)[:80]!r}"
    said = capfd.readouterr()
    found = problems(case, code, said.out + said.err, said.err)
    check(case, found, world, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_bad_input_to_a_process_of_its_own(name, world):
    case = CASES[name]
    args = [str(a) for a in case.args(world)]
    before = listing(world)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    limited = f'ulimit -v {16 * 2**20}; exec {sys.executable} -m diffrl_lightning "$@"'
    ended = subprocess.run(
        ["bash", "-c", limited, "-", *args], env=env, capture_output=True, text=True, timeout=120
    )
    found = problems(case, ended.returncode, ended.stdout + ended.stderr, ended.stderr)
    check(case, found, world, before)


def test_there_are_enough():
    """Of every kind, and not ranges of arguments for the most part."""
    assert len(CASES) == sum(map(len, TABLES.values())) >= 120
    assert min(map(len, TABLES.values())) >= 15
    assert len(arguments.RANGES) <= 35


def problems(case, code, everything, errors):
    """What is wrong with how it ended."""
    found = []
    if code in (0, None):
        found.append("passed silently")
    elif code != 2 and not (case.late and code == 1):
        found.append(code if isinstance(code, str) else f"exit code {code}")
    if "Traceback" in everything:
        found.append("prints a traceback")
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    sentence = re.fullmatch(r"diffrl(?: [\w-]+)?: error: (.+[.?])", last)
    if code not in (0, None) and not isinstance(code, str):
        if not sentence:
            found.append(f"no sentence: {last[:200]!r}")
        else:
            found += wording(sentence[1], case.words)
    return found


def wording(sentence, words):
    """What is wrong with a sentence."""
    found = [f"jargon {word!r}" for word in JARGON if word in sentence]
    if len(sentence) > LONGEST:
        found.append(f"{len(sentence)} letters")
    if not any(word.lower() in sentence.lower() for word in words.split("|")):
        found.append(f"says nothing of {words!r}")
    return [f"{problem}: {sentence[:200]!r}" for problem in found]


def listing(world):
    """Every file, with its size, but for the cache."""
    paths = [p for p in world.inputs.parent.rglob("*") if "cache" not in p.parts]
    here = {
        str(p): p.lstat().st_size for p in paths if not p.is_dir() and "__pycache__" not in p.parts
    }
    folders = {str(p) for p in paths if p.is_dir() and "__pycache__" not in p.parts}
    return here, folders - {str(world.minari)}


def check(case, found, world, before):
    """Fail with all that is wrong."""
    after = listing(world)
    if world.canary.exists():
        found.append("code ran")
    after[0].pop(str(world.canary), None)
    if after != before and not case.late:
        new = sorted(
            {Path(p).name for p in (after[0].keys() | after[1]) - before[0].keys() - before[1]}
        )
        found.append(f"wrote {', '.join(new) or 'over its inputs'}")
    cache = world.inputs.parent / "cache"
    if list(cache.glob("tmp*")):
        found.append("left half a cache")
    assert not found, f"{case.name}: " + "; ".join(found) + (f" ({case.why})" if case.why else "")


def _stop(number, frame):
    raise Hung(f"hung for {SECONDS} s")


class Hung(BaseException):
    """Nothing in between is to catch it."""
