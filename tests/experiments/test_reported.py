"""What is kept of a run, and a paper's numbers beside it."""

import csv
import dataclasses
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from helpers import ran, run_until
from typer.testing import CliRunner

from jaxfl.cli import app
from jaxfl.experiments import schema
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.from_log import not_run
from jaxfl.experiments.kept import Cell, Kept, cell_of, keep, read_kept
from jaxfl.experiments.reported import METRICS, Reported, available, compared, read_reported
from jaxfl.experiments.results import half_interval
from jaxfl.experiments.running import Interrupted
from jaxfl.experiments.scales import folder_name, scale_of, whole_scales
from jaxfl.report.replications import apart, replications_page
from jaxfl.signals import StopSignals

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


def test_a_page_tells_who_was_taken_and_how_long_backdoors_lasted(run, tmp_path):
    keep(run, tmp_path / "quickstart")
    path = tmp_path / "quickstart" / "cells.jsonl"
    table = "| Mean | {} |"
    # The mean takes all: it does not choose.
    assert "Byzantine messages" not in replications_page(tmp_path)
    mean, bulyan = map(json.loads, path.read_text().splitlines())
    chosen = {"malicious_selected": 0.25, "success": [0.3, 0.5]}
    lasted = {"planted": 1.0, "lifespan": 7.0, "outlived": 0.5}
    lines = [json.dumps(line) for line in (mean | chosen | lasted, bulyan)]
    path.write_text("\n".join(lines))
    page = replications_page(tmp_path)
    assert table.format("25") in page
    assert table.format("40.0; 100.0; > 7") in page
    assert "taken, in %" in page
    assert "for how many rounds it lasted" in page
    shown = reproduce("quickstart", "--results", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert "│ Mean │       25 │" in shown.output
    assert "│ Mean │ 40.0; 100.0; > 7 │" in shown.output
    assert page.count("| Bulyan |") == 1  # not applicable: in the table of accuracies alone


def several(path, *, rounds=TABLE["rounds"], **settings):
    """Runs three rules that apply and one that does not; stops after so many blocks."""
    sweep = {"aggregator": ["mean", "median", "bulyan", "krum"]}
    experiment = schema.parse("several", TABLE | {"sweep": sweep, "rounds": rounds})
    run_until(path, experiment, **settings)
    return experiment


def without_run(cell):
    return dataclasses.replace(cell, run=0, seconds=0.0)


def test_a_grid_is_run_in_several_sittings(tmp_path):
    experiment = several(tmp_path / "whole")
    keep(tmp_path / "whole", tmp_path / "at once")
    with pytest.raises(Interrupted):
        several(tmp_path / "first", stop_after=3)
    for _ in range(2):  # the same run again changes nothing
        keep(tmp_path / "first", tmp_path / "kept")
    part = read_kept(tmp_path / "kept")
    assert (part.done(experiment), part.whole, len(part.environments)) == ({0}, False, 1)
    assert "1 of 4 cells so far. Run on" in replications_page(tmp_path)

    with pytest.raises(Interrupted):
        several(tmp_path / "second", elsewhere=part.done(experiment), stop_after=1)
    with pytest.raises(ValueError, match=r"left out 1 of the cells that are wanted now"):
        several(tmp_path / "second", resume=True)
    several(tmp_path / "second", elsewhere=part.done(experiment), resume=True)
    later = tmp_path / "second" / "environment.json"  # in this test it began in the same second
    later.write_text(json.dumps(json.loads(later.read_text()) | {"started": "2100-01-01"}))
    log = (tmp_path / "second" / "rounds.jsonl").read_text().splitlines()
    assert {json.loads(line)["cell"] for line in log} == {1, 3}
    keep(tmp_path / "second", tmp_path / "kept")
    kept, whole = read_kept(tmp_path / "kept"), read_kept(tmp_path / "at once")
    assert kept.whole
    assert [cell.run for cell in kept.cells] == [0, 1, 1, 1]
    assert repr([without_run(c) for c in kept.cells]) == repr([without_run(c) for c in whole.cells])
    assert read_results(tmp_path / "second")[1][0].status == "done in another run"

    read_kept(tmp_path / "kept").check_same(experiment.table | {"findings": []}, tmp_path)
    several(tmp_path / "other", rounds=2)
    with pytest.raises(ValueError, match=r"keeps another experiment: rounds is 4 there, 2 here"):
        keep(tmp_path / "other", tmp_path / "kept")


def test_the_order_of_axes_does_not_tell_kept_cells_apart(tmp_path):
    axes = {"aggregator": ["mean", "median"], "attack": ["none", "sign_flip"]}
    one, other = (
        schema.parse("order", TABLE | {"sweep": dict(sweep)})
        for sweep in (axes.items(), reversed(axes.items()))
    )
    run_until(tmp_path / "one", one)
    keep(tmp_path / "one", tmp_path / "kept")
    assert read_kept(tmp_path / "kept").done(other) == {0, 1, 2, 3}
    run_until(tmp_path / "other", other, elsewhere={0, 1, 2})
    keep(tmp_path / "other", tmp_path / "kept")
    kept = read_kept(tmp_path / "kept")
    assert [list(cell.labels) for cell in kept.cells] == 4 * [["attack", "aggregator"]]
    assert kept.whole


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("reproduce mnist --results /home/me/r --out runs --write=a.csv", "reproduce mnist"),
        ("run /home/me/my.toml --quiet --data-dir d --out=o", "run my.toml --quiet"),
        (
            "run x --set model=a/b:C --set=y=/z",
            "run x --set model=a/b:C --set=y=/z",
        ),
    ],
)
def test_a_kept_command_has_no_folders_and_all_that_was_set(run, tmp_path, given, kept):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    facts = json.loads((path / "environment.json").read_text())
    facts |= {
        "command": ["/bin/jaxfl", *given.split()],
        "resumed": [facts | {"modules": ["/home"]}],
    }
    (path / "environment.json").write_text(json.dumps(facts))
    keep(path, tmp_path / "kept")
    (environment,) = read_kept(tmp_path / "kept").environments
    assert environment["command"] == ["jaxfl", *kept.split()]
    assert "modules" not in environment["resumed"][0]


