"""The configurations that come with the library, by name: ``quickstart``, ``diffuser/hopper``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from diffrl_lightning.inputs import InputError

_MOST_VALUES = 100_000  # of a YAML file
_PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> dict[str, Path]:
    """Every shipped configuration by its name: in an installed wheel, or in a checkout.

    Those of ``diffrl compare`` have names too: ``compare/diffuser_hopper``.
    """
    inside = _PACKAGE / "configs"  # where the wheel has them
    root = inside if inside.is_dir() else _PACKAGE.parent / "configs"
    return {str(p.relative_to(root).with_suffix("")): p for p in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """A file, or the shipped configuration of this name, with or without ``.yaml``.

    Raises:
        InputError: if there is neither; it names the nearest.
    """
    path, shipped = Path(name), shipped_configs()
    if path.is_file():
        return path
    found = shipped.get(name.removesuffix(".yaml").removeprefix("configs/"))
    if found is None:
        near = get_close_matches(name.removesuffix(".yaml"), shipped, 3, cutoff=0.4)
        known = f"near are {', '.join(near)}; " if near else ""
        raise InputError(
            f"{name!r} is no file and no shipped configuration: {known}diffrl configs lists them."
        )
    return found


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with all its aliases."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # of one within itself
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Plain values only, and every key once."""

    def get_single_node(self) -> yaml.Node | None:
        """The document, unless aliases make it endless."""
        node = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dictionary."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1 and key != "<<"]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def check_yaml(source: Path | str, name: str) -> dict[str, Any]:
    """The dictionary of a YAML file, or of a text; no tag makes objects or runs code.

    Args:
        source: the file, or the text itself.
        name: what errors call it.

    Raises:
        InputError: if it can not be read, is no YAML, or no dictionary; it names the line.
    """
    try:
        text = source.read_text("utf-8") if isinstance(source, Path) else source
        found = yaml.load(text, _Loader)
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise InputError(f"{name} is no text, so no YAML file: give one.") from None
    except OSError as error:
        raise InputError(f"{name} can not be read ({error.strerror}): mend that.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}," if mark else ""
        raise InputError(f"{name}{line} is no plain YAML ({error.problem}): mend it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no plain YAML ({error}): mend it.") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        kind = (
            "empty" if found is None else "a list" if isinstance(found, list) else "no dictionary"
        )
        raise InputError(f"{name} is {kind}: it must hold NAME: VALUE lines.")
    return found


def configs(args: Sequence[str]) -> None:
    """List the shipped configurations, print one, or copy it.

    Args:
        args: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="diffrl configs",
        description="List the shipped configurations, print one, or copy it.",
        epilog="Train one with: diffrl fit -c NAME",
    )
    parser.add_argument("name", nargs="?", help="one of them, or a folder; default: list all")
    parser.add_argument("-o", "--output", metavar="FILE", help="copy it there, to change it")
    given = parser.parse_args(args)
    shipped = shipped_configs()
    listed = [n for n in shipped if not given.name or n.startswith(f"{given.name.rstrip('/')}/")]
    if given.name and not listed:
        path = find_config(given.name)
        if given.output:
            from diffrl_lightning.files import cannot_write, write_whole

            if not Path(given.output).expanduser().absolute().parent.is_dir():
                raise cannot_write(given.output, FileNotFoundError("there is no such folder"))
            write_whole(given.output, path.read_bytes())
            print(f"Copied {given.name} to {given.output}.")
        else:
            sys.stdout.write(path.read_text())
        return
    width = max(map(len, listed))
    for name in listed:
        with shipped[name].open() as lines:
            print(f"{name:{width}}  {lines.readline().removeprefix('# ').rstrip()}")
