"""The command ``diffrl``: training, testing and the tools. Imports torch only for what needs it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module

from diffrl_lightning import __version__

LIGHTNING = {
    "fit": "train a role, and test its best checkpoint where the configuration says so",
    "validate": "validate a checkpoint",
    "test": "roll out a checkpoint, and write results.json",
    "predict": "write a dataset that a synthesizer draws",
}
TOOLS = {
    "benchmark": "a grid of methods, datasets and training seeds, trained, tested and resumed",
    "report": "tables and figures of benchmarks, with errors over training seeds",
    "compare": "one checkpoint, many ways to act: returns and milliseconds of a decision",
    "quality": "how near synthetic data are to real data",
    "relabel": "a dataset with the rewards of a model",
    "controls": "returns of random and of hand-written policies",
    "generate": "a dataset of PointMaze, walked by a planner",
    "value-ranks": "how well a value orders held-out states by their returns",
    "dynamics-error": "errors of models of dynamics over held-out trajectories",
    "imagination-error": "errors of imagined trajectories against the simulator",
    "skill-error": "errors of latent skills, decoded in held-out states",
    "configs": "list the shipped configurations, print one, or copy it",
}
OVERVIEW = """\
Diffusion models for reinforcement learning: roles that plan, act, judge and imagine, trained from
YAML files on offline data, and rolled out in Gymnasium.

examples:
  diffrl fit -c quickstart             a planner in a maze: data, training and test in two minutes
  diffrl fit -c diffuser/hopper --data.dataset=mine.hdf5 --trainer.max_steps=5000
  diffrl test -c quickstart --ckpt_path=runs/quickstart/version_0/checkpoints/best.ckpt

commands, each with --help; fit -c FILE --print_config prints every option:
"""
_ALL_THREADS = ("controls", "generate")  # the other tools run on one thread


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends it with one sentence and exit code 2.

    Args:
        args: the command and its options; default those of the process.
    """
    command, *rest = [str(a) for a in (sys.argv[1:] if args is None else args)] or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, LIGHTNING | TOOLS))
        print(OVERVIEW + "\n".join(f"  {k:{width}}  {v}" for k, v in (LIGHTNING | TOOLS).items()))
    elif command == "--version":
        print(f"diffrl {__version__}")
    elif command in LIGHTNING:
        with exit_on_bad_input():
            import_module("diffrl_lightning.cli.lightning").run([command, *rest])
    elif command in TOOLS:
        with exit_on_bad_input(f"diffrl {command}"):
            _run_tool(command, rest)
    else:
        near = get_close_matches(command, LIGHTNING | TOOLS, 1)
        hint = f", did you mean {near[0]!r}? There are" if near else ": use one of"
        stop("diffrl", f"{command!r} is no command{hint} {', '.join(LIGHTNING | TOOLS)}.")


def stop(name: str, sentence: str, code: int = 2) -> None:
    """End the program with one sentence."""
    print(f"{name}: error: {sentence}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def exit_on_bad_input(name: str = "diffrl") -> Iterator[None]:
    """End the program with one sentence: exit code 2 for bad input, 1 for a run that can not go on.

    Ctrl+C ends it with 130. What is none of these is a fault of the library, and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:  # Lightning makes one of Ctrl+C
        if isinstance(error.__context__, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        raise
    except Exception as error:
        sentence, code = _sentence(error)
        if sentence is None:
            raise
        stop(name, sentence, code)


def _sentence(error: BaseException) -> tuple[str | None, int]:
    """What to say of an error, and the exit code; None for a fault of the library."""
    from diffrl_lightning.types import InputError, RunError

    cause: BaseException | None = error  # the parser wraps what constructors raise
    while cause is not None:
        match cause:
            case InputError():
                return str(cause), 2
            case RunError():
                return str(cause), 1
            case MemoryError():
                return "There is not enough memory: use less data, or lower data.batch_size.", 1
            case RuntimeError() if "can't allocate memory" in str(cause):  # torch's, on a CPU
                return "There is not enough memory: lower data.batch_size or the model's size.", 1
            case OSError() if cause.filename is not None:
                return f"{cause.filename!r} can not be used ({cause.strerror}): choose another.", 2
            case ModuleNotFoundError():
                return f"{' '.join(str(cause).split()).rstrip('.')}: install it.", 2
        name = type(cause).__name__
        if name == "MisconfigurationException":  # Lightning's, of arguments that exclude each other
            return f"{' '.join(str(cause).split()).rstrip('.')}.", 2
        if name == "OutOfMemoryError":  # torch's
            return "The device has not enough memory: lower data.batch_size or the model's size.", 1
        wraps = isinstance(cause, ValueError)  # as the parser does, without saying what
        cause = cause.__cause__ or (cause.__context__ if wraps else None)
    return None, 1


def _run_tool(command: str, args: list[str]) -> None:
    name = command.replace("-", "_")
    tool = getattr(import_module(f"diffrl_lightning.tools.{name}"), name)
    if command == "configs":
        tool(args)
        return
    import torch

    from diffrl_lightning.cli.parsing import run_function

    if command not in _ALL_THREADS:
        torch.set_num_threads(1)
    run_function(tool, args, prog=f"diffrl {command}")
