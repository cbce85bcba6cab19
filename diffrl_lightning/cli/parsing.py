"""Parsers whose errors are one sentence that names what is accepted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import takewhile
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from diffrl_lightning.cli import sentences
from diffrl_lightning.tools.configs import check_yaml, find_config
from diffrl_lightning.types import Acting, InputError

# Around the sentence of a class's own parser, in the messages of the parsers around it.
_MARKS = "\x02{}\x03"
_OF_THE_PARSER = ("help", "print_shtab", "subcommand")

set_parsing_settings(
    subclasses_enabled=[Acting],  # files and options merge fields of ways to act
    instantiate_subclass_spec_in_any=False,  # env_kwargs and the like call nothing
)


class SentenceErrors:
    """What parsers say of bad arguments, in place of types and usage."""

    _described: type | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # type: ignore[call-arg]

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Remember the class, whose arguments an error is to name."""
        self._described = theclass
        return super().add_class_arguments(theclass, *args, **kwargs)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program, or hand the sentence to the parser around this one."""
        sentence = self._sentence(message)
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(_MARKS.format(sentence), ex)  # type: ignore[misc]
        print(f"{self._command}: error: {sentence}", file=sys.stderr)
        sys.exit(2)

    @property
    def _command(self) -> str:
        return self.prog.replace(" [options]", "")  # type: ignore[attr-defined]

    def _options(self) -> list[str]:
        """All keys that it has, with dots."""
        actions = self._actions  # type: ignore[attr-defined]
        return [a.dest for a in actions if a.dest.rpartition(".")[2] not in _OF_THE_PARSER]

    def _sentence(self, message: str) -> str:
        inner = re.search(_MARKS.format("(.*?)"), message, re.DOTALL)
        if inner:
            return inner[1]
        if within := re.fullmatch(r"Subcommand '(.+)' does not accept option '(.+)'", message):
            command = self._subcommands_action._name_parser_map[within[1]]  # type: ignore[attr-defined]
            return sentences.unknown_key(within[2], command._options(), command._command)
        if unknown := re.fullmatch(r"Option '(.+)' is not accepted", message):
            if not self.exit_on_error:  # type: ignore[attr-defined]
                return sentences.unknown_argument(self._described, unknown[1], self._options())
            return sentences.unknown_key(unknown[1], self._options(), self._command)
        if option := re.match(r"unrecognized arguments: --([^\s=]+)", message):
            return sentences.unknown_key(option[1], self._options(), self._command)
        if word := re.match(r"unrecognized arguments: (\S+)", message):
            return f"{word[1]!r} is no option: write --NAME=VALUE, and -c before a configuration."
        return sentences.no_class(message) or sentences.plain(message)


class SentenceParser(SentenceErrors, LightningArgumentParser):
    """Lightning's parser."""


class _ToolParser(SentenceErrors, ArgumentParser):
    pass


def run_function(function: Callable[..., Any], args: Sequence[str], *, prog: str) -> Any:
    """Call a function with arguments of the command line, which it documents.

    Options may be written with dashes within, switches without ``=true``, and a first argument that is
    a list as words before all options.
    """
    given = list(_plain_options(function, list(with_paths(args))))
    return auto_cli(function, args=given, prog=prog, parser_class=_ToolParser)


def _plain_options(function: Callable[..., Any], args: Sequence[str]) -> Iterator[str]:
    first, *others = signature(function).parameters.values()
    switches = {p.name for p in others if p.annotation == "bool"}
    words = list(takewhile(lambda arg: not arg.startswith("-"), args))
    if words and first.annotation.startswith("list["):
        yield f"--{first.name}={json.dumps(words)}"
        args = args[len(words) :]
    for arg in args:
        option, equals, value = arg.partition("=")
        if option.startswith("--"):
            option = f"--{option[2:].replace('-', '_')}"
            if not equals and option[2:] in switches:
                equals, value = "=", "true"
        yield option + equals + value


def with_paths(args: Sequence[str]) -> Iterator[str]:
    """The arguments, with names of configurations as their files.

    Raises:
        InputError: if there is no such configuration, or it holds no options.
    """
    previous = ""
    for arg in args:
        option, equals, value = arg.partition("=")
        if previous in ("-c", "--config"):
            yield _path(arg)
        elif equals and option in ("-c", "--config"):
            yield f"--config={_path(value)}"
        else:
            yield arg
        previous = arg


def _path(name: str) -> str:
    if name.lstrip().startswith("{"):
        check_yaml(name, "The configuration")
        return name
    path = find_config(name)
    found = check_yaml(path, repr(name))
    for group in ("trainer", "rollout", "synthesis", "checkpoint"):
        if isinstance(found.get(group), list):
            raise InputError(f"{group} in {name!r} is a list: it must hold NAME: VALUE lines.")
    return str(path)