def test_a_run_that_went_on_elsewhere_is_still_one(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    keep(path, tmp_path / "kept")
    facts = json.loads((path / "environment.json").read_text())
    (path / "environment.json").write_text(json.dumps(facts | {"resumed": [facts]}))
    keep(path, tmp_path / "kept")
    kept = read_kept(tmp_path / "kept")
    assert (len(kept.environments), {cell.run for cell in kept.cells}) == (1, {0})
    assert kept.environments[0]["resumed"]
    assert "then on jax" in replications_page(tmp_path)


def tuned():
    """Two rules under two attacks; each rule's cells share what is chosen for it."""
    sweep = {"attack": ["none", "sign_flip"], "aggregator": ["mean", "median"]}
    tune = {"optimizer.learning_rate": [0.001, 0.1]}
    changes = {"validation": 0.2, "optimizer": "sgd", "sweep": sweep, "tune": tune}
    return schema.parse("tuned", TABLE | changes)


def test_a_tuned_rule_is_kept_once_all_cells_of_its_choice_are_done(tmp_path):
    """A choice over some of the attacks would be another one."""
    experiment = tuned()
    with pytest.raises(Interrupted):
        run_until(tmp_path / "run", experiment, stop_after=3)  # of four cells, two blocks each
    keep(tmp_path / "run", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    run_until(tmp_path / "run", experiment, resume=True)
    keep(tmp_path / "run", tmp_path / "kept")
    assert read_kept(tmp_path / "kept").whole
    path = tmp_path / "kept" / "cells.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert read_kept(tmp_path / "kept").done(experiment) == {0, 2}
    run_until(tmp_path / "part", experiment, elsewhere={0, 2, 3})
    keep(tmp_path / "part", tmp_path / "kept")
    assert len(read_kept(tmp_path / "kept").cells) == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_reproduce_runs_what_is_not_kept(tmp_path, monkeypatch, stopped):
    """A packaged experiment, here of other cells; what was kept before a stop stays."""
    table = TABLE | {"sweep": {"aggregator": ["mean", "median"]}}
    monkeypatch.chdir(tmp_path)
    run, _ = ran(TABLE | {"sweep": {"aggregator": ["mean"]}}, tmp_path)
    kept = tmp_path / "results" / "quickstart"
    keep(run, kept)
    (kept / "experiment.toml").write_text(tomli_w.dumps(table))
    monkeypatch.setattr(schema, "load", lambda *_, **__: schema.parse("quickstart", table))
    monkeypatch.setattr("jaxfl.commands.reproduce.repository_results", lambda: tmp_path / "none")
    if stopped:
        always = property(lambda _: True, lambda *_: None)
        monkeypatch.setattr(StopSignals, "asked", always, raising=False)
    result = reproduce("quickstart")
    assert "Kept in results/quickstart: 1 of 2 cells" in result.output, result.output
    assert isinstance(result.exception, Interrupted) == stopped
    cells = read_kept(kept).cells
    assert [cell.labels["aggregator"] for cell in cells] == ["Mean", "Median"][: 2 - stopped]
    log = (tmp_path / "runs" / "quickstart" / "rounds.jsonl").read_text()
    assert {json.loads(line)["cell"] for line in log.splitlines()} == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "environment.json").write_text("[]"), "environment.json has no run 0"),
        (lambda p: (p / "cells.jsonl").unlink(), "holds no results that were kept"),
        (lambda p: (p / "environment.json").write_text("{"), "holds no results that were kept"),
        (lambda p: (p / "environment.json").write_text("[1]"), "is no list of tables"),
        (lambda p: (p / "cells.jsonl").write_text(""), "cells.jsonl is empty"),
        (lambda p: (p / "cells.jsonl").write_text("{}\n"), r"cells.jsonl, line 1 is damaged"),
        (lambda p: (p / "experiment.toml").write_text("rounds"), "not valid TOML"),
    ],
)
def test_what_is_damaged_is_named(run, tmp_path, change, message):
    keep(run, tmp_path / "kept")
    change(tmp_path / "kept")
    with pytest.raises(ValueError, match=message):
        read_kept(tmp_path / "kept")
    page = replications_page(tmp_path)
    if "holds" not in message or (tmp_path / "kept" / "cells.jsonl").exists():
        assert re.search(rf"\*\*Not shown:\*\* kept.*{message}", page)
    assert str(tmp_path) not in page


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"),
        *({"seeds": 3}, {"labels": []}, {"labels": {"aggregator": 1}}, {"best": ["a"]}),
        *({"status": None}, {"run": 1}, {"run": "0"}, {"run": -1}, {"more": 1}, {"last": None}),
    ],
    ids=str,
)
def test_a_damaged_line_hides_no_other(run, tmp_path, line):
    """The table is shown without it, with a warning, and nothing is run in its place."""
    for name in ("quickstart_reduced", "mnist"):
        keep(run, tmp_path / name)
    path = tmp_path / "quickstart_reduced" / "cells.jsonl"
    first, second = path.read_bytes().splitlines()
    bad = line if isinstance(line, bytes) else json.dumps(json.loads(second) | line).encode()
    path.write_bytes(b"\n".join([bad, first, b""]))
    kept = read_kept(path.parent)
    assert [cell.labels["aggregator"] for cell in kept.cells] == ["Mean"]
    (said,) = kept.damaged
    assert said.startswith(f"{path}, line 1 is damaged: ")
    shown = reproduce("quickstart", "--results", str(tmp_path), "--out", str(tmp_path / "run"))
    assert shown.exit_code == 1
    share = f"{100 * np.mean(kept.cells[0].last):.1f}"
    assert f"│ Mean │     {share} │" in shown.stdout
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stderr == f"jaxfl: warning: {said}\n"
    assert not (tmp_path / "run").exists()
    page = replications_page(tmp_path)
    assert "**Not shown:** quickstart_reduced/cells.jsonl, line 1 is damaged" in page
    assert page.count(f"| Mean | {share} |") == 2


