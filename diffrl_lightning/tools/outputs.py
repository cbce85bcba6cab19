"""Tables in Markdown, records in JSON and pictures: what tools leave behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from diffrl_lightning.files import whole_file, write_whole


def print_header(*cells: str) -> None:
    """Begin a table with these columns."""
    print_row(*cells)
    print(f"|{'---|' * len(cells)}", flush=True)


def print_row(*cells: str) -> None:
    """A row of a table, at once."""
    print("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|", flush=True)


def with_errors(means: Iterable[float], sems: Iterable[float]) -> list[str]:
    """Means with their standard errors, as cells."""
    return [f"{mean:.3f} +- {sem:.3f}" for mean, sem in zip(means, sems, strict=True)]


def write(output: str, results: Mapping[str, Any], figure: Figure | None = None) -> None:
    """Write ``<output>.json``, and ``<output>.png`` of a figure."""
    write_whole(f"{output}.json", json.dumps(results, indent=2) + "\n")
    if figure is not None:
        with whole_file(f"{output}.png") as file:
            figure.savefig(file, format="png", dpi=120)
