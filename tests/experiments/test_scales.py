"""Smaller scales of an experiment that are kept beside it."""

import shutil
from pathlib import Path

import pytest
import tomli_w
from helpers import SMALL_GRID, reproduce, run_until

from jaxfl.experiments import schema
from jaxfl.experiments.kept import keep, read_kept
from jaxfl.experiments.scales import folder_name, scale_of, whole_scales
from jaxfl.report.replications import replications_page


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
        run_until(tmp_path / "run" / name, schema.parse(name, SMALL_GRID | changes))
        keep(tmp_path / "run" / name, tmp_path / "results" / name)
    table = SMALL_GRID | {"sweep": two}
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


def test_a_reduced_version_says_in_which_numbers(run, tmp_path):
    """Under the title that it has now, whatever it was kept with."""
    path = tmp_path / "adapters_reduced"
    keep(run, path)
    table = schema.load("adapters", reduced=True).table | {"title": "50 clients"}
    (path / "experiment.toml").write_text(tomli_w.dumps(table))
    page = replications_page(tmp_path)
    said = "`rounds` 30 (100), `byzantine` 4 (10), `data.clients` 20 (50), `sweep.attack` 4 values"
    title = schema.load("adapters", reduced=True).title
    assert f"{title}. Reduced (the whole one's in brackets): {said} (5 values)" in page
    assert "title" not in page
    results = Path(__file__).parents[2] / "results"
    shown = reproduce("adapters", "--reduced", "--results", str(results)).output
    assert "`byzantine` 4 (10)" in shown
