"""A paper's numbers beside what is kept of a run."""

import csv
import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
from helpers import SMALL_GRID, reproduce

from jaxfl.experiments import schema
from jaxfl.experiments.from_log import not_run
from jaxfl.experiments.kept import Cell, Kept, cell_of, keep, read_kept
from jaxfl.experiments.recalled import results_of
from jaxfl.experiments.reported import (
    METRICS,
    Reported,
    alone,
    available,
    compared,
    read_reported,
)
from jaxfl.experiments.results import half_interval, status_of
from jaxfl.report.replications import apart, own, replications_page


def test_a_page_tells_who_was_taken_and_how_long_backdoors_lasted(run, tmp_path):
    keep(run, tmp_path / "quickstart")
    path = tmp_path / "quickstart" / "cells.jsonl"
    table = "| Mean | {} |"
    # The mean takes all: it does not choose.
    assert "Byzantine messages" not in replications_page(tmp_path)
    mean, bulyan = map(json.loads, path.read_text().splitlines())
    chosen = {"malicious_selected": 0.25, "success": [0.3, 0.5]}
    assert mean["honest_selected"] == 1
    lasted = {"planted": 1.0, "lifespan": 7.0, "outlived": 0.5}
    lines = [json.dumps(line) for line in (mean | chosen | lasted, bulyan)]
    path.write_text("\n".join(lines))
    page = replications_page(tmp_path)
    assert table.format("100 / 25") in page
    assert table.format("40.0; 100.0; > 7") in page
    assert "taken, in %" in page
    assert "for how many rounds it lasted" in page
    shown = reproduce("quickstart", "--results", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert "│ Mean │ 100 / 25 │" in shown.output
    assert "│ Mean │ 40.0; 100.0; > 7 │" in shown.output
    assert page.count("| Bulyan |") == 1  # not applicable: in the table of accuracies alone
    lost = chosen | {"last": [None, None], "status": "diverged", "losses": []}
    path.write_text("\n".join(json.dumps(line) for line in (mean | lost, bulyan)))
    assert "Byzantine messages" not in replications_page(tmp_path)


@pytest.mark.parametrize("name", available())
def test_every_reported_number_is_of_a_cell(name):
    """Rows and columns are labels of the experiment's grid, and every cell of it is there."""
    tables, cells = read_reported(name), schema.load(name, []).cells
    for reported in tables:
        down, across = reported.axes
        labels = {(c.labels[down], c.labels[across]) for c in cells}
        assert labels == {(row, column) for row in reported.rows for column in reported.columns}
        for values in reported.rows.values():
            assert len(values) == len(reported.columns)
            assert all(math.isnan(value) or 0 <= value <= 100 for value in values)
        assert reported.metric in METRICS
    assert len({reported.metric for reported in tables}) == len(tables)


SUMS = {
    ("signguard-table1-mnist", "best"): (
        *(691.84, 720.88, 659.31, 531.18, 748.51, 797.19, 856.52, 891.98, 891.97, 891.24),
        *(982.74, 954.96, 959.76, 969.14, 736.86, 962.78, 873.08, 646.56, 594.74),
    ),
    ("signguard-table1-fashion", "best"): (
        *(556.21, 634.92, 597.11, 575.10, 672.42, 724.80, 762.01, 802.63, 802.15, 802.53),
        *(867.99, 855.38, 815.03, 859.61, 663.78, 856.97, 689.94, 670.64, 650.54),
    ),
    ("signguard-table1-cifar10", "best"): (
        *(470.69, 564.98, 449.83, 487.96, 615.85, 682.99, 618.03, 829.64, 832.08, 832.39),
        *(883.74, 823.51, 826.27, 872.68, 541.08, 843.76, 592.90, 501.46, 499.04),
    ),
    ("signguard-table1-agnews", "best"): (
        *(473.80, 599.75, 538.23, 602.48, 669.05, 708.40, 720.40, 798.05, 798.80, 799.22),
        *(877.85, 810.63, 811.08, 852.95, 572.62, 852.62, 713.06, 619.91, 597.46),
    ),
    ("signguard-code-mnist", "best"): (
        *(304.31, 326.24, 253.02, 149.91, 343.38, 400.70, 460.50),
        *(575.75, 575.75, 440.00, 349.29, 297.27),
    ),
    ("signguard-table2", "honest_selected"): (
        *(453.17, 387.75, 442.09, 266.88, 220.79, 264.10, 266.21, 265.03),
    ),
    ("signguard-table2", "malicious_selected"): (39.08, 9.84, 24.52, 0.03, 73.29, 0, 0.12, 0),
    ("signguard-table3", "best"): (
        *(148.63, 201.90, 155.54, 278.81, 279.30, 278.32, 470.15, 377.38, 25.29, 469.68),
    ),
    ("fltrust-mnist", "last"): (168, 9, 0, 57, 565, 191, 94, 103, 223, 94, 94),
    ("fltrust-mnist", "success"): (100, 0, 0, 0, 0, 0, 0, 0, 0, 100, 0),
}
"""Of each table the sums of its rows, then of its columns: a wrong digit changes two of them."""


@pytest.mark.parametrize("name", available())
def test_reported_numbers_add_up(name):
    for reported in read_reported(name):
        rows = np.nan_to_num([*reported.rows.values()])
        sums = [*rows.sum(axis=1), *rows.sum(axis=0)]
        np.testing.assert_allclose(sums, SUMS[name, reported.metric], atol=1e-6)


def test_the_codes_attacks_and_rules_stand_beside_table_1():
    """Under other names, the same numbers."""
    (table,), (of_code,) = map(read_reported, ("signguard-table1-mnist", "signguard-code-mnist"))

    def first_words(reported):
        return {
            (row.split()[0], column.split()[0]): value
            for row, values in reported.rows.items()
            for column, value in zip(reported.columns, values, strict=True)
        }

    assert first_words(of_code).items() <= first_words(table).items()
    assert [row[0] for row in of_code.rows.values()] == [row[1] for row in of_code.rows.values()]


def cell(row, column, best, last):
    labels = {"aggregator": row, "attack": column}
    return Cell(labels, "done", list(range(len(best))), best, last, [], 1.0, 0.0, 1.0)


def test_ours_stands_beside_theirs():
    reported = Reported(
        "paper", "best", "", ("aggregator", "attack"), ("a", "b"), {"r": (90.0, 80.0)}
    )
    kept = Kept({}, [], [cell("r", "a", [0.91, 0.93], [0.9, 0.9]), cell("r", "c", [1.0], [1.0])])
    (found,) = compared(kept, reported)
    assert found.difference == pytest.approx(2)
    assert (found.ours, found.last, found.theirs) == pytest.approx((92, 90, 90))
    assert found.within is (half_interval(np.array([91.0, 93.0])) >= 2)
    alone = Kept({}, [], [cell("r", "b", [0.7], [0.6])])
    (found,) = compared(alone, reported)
    assert found.difference == pytest.approx(-10)
    assert found.within is None


def test_differences_and_the_last_accuracy_stand_below():
    labels = ("aggregator", "attack")
    theirs = {"r": (90.0, 80.0), "s": (10.0, 90.5), "t": (50.0, 1.0)}
    reported = Reported("paper", "best", "", labels, ("a", "b"), theirs)
    cells = [
        cell("r", "a", [0.91, 0.93], [0.9, 0.9]),
        cell("r", "b", [0.7], [0.123]),
        cell("s", "b", [0.9, 0.9], [0.9, math.nan]),
        cell("t", "a", [math.nan], [math.nan]),
    ]
    cells[2:] = [replace(c, status=status_of(np.isnan(c.last))) for c in cells[2:]]
    assert apart(reported, compared(Kept({}, [], cells), reported)) == [
        [("aggregator", False), ("a", False), ("b", False)],
        [("r", False), ("+2.0* (90.0)", False), ("-10.0 (12.3)", True)],
        [("s", False), ("-", False), ("-0.5 (45.0, 1 of 2 diverged)", False)],
        [("t", False), ("-50.0 (diverged)", True), ("-", False)],
    ]


def test_rates_of_selection_are_set_beside_the_papers():
    kept = Kept({}, [], [cell("r", "a", [0.9, 0.9], [0.9, 0.9])])
    for metric, ours in (("honest_selected", 100.0), ("malicious_selected", 0.0)):
        reported = Reported("p", metric, "", ("aggregator", "attack"), ("a",), {"r": (40.0,)})
        (found,) = compared(kept, reported)
        assert (found.ours, found.within) == (ours, None)
        assert found.difference == ours - 40


def test_a_cell_that_did_not_run_has_no_numbers():
    kept = cell_of(not_run(schema.parse("x", SMALL_GRID).cells[0], "does not apply"))
    assert (kept.status, kept.best, kept.last) == ("does not apply", [], [])
    reported = Reported("p", "best", "", ("aggregator", "attack"), ("a",), {"Mean": (1.0,)})
    assert compared(Kept({}, [], [kept]), reported) == []


def test_kept_results_are_shown_without_a_run(tmp_path):
    name = "signguard-table1-mnist"
    (reported,) = read_reported(name)
    folder = tmp_path / "results" / name
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(tomli_w.dumps(schema.load(name, []).table))
    (folder / "environment.json").write_text("[{}]")
    lines = [
        cell(row, column, [value / 100 - 0.1 * (row == "Mean")], [0.5]).__dict__
        for row, values in reported.rows.items()
        for column, value in zip(reported.columns, values, strict=True)
    ]
    (folder / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "all.csv"
    words = (name, "--results", str(tmp_path / "results"), "--write", str(out))
    result = reproduce(*words)
    assert result.exit_code == 0, result.output
    assert "90 cells: 81 within 1 point, 0 within 5, 9 farther" in result.output
    assert "1440 rounds, 1 seed (60 of the paper's epochs)" in result.output
    assert len(out.read_text().splitlines()) == 91
    assert "-10.0 (50.0)" in result.output
    assert "+0.0 (50.0)" in result.output
    assert "worst of those that know it" in " ".join(result.output.split())
    assert "Stated: " in result.output
    page = replications_page(tmp_path / "results")
    assert "| 1 | Mean | 50.0 |" in page
    assert "What was stated, and what came out:\n\n- " in page


def test_the_repository_has_a_table_to_show_at_once(tmp_path):
    """By the processor's time: the clock's depends on what else the machine does."""
    words = [sys.executable, "-m", "jaxfl.cli", "reproduce", "signguard-table1-mnist"]
    environment = os.environ | {"JAXFL_DATA_DIR": str(tmp_path)}  # no data: nothing can run
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert "90 cells: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_grid_over_more_than_the_papers_is_not_its_table():
    reported = Reported("p", "best", "", ("aggregator", "attack"), ("a",), {"r": (40.0,)})
    assert compared(Kept({}, [], 2 * [cell("r", "a", [0.9], [0.9])]), reported) == []


def test_an_unknown_experiment_is_one_line(tmp_path):
    words = ("nope", "--results", str(tmp_path))
    assert "unknown name 'nope'" in str(reproduce(*words).exception)


def test_what_no_paper_reports_is_shown_alone_and_on_the_page(run, tmp_path):
    keep(run, tmp_path / "quickstart")
    result = reproduce("quickstart", "--results", str(tmp_path))
    assert result.exit_code == 0, result.output
    kept = read_kept(tmp_path / "quickstart")
    share = f"{100 * np.mean(kept.cells[0].last):.1f}"
    assert share in result.output
    page = replications_page(tmp_path)
    assert f"| Mean | {share} |\n| Bulyan" in page
    assert "4 rounds, 2 seeds" in page
    assert str(run.parent) not in (tmp_path / "quickstart" / "environment.json").read_text()


def test_backdoors_stand_under_the_attacks_that_have_one():
    """Of seeds that did not diverge, and of which it is known."""
    backdoor = {"name": "backdoor", "target": 0}
    sweep = {"attack": ["none", "sign_flip", backdoor], "aggregator": ["mean", "median"]}
    experiment = schema.parse("kept", SMALL_GRID | {"sweep": sweep})
    success = {"Mean": [0.25, 0.5], "Median": [0.75, math.nan]}
    last = {"Mean": [math.nan, 0.5], "Median": [0.5, 0.5]}
    cells = [
        Cell(
            *(dict(cell.labels), "done", [0, 1], [0.5] * 2, last[rule], []),
            *(math.nan, math.nan, 1.0),
        )
        for cell in experiment.cells
        for rule in [cell.labels["aggregator"]]
    ]
    cells[4:] = [replace(c, success=success[c.labels["aggregator"]]) for c in cells[4:]]
    kept = Kept(experiment.table, [], cells)
    *_, (table, caption) = own(kept, results_of(kept), [])
    label = cells[-1].labels["attack"]
    assert table == [["", label], ["Mean", "50.0"], ["Median", "75.0"]]
    assert "mean over the seeds that did not diverge" in caption
    both = {found.row: found.ours for metric, found in alone(kept) if metric == "success"}
    assert both == {"Mean": 50.0, "Median": 75.0}


def test_our_numbers_alone_are_written(run, tmp_path):
    """Of every metric that a cell has; nobody's stand beside them."""
    keep(run, tmp_path / "quickstart")
    path = tmp_path / "quickstart" / "cells.jsonl"
    mean, bulyan = path.read_text().splitlines()
    lost = {"labels": {"aggregator": "Lost"}, "last": [None, 0.5], "best": [1.0, 1.0]}
    lost |= {"success": [0.25, 0.5], "honest_selected": None}
    path.write_text("\n".join([mean, bulyan, json.dumps(json.loads(mean) | lost)]))
    out = tmp_path / "all.csv"
    words = ("quickstart", "--results", str(tmp_path), "--write", str(out))
    assert reproduce(*words).exit_code == 0
    with out.open() as file:
        lines = list(csv.DictReader(file))
    found = {(line["metric"], line["row"]): line for line in lines}
    assert {line["column"] for line in lines} == {"accuracy"}
    assert {row for _, row in found} == {"Mean", "Lost"}
    first = read_kept(path.parent).cells[0]
    assert found["best", "Mean"]["ours"] == f"{100 * np.mean(first.best):.2f}"
    assert found["best", "Mean"]["last"] == f"{100 * np.mean(first.last):.2f}"
    assert found["honest_selected", "Mean"]["ours"] == "100.00"
    assert {metric for metric, row in found if row == "Lost"} == {
        *("best", "last", "success", "malicious_selected"),
    }
    assert found["best", "Lost"]["last"] == "25.00"
    assert found["success", "Lost"]["ours"] == "50.00", "of the seed that did not diverge"
    theirs = {(line["theirs"], line["difference"], line["within_seeds"]) for line in lines}
    assert theirs == {("", "", "")}