def test_a_scale_that_cannot_be_read_hides_no_other(run, tmp_path):
    for name in ("quickstart_reduced", "quickstart_other", "mnist"):
        keep(run, tmp_path / name)
    (tmp_path / "quickstart_reduced" / "environment.json").unlink()
    shown = reproduce("quickstart", "--results", str(tmp_path))
    assert shown.exit_code == 1
    assert "quickstart_other. Of" in shown.stdout
    (warning,) = shown.stderr.splitlines()
    assert "warning" in warning
    assert "quickstart_reduced holds no results" in warning
    page = replications_page(tmp_path)
    assert "**Not shown:** quickstart_reduced holds no results that were kept" in page
    assert page.count("| Bulyan | n/a |") == 2


def test_a_damaged_line_is_run_again_where_that_is_asked(scales):
    path = scales / "attacks_reduced" / "cells.jsonl"
    path.write_text(path.read_text().replace('"aggregator": "Mean"', '"aggregator": 1'))
    table = read_kept(path.parent).table
    assert read_kept(path.parent).damaged
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "load", lambda *_, **__: schema.parse("attacks", table))
        shown = reproduce("attacks", "--reduced", "--run", "--results", str(scales))
    assert "1 of 2 cells" in shown.output
    assert (shown.exit_code, read_kept(path.parent).whole) == (0, True)


