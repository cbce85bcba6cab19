"""Tables of results: numbers by hand and by rliable, one source for all, pages that are checked."""

import json
import math
import re

import pytest

from diffrl_lightning.figures.benchmarks import draw_benchmark
from diffrl_lightning.tools.benchmarks.results import read_results
from diffrl_lightning.tools.benchmarks.statistics import (
    differ,
    interquartile_interval,
    interquartile_mean,
    mean_and_error,
    probability_of_improvement,
)
from diffrl_lightning.tools.report import render, report
from diffrl_lightning.types import InputError, RunError

# Five runs of three tasks, and what rliable 1.2.0 makes of them (50,000 resamples, RandomState(0)).
FIRST = [[12.0, 18, 9, 25, 14], [55.0, 49, 62, 58, 51], [31.0, 40, 35, 22, 38]]
SECOND = [[15.0, 22, 11, 30, 13], [60.0, 57, 64, 66, 59], [30.0, 45, 41, 28, 39]]
RLIABLE = {
    "first": (34.33333333, 30.55555556, 37.66666667),
    "second": (39.0, 34.77777778, 42.44444444),
    "second above first": 0.6933333333,
}


def test_errors_by_hand():
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(7 / 3))  # the variance is (4 + 1 + 9) / 2
    assert math.isnan(mean_and_error([5.0])[1])


def test_interquartile_mean_by_hand():
    assert interquartile_mean([[0, 1, 2, 3], [100, 101, 102, 103]]) == 51.5  # of 2, 3, 100, 101
    assert interquartile_mean([[-1e9, 4, 6, 1e9]]) == 5


def test_as_rliable():
    for scores, name in ((FIRST, "first"), (SECOND, "second")):
        middle, low, high = RLIABLE[name]
        assert interquartile_mean(scores) == pytest.approx(middle, abs=1e-8)
        found = interquartile_interval(scores)
        tolerance = 0.05 * (high - low)  # about 3 standard errors of a quantile of 10,000 resamples
        assert found == pytest.approx((low, high), abs=tolerance)
    above = RLIABLE["second above first"]
    assert probability_of_improvement(SECOND, FIRST) == pytest.approx(above, abs=1e-9)
    assert probability_of_improvement(FIRST, SECOND) == pytest.approx(1 - above, abs=1e-9)


def test_probability_by_hand():
    assert probability_of_improvement([[3, 4]], [[1, 2]]) == 1
    assert probability_of_improvement([[1, 1]], [[1, 1]]) == 0.5
    assert probability_of_improvement([[1, 3]], [[2, 2]]) == 0.5
    assert probability_of_improvement([[3, 4], [1, 1]], [[1, 2], [2, 2]]) == 0.5  # of 1 and 0


def test_what_differs_beyond_training_seeds():
    assert differ([1.0], [2.0, 3.0]) is None
    assert differ([1.0, 1.1, 0.9], [5.0, 5.1, 4.9]) is True
    assert differ([1.0, 5.0, 9.0], [2.0, 6.0, 10.0]) is False
    assert differ([2.0, 2.0], [2.0, 2.0]) is False
    assert differ([2.0, 2.0], [3.0, 3.0]) is True


