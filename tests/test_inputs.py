"""Ranges: every number that a user may give is in one table, and is refused outside of its range."""

import inspect
import math
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import get_args, get_type_hints

import lightning.pytorch as pl
import numpy as np
import pytest
from jsonargparse import ArgumentParser
from test_architecture import CLASSES

from diffrl_lightning import Diffuser, IDQLActing, SequenceData, TransitionData
from diffrl_lightning.callbacks import Checkpoint
from diffrl_lightning.callbacks.refill import Refill
from diffrl_lightning.cli import TOOLS
from diffrl_lightning.data.online import ReplayData
from diffrl_lightning.envs.make import EnvConfig
from diffrl_lightning.inputs import RANGES, check_ranges
from diffrl_lightning.modules.optimization import clip_gradients
from diffrl_lightning.tools.benchmarks.grid import Grid
from diffrl_lightning.types import Acting, InputError


def tool(name):
    name = name.replace("-", "_")
    return getattr(import_module(f"diffrl_lightning.tools.{name}"), name)


CHECKED = [*CLASSES, ReplayData, Refill]
COMMANDS = [tool(name) for name in TOOLS if name != "configs"]


def arguments(thing):
    """The types and defaults of all arguments, with those that are handed on."""
    if is_dataclass(thing):
        hints = get_type_hints(thing)
        return {f.name: (hints[f.name], f.default) for f in fields(thing)}
    parser = ArgumentParser()
    add = parser.add_class_arguments if inspect.isclass(thing) else parser.add_function_arguments
    add(thing, "it")
    return {
        action.dest.removeprefix("it."): (
            getattr(action, "_typehint", None) or action.type,
            action.default,
        )
        for action in parser._actions
        if action.dest.startswith("it.")
    }


def is_numeric(hint):
    """Whether numbers are all that a type allows, beside None."""
    kinds = [kind for kind in get_args(hint) if kind not in (type(None), ...)]
    return hint in (int, float) or (bool(kinds) and all(map(is_numeric, kinds)))


def numbers(thing):
    return {name: default for name, (hint, default) in arguments(thing).items() if is_numeric(hint)}


def outside(allowed):
    """NaN, infinities and the numbers next to the ends of a range."""
    yield from (math.nan, math.inf, -math.inf, True, "x")
    if allowed.whole:
        yield 8.5
        yield from (int(allowed.low) - 1 if math.isfinite(allowed.low) else math.nan,)
        yield int(allowed.high) + 1
        return
    if math.isfinite(allowed.low):
        yield allowed.low if allowed.above else np.nextafter(allowed.low, -1)
    if math.isfinite(allowed.high):
        yield allowed.high if allowed.below else np.nextafter(allowed.high, 2)


def refuses(make, name):
    allowed = RANGES[name]
    for value in outside(allowed):
        with pytest.raises(InputError, match=rf"^{name}=.* must .*[^.]\.$") as refused:
            make(**{name: (value,) if allowed.many else value})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cls", CHECKED, ids=lambda c: c.__name__)
def test_every_number_of_a_class_is_in_the_table(cls):
    """Its default is in range; outside of it the class is refused, before anything is built."""
    for name, default in numbers(cls).items():
        assert name in RANGES, name
        check_ranges({name: default} if isinstance(default, int | float | tuple) else {})
        refuses(cls, name)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_every_number_of_a_tool_is_in_the_table(command):
    parameters = inspect.signature(command).parameters.values()
    needed = {p.name: "x" for p in parameters if p.default is p.empty and p.kind < p.VAR_KEYWORD}
    own = {p.name for p in parameters}
    for name, default in numbers(command).items():
        assert name in RANGES, name
        check_ranges({name: default} if isinstance(default, int | float) else {})
        if name in own:  # the others are a datamodule's
            refuses(lambda **bad: command(**needed, **bad), name)


def test_every_range_is_of_an_argument():
    named = {"max_episode_steps"}  # of an environment
    for thing in (*CHECKED, *COMMANDS, pl.Trainer, Checkpoint, Grid):
        named |= arguments(thing).keys()
    assert not RANGES.keys() - named


def test_numbers_of_numpy_and_positions_count_too():
    with pytest.raises(InputError, match="action_dim=0 must be at least 1"):
        Diffuser(3, 0, horizon=8)
    with pytest.raises(InputError, match="dim=0 must be at least 1"):
        Diffuser(3, 1, horizon=8, dim=np.int64(0))
    assert IDQLActing(temperature=np.float32(0.5)).temperature == 0.5
    assert IDQLActing(num_candidates=np.int64(3)).num_candidates == 3


def test_arguments_of_classes_of_ones_own_are_numbers():
    """Of other names too; those that the table has are checked before the class is built."""

    class Mine(TransitionData):
        def __init__(self, dataset, *, sharpness=1.0, **shared):
            raise AssertionError("was built")

    with pytest.raises(InputError, match="sharpness=inf must be a finite number"):
        Mine("x", sharpness=math.inf)
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        Mine("x", batch_size=0)


def test_sizes_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match="dim=1000000000 must be at most 16384"):
        Diffuser(3, 1, horizon=8, dim=10**9)
    with pytest.raises(InputError, match="horizon=10000000 must be at most 100000"):
        SequenceData("x", horizon=10**7)


def test_time_limits():
    with pytest.raises(InputError, match="max_episode_steps=0 must be at least 1"):
        EnvConfig("Pendulum-v1", {"max_episode_steps": 0})


def test_the_base_of_ways_to_act_checks_subclasses():
    assert Acting() == Acting()
    with pytest.raises(InputError, match="temperature=-1 must be at least 0"):
        IDQLActing(temperature=-1)


def test_a_negative_bound_of_gradients():
    with pytest.raises(InputError, match=r"gradient_clip_val=-1\.0 must be at least 0"):
        clip_gradients([], -1.0)