def test_nothing_that_the_repository_keeps_is_damaged():
    for path in (Path(__file__).parents[2] / "results").glob("*/cells.jsonl"):
        assert read_kept(path.parent).damaged == ()


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
    assert apart(reported, compared(Kept({}, [], cells), reported)) == [
        [("aggregator", False), ("a", False), ("b", False)],
        [("r", False), ("+2.0* (90.0)", False), ("-10.0 (12.3)", True)],
        [("s", False), ("-", False), ("-0.5 (diverged)", False)],
        [("t", False), ("+nan (diverged)", True), ("-", False)],
    ]


def test_rates_of_selection_are_set_beside_the_papers():
    kept = Kept({}, [], [cell("r", "a", [0.9, 0.9], [0.9, 0.9])])
    for metric, ours in (("honest_selected", 100.0), ("malicious_selected", 0.0)):
        reported = Reported("p", metric, "", ("aggregator", "attack"), ("a",), {"r": (40.0,)})
        (found,) = compared(kept, reported)
        assert (found.ours, found.within) == (ours, None)
        assert found.difference == ours - 40


def test_a_cell_that_did_not_run_has_no_numbers():
    kept = cell_of(not_run(schema.parse("x", TABLE).cells[0], "does not apply"))
    assert (kept.status, kept.best, kept.last) == ("does not apply", [], [])
    reported = Reported("p", "best", "", ("aggregator", "attack"), ("a",), {"Mean": (1.0,)})
    assert compared(Kept({}, [], [kept]), reported) == []


def reproduce(*words):
    return CliRunner().invoke(app, ["reproduce", *words])


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
    assert "1440 rounds, 1 seed; theirs: 60 epochs" in result.output
    assert len(out.read_text().splitlines()) == 91
    assert "-10.0 (50.0)" in result.output
    assert "+0.0 (50.0)" in result.output


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


@pytest.fixture
def scales(tmp_path, monkeypatch):
    """Kept: of the whole one cell of two, two smaller scales, and another experiment."""
    one, two = ({"aggregator": rules} for rules in (["mean"], ["mean", "median"]))
    for name, changes in (
        ("attacks", {"sweep": one}),
        ("attacks_reduced", {"sweep": two, "rounds": 2}),
        ("attacks_tiny", {"sweep": two, "rounds": 1}),
        ("attacks_mnist", {"sweep": two, "rounds": 3}),
    ):
        run_until(tmp_path / "run" / name, schema.parse(name, TABLE | changes))
        keep(tmp_path / "run" / name, tmp_path / "results" / name)
    table = TABLE | {"sweep": two}
    (tmp_path / "results" / "attacks" / "experiment.toml").write_text(tomli_w.dumps(table))
    monkeypatch.setattr(schema, "load", lambda *_, **__: schema.parse("attacks", table))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def test_a_smaller_scale_that_is_whole_is_shown_and_nothing_run(scales):
    whole, damaged = whole_scales([scales, scales], "attacks")
    assert whole == [scales / "attacks_reduced", scales / "attacks_tiny"]
    assert damaged == []
    shown = reproduce("attacks", "--results", str(scales))
    assert shown.exit_code == 0, shown.output
    said = f"Shown: {scales / 'attacks_reduced'}; also kept: --as tiny. Of attacks 1 of the cells"
    assert said in shown.output
    assert "`rounds` 2 (200)" in shown.output
    assert not (scales.parent / "runs").exists()
    shown = reproduce("attacks", "--results", str(scales), "--run")
    assert shown.exit_code == 0, shown.output
    assert read_kept(scales / "attacks").whole
    assert "Shown: " not in reproduce("attacks", "--results", str(scales)).output


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("attacks", None),
        ("attacks_mnist", None),
        ("attacks_mnist", "reduced"),
        ("attacks", "two_rules"),
        ("signguard-table1-mnist", "20-epochs"),
    ],
)
def test_the_name_of_a_folder_tells_experiment_and_scale(name, scale):
    assert scale_of(Path("results") / folder_name(name, scale)) == (name, scale)


