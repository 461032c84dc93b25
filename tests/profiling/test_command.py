"""``jaxfl profile``: what it writes, what it says, what it refuses."""

import json
import os
import re
import subprocess
import sys

import pytest

from jaxfl import Mean, TrimmedMean, cli
from jaxfl.commands import profile as command
from jaxfl.experiments import schema
from jaxfl.profiling import Peaks, Phase, Profile, Scaling
from jaxfl.profiling.costs import OTHER, PHASES

SMALL = """
rounds = 4
byzantine = 2
model = "softmax"
attack = "alie"
[data]
name = "synthetic"
clients = 10
samples = 200
features = 4
classes = 3
[sweep]
aggregator = [{ name = "krum", f = 5 }, { name = "trimmed_mean", f = 2 }, "mean"]
"""
FOUND = Profile(
    phases=(
        *(Phase(name, 0.001 * i, 1e6 * i, 1e5 * i) for i, name in enumerate(PHASES)),
        Phase(OTHER, 0.0, 0.0, 0.0),
    ),
    seconds=0.04,
    compile_seconds=1.5,
    memory=3_000_000,
    peaks=Peaks(device="some", cores=2, flops=1e11, bytes=1e10),
    clients=10,
    parameters=15,
    rounds=3,
    chunk=10,
    spanning=0.002,
    tracing=0.001,
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


@pytest.fixture
def measured(monkeypatch):
    """Stands in for what is measured; tells which cells were asked for, and how."""
    asked = []

    def profile(cell, **options):
        asked.append((cell, options))
        return FOUND

    def scaling(cell_of, clients, *, rounds):
        sizes = tuple(cell_of(n).clients for n in clients)
        asked.append((sizes, rounds))
        return Scaling(sizes, tuple(0.01 * n for n in sizes), tuple(100 * n for n in sizes))

    monkeypatch.setattr(command, "_simulation", lambda cell: cell)
    monkeypatch.setattr(command, "measure", profile)
    monkeypatch.setattr(command, "scaling", scaling)
    return asked


def ask(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["jaxfl", "profile", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_first_cell_that_applies_is_profiled(file, measured, monkeypatch, capsys):
    assert ask(monkeypatch, file) == 0
    out = capsys.readouterr().out
    assert "Cell 2 of 3: aggregator = TrimmedMean;" in out  # Krum needs 13 clients
    assert "--set 'sweep.aggregator=[...]' chooses another" in out
    ((cell, options),) = measured
    assert cell.federation.aggregator == TrimmedMean(f=2)
    assert options == {"rounds": 3, "trace": None}
    folder = file.parent / "runs" / "small_profile"
    assert {p.name for p in folder.iterdir()} == {
        "profile.json",
        *(f"{name}.{kind}" for name in ("profile", "roofline") for kind in ("png", "svg")),
    }
    written = json.loads((folder / "profile.json").read_text())
    assert [row["phase"] for row in written["phases"]] == [*PHASES, OTHER]
    assert written["scaling"] is None
    # A phase that did nothing has no line; the whole has, and what lies outside the phases.
    assert "local work" in out
    assert "cohort" not in out
    assert "calling it" in out
    assert "10.0%" in out  # 36 of 40 ms are the phases'
    assert "100 GFLOP/s in a product of matrices" in out


def test_another_is_chosen_by_set(file, measured, monkeypatch, capsys):
    assert ask(monkeypatch, file, "--set", 'sweep.aggregator=["mean"]', "--rounds", 7) == 0
    ((cell, options),) = measured
    assert cell.federation.aggregator == Mean()
    assert options["rounds"] == 7
    assert "Cell" not in capsys.readouterr().out


def test_more_clients_are_drawn(file, measured, monkeypatch, capsys):
    out = file.parent / "there"
    assert ask(monkeypatch, file, "--clients", "10,40", "--out", out, "--trace", out / "t") == 0
    assert measured[1] == ((10, 40), 3)
    text = capsys.readouterr().out
    assert "Time grows as n^1.00, memory as n^1.00" in text
    assert "ui.perfetto.dev" in text
    assert (out / "scaling.png").stat().st_size > 1000
    written = json.loads((out / "profile.json").read_text())["scaling"]
    assert [point["clients"] for point in written["points"]] == [10, 40]
    assert abs(written["exponent"] - 1) < 1e-9


def test_one_number_of_clients_has_no_exponent_and_json_no_nan(file, measured, monkeypatch):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    out = file.parent / "there"
    assert ask(monkeypatch, file, "--clients", "10", "--out", out) == 0
    written = json.loads((out / "profile.json").read_text(), parse_constant=refuse)["scaling"]
    assert (written["exponent"], written["memory_exponent"]) == (None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clients", "10,x"], "--clients wants numbers with commas between them"),
        (["--clients", "10,0"], "clients must be an integer"),
        (["--clients", "10,4"], "--clients: 4 clients cannot be profiled: TrimmedMean needs"),
        (["--clients", "1"], "--clients: 1 clients cannot be profiled: byzantine must be at most"),
        (["--trace", "small.toml/x"], "--trace: the folder small.toml/x cannot be written"),
        (["--out", "small.toml"], "--out: the folder small.toml cannot be written"),
        (["--set", 'aggregator="mean"'], "sweep"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    file, measured, monkeypatch, capsys, words, message
):
    assert ask(monkeypatch, file, *words) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("jaxfl: error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not measured
    assert [path.name for path in file.parent.iterdir()] == ["small.toml"], "nothing is left"


@pytest.mark.slow
def test_a_whole_profile(file, monkeypatch, capsys):
    out = file.parent / "there"
    assert ask(monkeypatch, file, "--clients", "10,20", "--trace", out, "--out", out) == 0
    written = json.loads((out / "profile.json").read_text())
    assert written["phases"][1]["flops"] > 0
    assert (out / "trace.json.gz").is_file()
    assert "local work" in capsys.readouterr().out


def test_what_is_profiled_is_what_would_run(file):
    """The cell's own storage, chunk and first seed."""
    changes = ['sweep.aggregator=["mean"]', "storage=stream", "client_chunk=3", "sweep.seed=[4, 5]"]
    cell = schema.load(str(file), changes).cells[0]
    simulation = command._simulation(cell)
    assert (simulation.plan.storage, simulation.plan.chunk, simulation.seeds) == ("stream", 3, (4,))


@pytest.mark.slow
@pytest.mark.parametrize("setting", [[], ["--set", "devices=2"]])
def test_a_model_that_convolves_is_measured_on_one_of_two_devices(tmp_path, setting):
    """By itself its clients would be mapped over both."""
    small = SMALL.replace('"softmax"', '{ name = "cnn", channels = [4] }')
    small = small.replace('name = "synthetic"', 'name = "digits"')
    for key in ("samples", "features", "classes"):
        small = re.sub(f"{key} = .*\n", "", small)
    (tmp_path / "small.toml").write_text(small)
    words = [sys.executable, "-m", "jaxfl.cli", "profile", "small.toml", "--rounds", "1", *setting]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | devices, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "small_profile" / "profile.json").exists()
