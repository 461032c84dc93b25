"""What is kept of a run, and a paper's numbers beside it."""

import json
import math

import numpy as np
import pytest
import tomli_w
from helpers import ran
from typer.testing import CliRunner

from jaxfl.cli import app
from jaxfl.experiments import schema
from jaxfl.experiments.kept import Cell, Kept, cell_of, keep, read_kept
from jaxfl.experiments.reported import METRICS, Reported, available, compared, read_reported
from jaxfl.experiments.results import half_interval, not_run
from jaxfl.report.replications import replications_page

TABLE = {
    "rounds": 4,
    "evaluate_every": 2,
    "byzantine": 1,
    "model": "softmax",
    "data": {"name": "synthetic", "clients": 5, "samples": 60, "features": 4, "classes": 2},
    "sweep": {"aggregator": ["mean", {"name": "bulyan"}], "seed": [0, 1]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ran(TABLE, tmp_path_factory.mktemp("kept"))[0]


def test_what_is_kept_is_what_was_logged(run, tmp_path):
    keep(run, tmp_path / "kept")
    kept = read_kept(tmp_path / "kept")
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    by_seed = [[x["test_accuracy"] for x in lines if x["seed"] == s and "test_accuracy" in x]
               for s in (0, 1)]  # fmt: skip
    mean, bulyan = kept.cells
    np.testing.assert_allclose(mean.last, [seed[-1] for seed in by_seed], atol=1e-6)
    np.testing.assert_allclose(mean.best, [max(seed) for seed in by_seed], atol=1e-6)
    assert (mean.status, mean.seeds, mean.success) == ("done", [0, 1], [])
    assert bulyan.status == "not applicable"
    assert bulyan.last == []
    assert math.isnan(bulyan.honest_selected)
    assert kept.table["sweep"] == TABLE["sweep"]
    assert sum(f.stat().st_size for f in (tmp_path / "kept").iterdir()) < 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "cells.jsonl").unlink(), "holds no results that were kept"),
        (lambda p: (p / "environment.json").write_text("{"), "holds no results that were kept"),
        (lambda p: (p / "cells.jsonl").write_text("{}\n"), r"cells.jsonl, line 1 is damaged"),
        (lambda p: (p / "cells.jsonl").write_text("[1]\n"), r"cells.jsonl, line 1 is damaged"),
    ],
)
def test_what_is_damaged_is_named(run, tmp_path, change, message):
    keep(run, tmp_path / "kept")
    change(tmp_path / "kept")
    with pytest.raises(ValueError, match=message):
        read_kept(tmp_path / "kept")


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


def cell(row, column, best, last):
    labels = {"aggregator": row, "attack": column}
    return Cell(labels, "done", list(range(len(best))), best, last, [], 1.0, 0.0, 1.0)


def test_ours_stands_beside_theirs():
    reported = Reported(
        "paper", "best", "", ("aggregator", "attack"), ("a", "b"), {"r": (90.0, 80.0)}
    )
    kept = Kept({}, {}, [cell("r", "a", [0.91, 0.93], [0.9, 0.9]), cell("r", "c", [1.0], [1.0])])
    (found,) = compared(kept, reported)
    assert found.difference == pytest.approx(2)
    assert (found.ours, found.last, found.theirs) == pytest.approx((92, 90, 90))
    assert found.within is (half_interval(np.array([91.0, 93.0])) >= 2)
    alone = Kept({}, {}, [cell("r", "b", [0.7], [0.6])])
    (found,) = compared(alone, reported)
    assert found.difference == pytest.approx(-10)
    assert found.within is None


def test_rates_of_selection_are_set_beside_the_papers():
    kept = Kept({}, {}, [cell("r", "a", [0.9, 0.9], [0.9, 0.9])])
    for metric, ours in (("honest_selected", 100.0), ("malicious_selected", 0.0)):
        reported = Reported("p", metric, "", ("aggregator", "attack"), ("a",), {"r": (40.0,)})
        (found,) = compared(kept, reported)
        assert (found.ours, found.within) == (ours, None)
        assert found.difference == ours - 40


def test_a_cell_that_did_not_run_has_no_numbers():
    kept = cell_of(not_run(schema.parse("x", TABLE).cells[0], "does not apply"))
    assert (kept.status, kept.best, kept.last) == ("does not apply", [], [])
    reported = Reported("p", "best", "", ("aggregator", "attack"), ("a",), {"Mean": (1.0,)})
    assert compared(Kept({}, {}, [kept]), reported) == []


def reproduce(*words):
    return CliRunner().invoke(app, ["reproduce", *words])


def test_kept_results_are_shown_without_a_run(tmp_path):
    name = "signguard-table1-mnist"
    (reported,) = read_reported(name)
    folder = tmp_path / "results" / name
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(tomli_w.dumps(schema.load(name, []).table))
    (folder / "environment.json").write_text("{}")
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
    assert "1440 rounds, 1 seed; theirs: 60 epochs" in result.output
    assert len(out.read_text().splitlines()) == 91


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
