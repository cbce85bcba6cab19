"""Parsers whose errors are one sentence, and the ways to act as their arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from diffrl_lightning.modules.base import Role
from diffrl_lightning.types import Acting

_BASES: dict[
    str, tuple[type, str]
] = {  # of the classes that an argument may name, by its last name
    "acting": (Acting, "way to act"),
    "sampling": (Acting, "way to sample"),
    "model": (Role, "role"),
    "data": (LightningDataModule, "datamodule"),
}
_MARK = (
    "\x02{}\x03"  # around the sentence of a class's own parser, in the message of those around it
)

set_parsing_settings(subclasses_enabled=[Acting])


class SentenceErrors:
    """What parsers say of bad arguments, in one sentence that names what is accepted."""

    _described: type | None = None

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Remember the class, whose arguments an error is to name."""
        self._described = theclass
        return super().add_class_arguments(theclass, *args, **kwargs)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program, or hand the sentence to the parser around this one."""
        inner = re.search(_MARK.format("(.*?)"), message, re.DOTALL)
        sentence = inner[1] if inner else self._sentence(message)
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(_MARK.format(sentence), ex)  # type: ignore[misc]
        prog = self.prog.replace(" [options]", "")  # type: ignore[attr-defined]
        print(f"{prog}: error: {sentence}", file=sys.stderr)
        sys.exit(2)

    def _sentence(self, message: str) -> str:
        of = self._described.__name__ if self._described else ""
        unknown = re.fullmatch(r"Option '(.+)' is not accepted", message)
        if unknown and not self.exit_on_error:  # type: ignore[attr-defined]
            names = [a.dest for a in self._actions if "help" not in a.dest]  # type: ignore[attr-defined]
            if self._described is Acting:
                return _without_class(unknown[1])
            return f"{of} has no {unknown[1]!r}, only {', '.join(names) or 'its defaults'}."
        no_class = re.search(
            r"(?:path string: (\S+)|does not correspond to a subclass of)", message
        )
        key = re.search(r'Parser key "([^"]*)"|--(\S+?)(?:\.help)?:', message)
        last = (key[1] or key[2]).rpartition(".")[2] if key else ""
        if no_class and last in _BASES:
            base, word = _BASES[last]
            value = re.search(r"'class_path': '([^']*)'|Given value: (\S+)", message)
            given = no_class[1] or (value[1] or value[2] if value else "this")
            names = sorted(c.__name__ for c in subclasses(base))
            return f"{given} is no {word} for {last}: choose one of {', '.join(names)}."
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)
        text = re.sub(r'Parser key "([^"]*)":', rf"{of + ' ' if of and last else ''}\1:", text)
        text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
        return re.sub(r"\s*\n\s*", " ", text).strip().rstrip(".") + "."


class SentenceParser(SentenceErrors, LightningArgumentParser):
    """Lightning's parser."""


class _ToolParser(SentenceErrors, ArgumentParser):
    pass


def run_function(function: Callable[..., Any], args: Sequence[str], *, prog: str) -> Any:
    """Call a function with arguments of the command line, which it documents."""
    return auto_cli(function, args=list(args), prog=prog, parser_class=_ToolParser)


def subclasses(base: type) -> list[type]:
    """All classes derived from this one, however far."""
    found = [c for sub in base.__subclasses__() for c in (sub, *subclasses(sub))]
    return [c for c in dict.fromkeys(found) if not c.__name__.startswith("_")]


def _without_class(field: str) -> str:
    """What to do where a field is given, and no class that has it."""
    having = [c.__name__ for c in subclasses(Acting) if field in {f.name for f in fields(c)}]
    if not having:
        return f"{field!r} is a field of no way to act: --rollout.acting.help=CLASS lists those of one."
    return (
        f"{field!r} is given without the class that it is a field of: put --rollout.acting=CLASS "
        f"before it, one of {', '.join(having)}."
    )
