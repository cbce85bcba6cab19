"""The configurations that come with the library, by name: ``quickstart``, ``diffuser/hopper``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

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
        from diffrl_lightning.types import InputError

        near = get_close_matches(name.removesuffix(".yaml"), shipped, 3, cutoff=0.4)
        known = f"near are {', '.join(near)}; " if near else ""
        raise InputError(
            f"{name!r} is no file and no shipped configuration: {known}diffrl configs lists them."
        )
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
            from diffrl_lightning.files import write_whole

            write_whole(given.output, path.read_bytes())
            print(f"Copied {given.name} to {given.output}.")
        else:
            sys.stdout.write(path.read_text())
        return
    width = max(map(len, listed))
    for name in listed:
        with shipped[name].open() as lines:
            print(f"{name:{width}}  {lines.readline().removeprefix('# ').rstrip()}")
