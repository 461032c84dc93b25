"""What is kept of a run, over sittings and where it is damaged."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from helpers import SMALL_GRID, ran, reproduce, run_until
from typer.testing import CliRunner

from jaxfl.cli import app
from jaxfl.experiments import schema
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.kept import Kept, keep, read_kept
from jaxfl.experiments.ranking import rankings
from jaxfl.experiments.recalled import results_of
from jaxfl.experiments.results import FAIRNESS
from jaxfl.experiments.running import Interrupted
from jaxfl.report.grid import in_percent
from jaxfl.report.replications import own, replications_page
from jaxfl.signals import StopSignals


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
    assert "Bulyan needs" in bulyan.status
    assert bulyan.last == []
    assert math.isnan(bulyan.honest_selected)
    # What compiles is no part of the time in which rounds ran.
    assert 0 < mean.running < mean.seconds / 2
    assert math.isnan(bulyan.running)
    assert kept.table["sweep"] == SMALL_GRID["sweep"]
    assert sum(f.stat().st_size for f in (tmp_path / "kept").iterdir()) < 10_000


def several(path, *, rounds=SMALL_GRID["rounds"], **settings):
    """Runs three rules that apply and one that does not; stops after so many blocks."""
    sweep = {"aggregator": ["mean", "median", "bulyan", "krum"]}
    experiment = schema.parse("several", SMALL_GRID | {"sweep": sweep, "rounds": rounds})
    run_until(path, experiment, **settings)
    return experiment


def without_run(cell):
    return dataclasses.replace(cell, run=0, seconds=0.0, running=0.0)


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
        schema.parse("order", SMALL_GRID | {"sweep": dict(sweep)})
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
    later = facts | {"packages": facts["packages"] | {"jax": "99.0"}}
    (path / "environment.json").write_text(json.dumps(facts | {"resumed": [facts, later, later]}))
    keep(path, tmp_path / "kept")
    kept = read_kept(tmp_path / "kept")
    assert (len(kept.environments), {cell.run for cell in kept.cells}) == (1, {0})
    assert kept.environments[0]["resumed"]
    assert replications_page(tmp_path).count("then on jax") == 1
    assert ", then on jax 99.0)" in replications_page(tmp_path)


def tuned():
    """Two rules under two attacks; each rule's cells share what is chosen for it."""
    sweep = {"attack": ["none", "sign_flip"], "aggregator": ["mean", "median"]}
    tune = {"optimizer.learning_rate": [0.001, 0.1]}
    changes = {"validation": 0.2, "optimizer": "sgd", "sweep": sweep, "tune": tune}
    return schema.parse("tuned", SMALL_GRID | changes)


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
    table = SMALL_GRID | {"sweep": {"aggregator": ["mean", "median"]}}
    monkeypatch.chdir(tmp_path)
    run, _ = ran(SMALL_GRID | {"sweep": {"aggregator": ["mean"]}}, tmp_path)
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


def test_nothing_that_the_repository_keeps_is_damaged():
    for path in (Path(__file__).parents[2] / "results").glob("*/cells.jsonl"):
        assert read_kept(path.parent).damaged == ()


def test_of_what_an_older_jaxfl_kept_no_more_is_said_than_is_known(run, tmp_path):
    """Without its losses: who diverged by them, and whether shares end where a run did."""
    keep(run, tmp_path)
    path = tmp_path / "cells.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    first |= {"malicious_selected": 0.25, "status": "diverged", "last": [None, 0.1]}

    def read(**changes):
        path.write_text(json.dumps(first | changes))
        (cell,) = (kept := read_kept(tmp_path)).cells
        assert results_of(kept)[0].status == cell.status
        return cell.status, cell.malicious_selected

    assert read(losses=[None, 1.0]) == ("1 of 2 diverged", 0.25)
    assert read(losses=[], last=[0.1, 0.1], status="done") == ("done", 0.25)
    nan = pytest.approx(math.nan, nan_ok=True)
    assert read(losses=[]) == ("at least 1 of 2 diverged", nan)
    assert read(losses=[], last=[0.1, 0.1]) == ("diverged", nan)


def test_what_a_title_says_decides_nothing():
    kept = Kept(SMALL_GRID | {"title": "one"}, [], [])
    kept.check_same(SMALL_GRID | {"title": "two"}, Path("here"))
    with pytest.raises(ValueError, match="byzantine is 1 there, 2 here"):
        kept.check_same(SMALL_GRID | {"byzantine": 2}, Path("here"))


def test_results_of_what_is_kept_are_those_of_the_run(tmp_path):
    """All that rankings and claims are made of; ``jaxfl report`` shows them without the log."""
    claims = [
        {"claim": "even", "better": {"aggregator": "Mean"}, "than": {"aggregator": "Median"}}
        | {"metric": f"client_{name}"}
        for name in ("mean", "gini")
    ]
    data = SMALL_GRID["data"] | {"client_test": 0.3}
    privacy = {"name": "message", "clip": 1.0, "noise_multiplier": 0.5}
    changes = {"findings": claims, "data": data, "privacy": privacy}
    grid = tuned().table | changes
    run, _ = ran(grid, tmp_path)
    kept = tmp_path / "mine"
    keep(run, kept)
    experiment, results = read_results(run)
    again = results_of(read_kept(kept))
    assert all(result.chosen == again[0].chosen for result in results[::2])
    assert [str(v) for v in verdicts(experiment, again)] == [
        str(v) for v in verdicts(experiment, results)
    ]
    for mine, theirs in zip(results, again, strict=True):
        assert mine.cell.labels == theirs.cell.labels
        assert (mine.status, mine.chosen) == (theirs.status, theirs.chosen)
        for name in ("final", "best", "spread", "impact", "honest_selected", "malicious_selected"):
            np.testing.assert_allclose(getattr(theirs, name), getattr(mine, name), atol=1e-5)
        for name in FAIRNESS:
            assert theirs.of_clients(name) == pytest.approx(mine.of_clients(name), abs=1e-5)
        assert theirs.epsilon == pytest.approx(mine.epsilon, abs=1e-5)
    np.testing.assert_allclose(
        [entry.cost for entry in rankings(experiment, again)[0].defences],
        [entry.cost for entry in rankings(experiment, results)[0].defences],
        rtol=0.1,
    )
    (table, caption), *_ = own(read_kept(kept), again, [])
    assert [line[-1] for line in table] == [
        *("tuned", experiment.candidates[again[0].chosen], experiment.candidates[again[1].chosen])
    ]
    assert caption.endswith("; tuned on held-out samples.")
    out = tmp_path / "kept.html"
    shown = CliRunner().invoke(app, ["report", str(kept), "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    text = out.read_text()
    assert verdicts(experiment, results)[0].word in text
    (found,) = json.loads(re.findall(r"^const runs = (.*);$", text, re.MULTILINE)[0])
    assert [cell["rounds"] for cell in found["cells"]] == [[]] * 4
    assert found["cells"][0]["text"] == in_percent("done", results[0].final, results[0].spread)
    assert not (kept / "report.html").exists()
