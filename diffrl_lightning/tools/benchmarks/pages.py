"""Tables within pages of Markdown, each between markers that say how it is made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from diffrl_lightning.files import write_whole
from diffrl_lightning.inputs import InputError
from diffrl_lightning.types import RunError

_HEAD = re.compile(r"^<!-- diffrl report (?P<args>[^\n]*?) -->$", re.MULTILINE)
_END = "<!-- end -->"

Render = Callable[..., str]
"""``render(paths, **options)``: the table of results."""


def has_tables(page: Path) -> bool:
    """Whether a page has tables of results."""
    return _HEAD.search(_text(page)) is not None


def update(page: Path, render: Render) -> None:
    """Make every table of a page anew."""
    write_whole(page, _remade(page, _text(page), render))


def check(page: Path, render: Render) -> None:
    """Compare every table of a page with what its results say.

    Raises:
        RunError: naming the first line that differs.
    """
    text = _text(page)
    now, right = text.splitlines(), _remade(page, text, render).splitlines()
    for number, (found, wanted) in enumerate(zip_longest(now, right, fillvalue=""), 1):
        if found != wanted:
            raise RunError(
                f"{page}, line {number} is {found!r}, where the results say {wanted!r}: "
                f"diffrl report --update={page}."
            )


def _text(page: Path) -> str:
    try:
        return page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(page)!r} can not be read ({error}): give a page.") from error


def _remade(page: Path, text: str, render: Render) -> str:
    """The text of a page with its tables made anew.

    Raises:
        InputError: if it has none, or a marker has no end before the next one.
    """
    heads = list(_HEAD.finditer(text))
    if not heads:
        raise InputError(
            f"{str(page)!r} has no table: write <!-- diffrl report RESULTS --> and {_END} "
            "where one is to be."
        )
    made = text[: heads[0].start()]
    for head, following in zip_longest(heads, heads[1:]):
        after = text[head.end() : following.start() if following else None]
        end = after.find(f"\n{_END}")
        if end < 0:
            raise InputError(f"{page}: {head[0]!r} has no {_END} behind its table: write it there.")
        paths, options = _arguments(head["args"], page, signature(render).parameters)
        table = render([str(page.parent / path) for path in paths], **options)
        made += f"{head[0]}\n{table}{after[end:]}"
    return made


def _arguments(text: str, page: Path, known: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """Paths and options of a marker, as on a command line; an option without a value is a switch."""
    paths, options = [], {}
    try:
        for word in shlex.split(text):
            name, equals, value = word.partition("=")
            if not name.startswith("--"):
                paths.append(word)
            elif name[2:] in known:
                options[name[2:]] = yaml.safe_load(value) if equals else True
            else:
                raise InputError(f"{page}: the marker {text!r} has an unknown option {name}.")
    except InputError:
        raise
    except (ValueError, yaml.YAMLError):
        raise InputError(f"{page}: the marker {text!r} can not be read: mend it.") from None
    return paths, options
