"""The command line, as a person would use it."""

import contextlib
import csv
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from unittest import mock

import jax
import numpy as np
import pytest

from jaxfl import Krum, __version__, cli
from jaxfl.data import SOURCES
from jaxfl.experiments import schema
from jaxfl.experiments.finished import read_results
from jaxfl.registry import REGISTRY

SMALL = """
rounds = 4
evaluate_every = 2
byzantine = 2
model = "softmax"
[data]
name = "synthetic"
clients = 10
samples = 200
features = 4
classes = 3
[sweep]
seed = [0, 1]
attack = ["none", { name = "ipm", scale = 10.0 }]
aggregator = ["mean", "krum", { name = "krum", f = 4 }]
"""


def jaxfl(*arguments, cwd, **environment):
    variables = os.environ | environment
    if "XDG_CACHE_HOME" in environment:  # as for a user who has chosen no cache
        del variables["JAX_COMPILATION_CACHE_DIR"]
    return subprocess.run(
        [sys.executable, "-m", "jaxfl.cli", *map(str, arguments)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def ask(*arguments, cwd, **environment):
    """The same in this process: quicker, for what compiles nothing."""
    words, out, err, status = ["jaxfl", *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    changed = os.environ | environment
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, changed),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            status = stopped.code
    return subprocess.CompletedProcess(words, status or 0, out.getvalue(), err.getvalue())


def compiled(cache):
    """The programs in the compilation cache: every one compiled leaves an entry."""
    return {path.name for path in (cache / "jaxfl" / "xla").iterdir() if "atime" not in path.name}


def kept(cache):
    """The kept programs, and when each was used last."""
    folder = cache / "jaxfl" / "programs"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_version_is_the_package_s(tmp_path):
    done = jaxfl("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"jaxfl {__version__}\n")


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_run_writes_a_table_and_a_plot_whose_paths_it_prints(tmp_path):
    small = tmp_path / "small.toml"
    small.write_text(SMALL.replace('"none", {', "{"))
    done = jaxfl("run", small, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small"
    assert "runs/small/accuracy.png" in done.stdout
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["status"] for row in rows} > {"done"}
    assert "n/a" in done.stdout
    for row in rows:
        if row["status"] == "done":
            assert f"{float(row['final_accuracy']) * 100:.1f}" in done.stdout
    assert "\x1b[" not in done.stdout, "plain lines where there is no terminal"
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "experiment.toml", "environment.json", "progress.json", "rounds.jsonl"),
        *(
            "report.html",
            "accuracy.png",
            "accuracy.svg",
            "summary.csv",
            "summary.md",
            "summary.tex",
        ),
    }
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["jax"] == jax.__version__
    entries, programs = compiled(tmp_path / "cache"), kept(tmp_path / "cache")
    assert entries
    assert len(programs) > 1
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    again = jaxfl("run", small, "--quiet", "--out", "again", cwd=tmp_path, **cache)
    assert compiled(tmp_path / "cache") == entries, "the second run compiles nothing"
    loaded = kept(tmp_path / "cache")
    assert loaded.keys() == programs.keys()
    assert all(loaded[name] > programs[name] for name in programs), "it loads every program"
    assert "[1/3]" not in again.stdout
    log = (tmp_path / "again" / "rounds.jsonl").read_bytes()
    assert log == (folder / "rounds.jsonl").read_bytes(), "same seeds, same bits"
    both = ask("compare", folder, "again", cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert "+0.0 ± 0.0" in both.stdout
    resumed = ask("run", small, "--resume", cwd=tmp_path)
    assert "[1/3]" not in resumed.stdout
    assert resumed.stdout.splitlines()[-9:] == done.stdout.splitlines()[-9:]


@pytest.mark.slow
def test_sigterm_leaves_a_run_that_resumes(small, tmp_path):
    words = ["run", "small.toml", "--set", "rounds=100000", "--set", "sweep.aggregator=['mean']"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxfl.cli", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "runs" / "small" / "rounds.jsonl"
    limit = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = errors.strip().splitlines()
    assert "jaxfl: stopped after round" in line
    assert "go on with --resume" in line
    progress = json.loads((log.parent / "progress.json").read_text())
    assert progress["round"] > 0
    assert (log.parent / "checkpoint" / progress["checkpoint"]).is_dir()
    refused = ask(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "holds an unfinished run" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstartt"], "did you mean 'quickstart'"),
        (["run", "small.toml", "--set", "byzantine=11"], "byzantine must be at most"),
        (["run", "small.toml", "--set", "data.clients=0"], "data.clients must be an integer"),
        (["run", "small.toml", "--set", 'sweep.aggregator=["krumm"]'], "did you mean 'krum'"),
        (
            ["run", "small.toml", "--set", 'sweep.aggregator=[{name="krum",f=4}]'],
            "Krum needs n >= 2f + 3 clients; got n = 10, f = 4",
        ),
        (["run", "small.toml", "--set", "data={name='mnist'}"], "JAXFL_DATA_DIR"),
        (["run", "small.toml", "--set", "data={name='mnist'}", "--data-dir", "."], "is missing"),
    ],
)
def test_a_mistake_is_one_line_and_a_bad_exit_code(small, tmp_path, arguments, message):
    done = ask(*arguments, cwd=tmp_path, JAXFL_DATA_DIR="")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope.toml"], "nope.toml: no such file; jaxfl list names"),
        (["run", "folder"], "folder is a folder; an experiment is a TOML file"),
        (["run", "small.toml", "--out", "small.toml"], "small.toml is a file, not a folder"),
        (["run", "small.toml", "--set", "model={name="], "--set model: {name= is not valid TOML"),
        (["run", "empty.toml"], "empty.toml is empty; jaxfl show quickstart prints"),
        (["run", "title.toml"], "title must be one line without control characters; got 'a\\x00b'"),
        (["data", "digits", "--partition", "{name="], "--partition: {name= is not valid TOML"),
        (["data", "digits", "--partition", "iid", "--out", "small.toml/x"], "small.toml"),
        (["run", "small.toml", "--set", "rounds=3000000000"], "rounds must be at most 2147483647"),
        (["run", "small.toml", "--set", "sweep.seed=[4294967296]"], "at most 4294967295"),
    ],
)
def test_a_mistake_is_told_by_the_command_itself(
    small, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.toml").write_text("# nothing but words\n")
    (tmp_path / "title.toml").write_text('title = "a\\u0000b"\n' + SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jaxfl", *arguments])
    monkeypatch.setattr("jaxfl.commands.run.use_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert errors.startswith("jaxfl: error: ")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shard_map", "pmap"])
def test_clients_are_mapped_over_the_devices_that_are_asked_for(small, tmp_path, way):
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    words = ("run", small, "--quiet", "--set", "sweep={seed=[0,1]}", "--out")
    for out, more in (("one", ()), ("both", ("--devices", "all", "--way", way))):
        done = jaxfl(*words, out, *more, cwd=tmp_path, **two)
        assert done.returncode == 0, done.stderr
    table = tomllib.loads((tmp_path / "both" / "experiment.toml").read_text())
    assert (table["devices"], table["way"]) == ("all", way)
    _, (one,) = read_results(tmp_path / "one")
    _, (both,) = read_results(tmp_path / "both")
    np.testing.assert_allclose(one.test, both.test, atol=0.021)  # of 50 samples, one
    refused = jaxfl(*words, "three", "--devices", "3", cwd=tmp_path, **two)
    assert "devices must be at most 2, as many as JAX has; got 3" in refused.stderr


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9")],
)
def test_a_full_memory_is_one_line(small, monkeypatch, capsys, error):
    def full(*_):
        raise error

    monkeypatch.setattr("jaxfl.commands.run.check", full)
    monkeypatch.setattr(sys, "argv", ["jaxfl", "run", str(small)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("jaxfl: error: out of memory: lower client_chunk")
    wrong = jax.errors.JaxRuntimeError("INTERNAL: a fault of the compiler")
    monkeypatch.setattr("jaxfl.commands.run.check", lambda *_: (_ for _ in ()).throw(wrong))
    with pytest.raises(jax.errors.JaxRuntimeError, match="fault"):
        cli.main()


def test_a_warning_is_one_line(small, monkeypatch, capsys):
    def warn(*_):
        warnings.simplefilter("always")  # within main, which puts it back
        warnings.warn("one thing\nand another", UserWarning, stacklevel=1)
        warnings.warn("overflow", RuntimeWarning, stacklevel=1)
        raise ValueError("enough")

    monkeypatch.setattr("jaxfl.commands.run.check", warn)
    monkeypatch.setattr(sys, "argv", ["jaxfl", "run", str(small)])
    with pytest.raises(SystemExit):
        cli.main()
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "jaxfl: warning: one thing and another"
    assert second.startswith("jaxfl: warning: overflow (")
    assert last == "jaxfl: error: enough"


def test_list_and_show(tmp_path):
    done = ask("list", cwd=tmp_path)
    assert done.returncode == 0
    assert "quickstart: " in done.stdout
    assert "(32 cells, 3 seeds)" in done.stdout
    shown = ask("show", "quickstart", "--set", "data.clients=60", cwd=tmp_path)
    table = tomllib.loads(shown.stdout)
    assert table["data"]["clients"] == 60
    copied = tmp_path / "copy.toml"
    copied.write_text(shown.stdout)
    assert ask("show", copied, cwd=tmp_path).stdout == shown.stdout


def test_show_keeps_the_reduced_version(tmp_path, monkeypatch, capsys):
    def shown(*words):
        monkeypatch.setattr(sys, "argv", ["jaxfl", "show", *map(str, words)])
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().out

    copied = tmp_path / "copy.toml"
    copied.write_text(shown("tnbs"))
    small = tomllib.loads(shown("tnbs", "--reduced"))
    assert shown(copied, "--reduced") == shown("tnbs", "--reduced")
    assert small["rounds"] == small["reduced"]["rounds"] == 100
    assert small["sweep"]["seed"] == [0]
    assert schema.load(str(copied), reduced=True).cells == schema.load("tnbs", reduced=True).cells


def test_data_is_listed_described_and_drawn(tmp_path):
    listed = ask("data", cwd=tmp_path, JAXFL_DATA_DIR="")
    assert listed.returncode == 0
    for name in SOURCES:
        assert re.search(rf"^│ {name} ", listed.stdout, re.MULTILINE), name
    assert "[tfds]" in re.sub(r"[\s│]", "", listed.stdout)
    words = ("data", "digits", "--partition", "{name='dirichlet', alpha=0.1}", "--clients", "20")
    drawn = ask(*words, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "1437 x 8 x 8 x 1" in drawn.stdout
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")
    for wrong, message in (
        (("data", "digit"), "did you mean 'digits'"),
        (("data", "digits", "--partition", "shard"), "did you mean 'shards'"),
        (("data", "digits", "--partition", "iid", "--clients", "0"), "clients must be"),
        (("data", "cifar10"), "cifar10"),
        (("data", "digits", "--prepare"), "prepare: name must be one of"),
        (
            ("data", "--partition", "iid", "--prepare", "--out", "x.png"),
            "--partition, --prepare, --out: name a data set",
        ),
        (("data", "digits", "--seed", "0", "--out", "x.png"), "--seed, --out: set --partition"),
    ):
        done = ask(*wrong, cwd=tmp_path, JAXFL_DATA_DIR="")
        assert done.returncode == 2, wrong
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_force_runs_another_experiment_in_the_folder_of_a_finished_one(tmp_path):
    path, out = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(SMALL)
    assert ask("run", path, "--out", out, cwd=tmp_path).returncode == 0
    again = ("run", path, "--out", out, "--set", "rounds=1")
    refused = ask(*again, cwd=tmp_path)
    assert refused.returncode == 2
    assert "another experiment: rounds is" in refused.stderr
    assert ask(*again, "--force", cwd=tmp_path).returncode == 0
    lines = (out / "rounds.jsonl").read_text().splitlines()
    assert {json.loads(line)["round"] for line in lines} == {1}


@pytest.mark.slow
def test_a_label_in_brackets_is_not_markup(tmp_path):
    changes = "sweep={'model.hidden' = [[4], [8]]}"
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace('model = "softmax"', 'model = "mlp"'))
    done = ask("run", path, "--set", changes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "│ [4] " in done.stdout


def test_rules_are_listed_with_fields_and_papers(tmp_path):
    done = ask("rules", cwd=tmp_path)
    assert done.returncode == 0
    names = {name for names in REGISTRY.values() for name in names}
    for name in names:
        assert re.search(rf"^  {name} = ", done.stdout, re.MULTILINE), name
    assert "krum = Krum(f, neighbours=None, power=2)" in done.stdout
    assert "Blanchard" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    one = ask("rules", "krum", cwd=tmp_path)
    assert inspect.getdoc(Krum) in one.stdout
    assert "did you mean 'krum'" in ask("rules", "krumm", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    "command", [(), ("run",), ("list",), ("show",), ("rules",), ("compare",), ("data",)]
)
def test_help_fits_80_columns(tmp_path, command):
    done = ask(*command, "--help", cwd=tmp_path, COLUMNS="80", TERM="dumb")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