NAME = "signguard-table1-mnist"
SMALL = {
    "data": '{name="synthetic", clients=5, samples=60, features=4, classes=2}',
    "model": "softmax",
    "byzantine": "1",
    "algorithm.batch_size": "4",
    "rounds": "2",
    "sweep.aggregator": '["mean", "median"]',
    "sweep.attack": '["none", "sign_flip"]',
}


def settings(**changes):
    return [
        word for key, value in (SMALL | changes).items() for word in ("--set", f"{key}={value}")
    ]


def test_a_scale_of_ones_own_is_kept_under_its_name(tmp_path, monkeypatch):
    """It stands beside the paper, cells that are not in it are absent, and it is gone on with."""
    monkeypatch.chdir(tmp_path)
    shown = reproduce(NAME, *settings(), "--as", "two-rules")
    assert shown.exit_code == 0, shown.output
    kept = Path("results") / f"{NAME}_two-rules"
    assert (len(read_kept(kept).cells), read_kept(kept).whole) == (4, True)
    assert "4 cells: " in shown.output
    assert "(99.2)" in shown.output
    assert "MultiKrum" not in shown.output
    page = replications_page(Path("results"))
    assert f"## {NAME}_two-rules\n" in page
    assert (
        "10 of them Byzantine: two-rules. Changed (the whole one's in brackets): `rounds` 2" in page
    )
    assert "`sweep.aggregator` 2 values (10 values)" in page
    assert page.count("| aggregator | No attack | SignFlip |\n") == 2
    assert "Ours less theirs in points" in page
    assert (Path("runs") / f"{NAME}_two-rules" / "summary.csv").is_file()

    shutil.rmtree("runs")
    lines = (kept / "cells.jsonl").read_text().splitlines(keepends=True)
    (kept / "cells.jsonl").write_text("".join(lines[:3]))
    shown = reproduce(NAME, "--as", "two-rules")
    assert f"Kept in {kept}: 3 of 4 cells" in shown.output, shown.output
    assert read_kept(kept).whole
    shutil.rmtree("runs")
    assert reproduce(NAME, *settings(), "--as", "two-rules").exit_code == 0
    assert not Path("runs").exists()
    other = reproduce(NAME, *settings(rounds="3"), "--as", "two-rules")
    assert "keeps another experiment: rounds is 2 there, 3 here" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((NAME, *settings()), "--as SCALE names what is kept"),
        ((NAME, "--as", "small"), "is not kept: --set says what it changes"),
        ((NAME, *settings(), "--as", "reduced"), "has its own meaning"),
        (("attacks", "--set", "rounds=2", "--as", "mnist"), "attacks_mnist has its own meaning"),
        ((NAME, *settings(), "--as", "../up"), "--as wants letters"),
        ((NAME, "--set", "runds=2", "--as", "small"), "unknown name 'runds'"),
    ],
)
def test_a_scale_that_is_not_one_is_refused(tmp_path, words, message):
    refused = reproduce(*words, "--results", str(tmp_path), "--out", str(tmp_path / "run"))
    assert message in str(refused.exception)
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
        *("best", "success", "malicious_selected"),
    }
    assert found["best", "Lost"]["last"] == ""
    assert found["success", "Lost"]["ours"] == "37.50"
    theirs = {(line["theirs"], line["difference"], line["within_seeds"]) for line in lines}
    assert theirs == {("", "", "")}


def test_a_reduced_version_says_in_which_numbers(run, tmp_path):
    """Also where its title, as of a file without a title of its own, has those of the whole."""
    path = tmp_path / "adapters_reduced"
    keep(run, path)
    table = schema.load("adapters", reduced=True).table | {"title": "50 clients"}
    (path / "experiment.toml").write_text(tomli_w.dumps(table))
    page = replications_page(tmp_path)
    said = "`rounds` 30 (100), `byzantine` 4 (10), `data.clients` 20 (50), `sweep.attack` 4 values"
    assert f"50 clients. Reduced (the whole one's in brackets): {said} (5 values)" in page
    assert "title" not in page
    results = Path(__file__).parents[2] / "results"
    shown = reproduce("adapters", "--reduced", "--results", str(results)).output
    assert "`byzantine` 4 (10)" in shown


def test_what_a_title_says_decides_nothing():
    kept = Kept(TABLE | {"title": "one"}, [], [])
    kept.check_same(TABLE | {"title": "two"}, Path("here"))
    with pytest.raises(ValueError, match="byzantine is 1 there, 2 here"):
        kept.check_same(TABLE | {"byzantine": 2}, Path("here"))
