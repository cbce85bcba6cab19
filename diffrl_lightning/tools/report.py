"""Tables and figures of benchmarks' results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from diffrl_lightning.figures.benchmarks import draw_benchmark
from diffrl_lightning.files import whole_file, write_whole
from diffrl_lightning.inputs import check_ranges
from diffrl_lightning.tools.benchmarks import pages
from diffrl_lightning.tools.benchmarks.results import (
    Result,
    cells,
    read_results,
    read_values,
    summary,
)
from diffrl_lightning.tools.benchmarks.statistics import interquartile_interval, interquartile_mean
from diffrl_lightning.tools.benchmarks.tables import (
    costs_table,
    returns_table,
    statistics_table,
    values_table,
)
from diffrl_lightning.types import InputError

Table = Literal["returns", "statistics", "costs", "values"]


def report(
    results: list[str] | None = None,
    *,
    table: Table | None = None,
    only: list[str] | None = None,
    seeds: bool = False,
    figure: str | None = None,
    summary_path: str | None = None,
    update: str | list[str] | None = None,
    check: str | list[str] | None = None,
) -> None:
    """Print tables of results in Markdown, and draw them.

    A page has tables of its own between markers, ``<!-- diffrl report RESULTS OPTIONS -->`` and
    ``<!-- end -->``, with paths as the page sees them: ``update`` makes them anew, and ``check``
    ends with exit code 1 where one is not what its results say.

    Args:
        results: folders of ``diffrl benchmark``, summaries of them, or values of other tools.
        table: ``returns``, with errors over training seeds; ``statistics``, interquartile means
            with bootstrap intervals (Agarwal et al. 2021); ``costs``, minutes of training; or
            ``values``, those of a file of other quantities. Default returns, statistics and costs.
        only: names of the rows and datasets to show; default all.
        seeds: show each training seed's mean too.
        figure: PNG to draw returns, interquartile means and learning curves to.
        summary_path: JSON to write all results to, in short, for ``diffrl report`` to read.
        update: pages whose tables to make anew, or folders of such pages.
        check: pages whose tables to compare, or folders of such pages.
    """
    check_ranges(locals())
    for page in _pages(update):
        pages.update(page, render)
    for page in _pages(check):
        pages.check(page, render)
        print(f"{page}: its tables are what the results say.")
    if not results:
        if not update and not check:
            raise InputError("Name results to report: a folder of diffrl benchmark, or a summary.")
        return
    if table is not None:
        print(render(results, table=table, only=only, seeds=seeds))
    else:
        for kind in ("returns", "statistics", "costs"):
            print(render(results, table=kind, only=only, seeds=seeds), end="\n\n")
    if summary_path is not None:
        write_whole(summary_path, summary(_only(read_results(results), only)))
    if figure is not None:
        _draw(_only(read_results(results), only), figure)


def _pages(named: str | list[str] | None) -> Iterator[Path]:
    """Files, and of folders those with tables of results."""
    for path in map(Path, [named] if isinstance(named, str) else named or []):
        if path.is_dir():
            yield from (page for page in sorted(path.rglob("*.md")) if pages.has_tables(page))
        else:
            yield path


def render(
    paths: Sequence[str],
    *,
    table: str = "returns",
    only: list[str] | None = None,
    seeds: bool = False,
) -> str:
    """One table of results, as Markdown.

    Args:
        paths: folders and files of results.
        table: which, as in :func:`report`.
        only: rows and datasets to show; default all.
        seeds: show each training seed's mean too.
    """
    if only is not None and not isinstance(only, list):
        raise InputError(f"only={only!r} must be a list of names.")
    if table == "values":
        return values_table(*read_values(paths), only)
    results = _only(read_results(paths), only)
    if table == "returns":
        return returns_table(results, seeds=seeds)
    if table == "statistics":
        return statistics_table(results)
    if table == "costs":
        return costs_table(results)
    raise InputError(f"table={table!r} is unknown: choose returns, statistics, costs or values.")


def _only(results: list[Result], only: list[str] | None) -> list[Result]:
    """The results of these rows and datasets, in the order of the names."""
    if not only:
        return results
    rows = [r for r in dict.fromkeys(r.row for r in results) if r in only]
    datasets = [d for d in dict.fromkeys(r.dataset for r in results) if d in only]
    unknown = set(only) - set(rows) - set(datasets)
    if unknown:
        known = ", ".join(dict.fromkeys([x for r in results for x in (r.row, r.dataset)]))
        raise InputError(f"only names {min(unknown)!r}: choose among {known}.")
    kept = [
        r
        for r in results
        if (not rows or r.row in rows) and (not datasets or r.dataset in datasets)
    ]
    return sorted(kept, key=lambda r: only.index(r.row) if r.row in only else 0)


def _draw(results: Sequence[Result], path: str) -> None:
    table = cells(results)
    datasets = list(dict.fromkeys(r.dataset for r in results))
    complete = {n: of for n, of in table.items() if all(d in of for d in datasets)}
    scores = {n: [of[d].scores for d in datasets] for n, of in complete.items()}
    intervals = {n: (interquartile_mean(s), *interquartile_interval(s)) for n, s in scores.items()}
    means = {n: {d: c.seed_means for d, c in of.items()} for n, of in table.items()}
    curves = {
        n: {d: [r.curve for r in c.results if r.curve] for d, c in of.items()}
        for n, of in table.items()
    }
    with whole_file(path) as file:
        draw_benchmark(means, intervals, curves).savefig(file, format="png", dpi=120)
