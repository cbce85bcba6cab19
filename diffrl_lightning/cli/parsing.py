"""Parsers whose errors are one sentence that names what is accepted."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from diffrl_lightning import public
from diffrl_lightning.types import Acting

# Around the sentence of a class's own parser, in the messages of the parsers around it.
_MARKS = "\x02{}\x03"

set_parsing_settings(subclasses_enabled=[Acting])  # files and options merge fields of ways to act


class SentenceErrors:
    """What parsers say of bad arguments, in place of types and usage."""

    _described: type | None = None

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Remember the class, whose arguments an error is to name."""
        self._described = theclass
        return super().add_class_arguments(theclass, *args, **kwargs)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program, or hand the sentence to the parser around this one."""
        inner = re.search(_MARKS.format("(.*?)"), message, re.DOTALL)
        nested = not self.exit_on_error  # type: ignore[attr-defined]
        if inner:
            sentence = inner[1]
        elif nested and (unknown := re.fullmatch(r"Option '(.+)' is not accepted", message)):
            names = [a.dest for a in self._actions if "help" not in a.dest]  # type: ignore[attr-defined]
            sentence = _unknown(self._described, unknown[1], names)
        else:
            sentence = _no_class(message) or _plain(message)
        if nested:
            super().error(_MARKS.format(sentence), ex)  # type: ignore[misc]
        prog = self.prog.replace(" [options]", "")  # type: ignore[attr-defined]
        print(f"{prog}: error: {sentence}", file=sys.stderr)
        sys.exit(2)


class SentenceParser(SentenceErrors, LightningArgumentParser):
    """Lightning's parser."""


class _ToolParser(SentenceErrors, ArgumentParser):
    pass


def run_function(function: Callable[..., Any], args: Sequence[str], *, prog: str) -> Any:
    """Call a function with arguments of the command line, which it documents."""
    return auto_cli(function, args=list(args), prog=prog, parser_class=_ToolParser)


def ways_to_act() -> dict[type[Acting], list[str]]:
    """The classes of choices that roles act by, each with the names of those roles."""
    found: dict[type[Acting], list[str]] = {}
    for name, cls in vars(public).items():
        kind = getattr(cls, "acting", None) if inspect.isclass(cls) else None
        if kind is not None:
            found.setdefault(kind, []).append(name)
    return found


def _unknown(described: type | None, name: str, accepted: Sequence[str]) -> str:
    """Of an argument that a class has not."""
    if described is Acting:  # the base: no class was given
        having = [
            f"{kind.__name__} ({', '.join(roles)})"
            for kind, roles in ways_to_act().items()
            if name in {field.name for field in fields(kind)}
        ]
        if having:
            return (
                f"{name!r} needs the class that it is a field of before it, as in "
                f"--rollout.acting=CLASS: {', '.join(having)}."
            )
        return f"{name!r} is a field of no way to act: --rollout.acting.help=CLASS lists a class's."
    near = get_close_matches(name, accepted, 1)
    hint = f", did you mean {near[0]!r}? It has" if near else ", only"
    of = described.__name__ if described else "This"
    return f"{of} has no {name!r}{hint} {', '.join(accepted) or 'nothing to choose'}."


def _no_class(message: str) -> str | None:
    """Of a name that is no class of the kind that is wanted, if that is what the message is about."""
    wrong = re.search(r"import path string: (\S+)|not correspond to a subclass of", message)
    key = re.search(r'Parser key "([^"]*)"|--(\S+?)(?:\.help)?:', message)
    if not wrong or not key:
        return None
    option = key[1] or key[2]
    classes = {name: cls for name, cls in vars(public).items() if inspect.isclass(cls)}
    match option.rpartition(".")[2]:
        case "acting":
            names = [f"{k.__name__} ({', '.join(roles)})" for k, roles in ways_to_act().items()]
        case "sampling":
            names = ["SynthesisSampling"]
        case "model":
            names = [n for n, c in classes.items() if issubclass(c, public.Role)]
            names = [n for n in names if not inspect.isabstract(classes[n])]
        case "data":
            names = [n for n, c in classes.items() if issubclass(c, LightningDataModule)]
        case _:
            return f"--{option} can not be {wrong[1] or 'that'}: name a class that can be imported."
    value = wrong[1] or re.search(r"'class_path': '([^']*)|Given value: (\S+)", message)
    given = value if isinstance(value, str) else (value[1] or value[2] if value else "that")
    return f"--{option} can not be {given}: choose one of {', '.join(names)}."


def _plain(message: str) -> str:
    """Any other message, without what Python calls its types."""
    if "arguments are required" in message and "model" in message:
        return "No configuration is given: add -c FILE or -c NAME; diffrl configs lists names."
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r'Parser key "([^"]*)":', r"\1:", text)
    if "Union subtypes" in text:
        key, value = text.partition(":")[0], text.rpartition("Given value: ")[2]
        kinds = re.findall(r"- Expected an? (.+)", text)
        text = f"{key}={value} must be {' or '.join(k.rstrip('.') for k in kinds)}"
    text = re.sub(r"(\S+):\s+Expected an? (.+)\. Got value: (.*)", r"\1=\3 must be \2", text)
    text = re.sub(r"must be (\w+)$", r"must be of type \1", text)
    return re.sub(r"\s*\n\s*", " ", text.replace("NoneType", "null")).strip().rstrip(".") + "."
