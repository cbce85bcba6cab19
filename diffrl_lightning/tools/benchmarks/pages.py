"""Tables within pages of Markdown, each between markers that say how it is made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from diffrl_lightning.files import write_whole
from diffrl_lightning.inputs import InputError
from diffrl_lightning.types import RunError

_BLOCK = re.compile(
    r"(?P<head><!-- diffrl report (?P<args>[^\n]*?) -->\n)(?P<body>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)

Render = Callable[..., str]
"""``render(paths, **options)``: the table of results."""


def has_tables(page: Path) -> bool:
    """Whether a page has tables of results."""
    return _BLOCK.search(page.read_text("utf-8")) is not None


def update(page: Path, render: Render) -> None:
    """Make every table of a page anew."""
    write_whole(page, _remade(page, render))


def check(page: Path, render: Render) -> None:
    """Compare every table of a page with what its results say.

    Raises:
        RunError: naming the first line that differs.
    """
    now, right = page.read_text("utf-8").splitlines(), _remade(page, render).splitlines()
    for number, (found, wanted) in enumerate(zip(now, right, strict=False), 1):
        if found != wanted:
            raise RunError(
                f"{page}, line {number} is {found!r}, where the results say {wanted!r}: "
                f"diffrl report --update={page}."
            )
    if len(now) != len(right):
        raise RunError(f"{page} lacks lines of its tables: diffrl report --update={page}.")


def _remade(page: Path, render: Render) -> str:
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(page)!r} can not be read ({error}): give a page.") from error
    if not _BLOCK.search(text):
        raise InputError(
            f"{str(page)!r} has no table: write <!-- diffrl report RESULTS --> and <!-- end --> "
            "where one is to be."
        )

    def table(found: re.Match[str]) -> str:
        paths, options = _arguments(found["args"], page)
        try:
            made = render([str(page.parent / path) for path in paths], **options)
        except TypeError as error:
            raise InputError(
                f"{page}: {found['args']!r} has an unknown option ({error})."
            ) from error
        return f"{found['head']}{made}\n{found['end']}"

    return _BLOCK.sub(table, text)


def _arguments(text: str, page: Path) -> tuple[list[str], dict[str, Any]]:
    """Paths and options of a marker, as on a command line."""
    paths, options = [], {}
    try:
        for word in shlex.split(text):
            if word.startswith("--"):
                name, _, value = word[2:].partition("=")
                options[name] = yaml.safe_load(value)
            else:
                paths.append(word)
    except (ValueError, yaml.YAMLError):
        raise InputError(f"{page}: the marker {text!r} can not be read: mend it.") from None
    return paths, options