def run(row, seed, returns, dataset="maze", **more):
    """A run's record, as a benchmark writes it."""
    training = {"cpu_seconds": 60.0 * (seed + 1), "device": "a processor"}
    curve = [
        {"step": k, "cpu_seconds": 10.0 * k, "val/return_mean": k * returns[0]} for k in (1, 2, 3)
    ]
    return {
        "row": row,
        "dataset": dataset,
        "seed": seed,
        "returns": returns,
        "ref_scores": [0.0, 10.0],
        "trainings": {"model": training},
        "curve": curve,
        "device": "another",
        "configuration": {"model": {}},
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    """Two rows of two seeds."""
    records = [run("A", 0, [1.0, 3.0]), run("A", 1, [4.0, 8.0])]
    records += [run("B", s, [0.0, s], successes=[False, True]) for s in (0, 1)]
    for record in records:
        path = tmp_path / "results" / record["row"] / f"seed_{record['seed']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    return tmp_path


def test_the_table_by_hand(folder):
    table = render([str(folder / "results")], seeds=True)
    # Seeds 2 and 6: 4 +- 2; episodes 1, 3, 4, 8: the variance is 26 / 3, its error sqrt(26 / 12).
    assert "| A | **4 +- 2** (1; 2 / 6) |" in table
    assert "| B | **0 +- 0** (0; 0 / 0), success 0.50 |" in table
    assert "Mean return of 2 training seeds" in table
    assert "2 of each seed" in table
    statistics = render([str(folder / "results")], table="statistics")
    assert "| A | 40.0 | [20.0, 60.0] | - |" in statistics  # in percent of 0 to 10
    assert re.search(r"\| B \| 2\.5 \| .* \| 0\.00 \|", statistics)
    assert "| A | 1.5 |" in render([str(folder / "results")], table="costs")  # of 1 and 2 minutes


def test_a_summary_says_the_same(folder, capsys):
    report([str(folder / "results")], summary_path=str(folder / "short.json"))
    for table in ("returns", "statistics", "costs"):
        paths = [str(folder / "results")], [str(folder / "short.json")]
        assert render(paths[0], table=table) == render(paths[1], table=table)
    assert "configuration" not in (folder / "short.json").read_text()
    assert capsys.readouterr().out.count("| A |") == 3


def test_episodes_that_were_run_twice_are_told(folder):
    path = folder / "results" / "A" / "seed_0.json"
    path.write_text(json.dumps(run("A", 0, [1.0, 3.0], test_use=2)))
    assert "Test episodes were run more than once for A." in render([str(folder / "results")])


def test_returns_without_a_common_scale(tmp_path):
    runs = [{"row": "A", "dataset": d, "seed": 0, "mean": 1.0} for d in ("maze", "hopper")]
    (tmp_path / "a.json").write_text(json.dumps({"runs": runs}))
    assert "no common scale" in render([str(tmp_path / "a.json")], table="statistics")


def test_no_row_on_all_datasets(tmp_path):
    runs = [
        {"row": row, "dataset": d, "seed": 0, "mean": 1.0, "ref_scores": [0, 1]}
        for row, d in (("A", "maze"), ("B", "hopper"))
    ]
    (tmp_path / "a.json").write_text(json.dumps({"runs": runs}))
    assert "no row was run on all" in render([str(tmp_path / "a.json")], table="statistics")


def test_values_of_any_kind(tmp_path):
    rows = {"A": {"error": [0.1, 0.3], "note": "a text"}, "B": {"error": 0, "note": []}}
    (tmp_path / "a.json").write_text(json.dumps({"columns": ["error", "note"], "rows": rows}))
    table = render([str(tmp_path / "a.json")], table="values").splitlines()
    assert table[0] == "| | error | note |"
    assert table[2] == "| A | 0.200 +- 0.100 (0.100 / 0.300) | a text |"
    assert table[3] == "| B | 0 | |"
    with pytest.raises(InputError, match="only names 'speed': choose among error, note"):
        render([str(tmp_path / "a.json")], table="values", only=["speed"])


WRONG = {
    "no JSON": "{",
    "holds no results": "[]",
    "give those of diffrl benchmark": '{"runs": [3]}',
    "a.json' holds no results": '{"row": "A", "trainings": {"m": {}}}',
    "holds no results: give": '{"runs": [{"row": "A", "dataset": "d", "seed": 0}]}',
    "must be a lower and a higher return": json.dumps(
        {"row": "A", "dataset": "d", "seed": 0, "mean": 1.0, "ref_scores": [2.0, 2.0]}
    ),
    "no finite number": '{"runs": [{"row": "A", "dataset": "d", "seed": 0, "mean": NaN}]}',
    "is there twice": json.dumps(
        {"runs": [{"row": "A", "dataset": "d", "seed": 0, "mean": 1}] * 2}
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_results_are_a_sentence(sentence, tmp_path):
    (tmp_path / "a.json").write_text(WRONG[sentence])
    with pytest.raises(InputError, match=sentence):
        render([str(tmp_path / "a.json")])


def test_no_results(tmp_path):
    with pytest.raises(InputError, match="There are no results in"):
        read_results([tmp_path])
    with pytest.raises(InputError, match="can not be read"):
        read_results([tmp_path / "nothing.json"])
    with pytest.raises(InputError, match="Name results to report"):
        report()


def test_only_some(folder):
    found = render([str(folder / "results")], only=["B"])
    assert "| B |" in found
    assert "| A |" not in found
    with pytest.raises(InputError, match="only names 'C': choose among A, maze, B"):
        render([str(folder / "results")], only=["C"])


def page(folder, marker="../results --seeds=true"):
    path = folder / "pages" / "page.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"Text 1.\n\n<!-- diffrl report {marker} -->\n<!-- end -->\n\nText 2.\n")
    return path


def test_a_page_is_what_the_results_say(folder, capsys):
    path = page(folder)
    with pytest.raises(RunError, match=r"line 4 is .*: diffrl report --update="):
        report(check=str(path))
    report(update=[str(path)])
    report(check=[str(path.parent)])  # of a folder all pages with tables
    right = path.read_text()
    assert right.startswith("Text 1.\n\n<!-- diffrl report ../results --seeds=true -->\n| | maze |")
    assert right.endswith("<!-- end -->\n\nText 2.\n")
    begin, end = right.index("-->"), right.index("<!-- end")
    digits = [i for i in range(begin, end) if right[i].isdigit()]
    assert len(digits) > 10
    for i in digits:
        path.write_text(right[:i] + str((int(right[i]) + 1) % 10) + right[i + 1 :])
        with pytest.raises(RunError, match="where the results say"):
            report(check=str(path))
    path.write_text(right.replace("Text 2", "Text 3"))
    report(check=str(path))


def test_a_changed_result_changes_the_page(folder, capsys):
    path = page(folder)
    report(update=str(path))
    (folder / "results" / "A" / "seed_0.json").write_text(json.dumps(run("A", 0, [1.0, 5.0])))
    with pytest.raises(RunError, match="where the results say"):
        report(check=str(path))


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ("../results --colour=3", "unknown option"),
        ("../results --only='[", "can not be read"),
        ("../results --only=3", "only=3 must be a list of names"),
        ("../results --table=best", "table='best' is unknown"),
        ("../nothing", "can not be read"),
    ],
)
def test_wrong_markers_are_a_sentence(marker, sentence, folder):
    with pytest.raises(InputError, match=sentence):
        report(update=str(page(folder, marker)))


def test_a_marker_without_an_end_loses_no_text(folder):
    path = page(folder)
    whole = path.read_text()
    for text in (
        whole.replace("<!-- end -->", "Kept.") + whole,
        whole + "<!-- diffrl report x -->\n",
    ):
        path.write_text(text)
        for options in ({"update": str(path)}, {"check": str(path)}):
            with pytest.raises(InputError, match="has no <!-- end --> behind its table"):
                report(**options)
        assert path.read_text() == text


def test_an_option_without_a_value_is_a_switch(folder):
    with_value, without = page(folder).read_text(), page(folder, "../results --seeds")
    report(update=str(without))
    assert "; 2 / 6)" in without.read_text()
    assert "--seeds=true" in with_value


def test_pages_that_can_not_be_read(tmp_path):
    (tmp_path / "page.md").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "page.md", tmp_path / "none.md", tmp_path):
        with pytest.raises(InputError, match="can not be read"):
            report(check=str(path))


def test_a_page_without_tables(tmp_path):
    (tmp_path / "page.md").write_text("Nothing.")
    with pytest.raises(InputError, match="has no table"):
        report(check=str(tmp_path / "page.md"))


def test_the_figure(folder):
    report([str(folder / "results")], figure=str(folder / "a.png"))
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    means = {"A": {"maze": [2.0, 6.0]}, "B": {"maze": [1.0]}}
    curve = [{"step": k, "cpu_seconds": 10.0 * k, "val/return_mean": 2.0 * k} for k in (1, 2)]
    figure = draw_benchmark(means, {"A": (4.0, 2.0, 6.0)}, {"A": {"maze": [curve, curve]}})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["maze", "interquartile mean, 95 %", "maze", "maze"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [2.0, 6.0]
    updates, seconds = (axis.lines[0] for axis in figure.axes[2:])
    assert list(updates.get_xdata()) == [1, 2]
    assert list(seconds.get_xdata()) == [10, 20]
    assert list(updates.get_ydata()) == [2, 4]
