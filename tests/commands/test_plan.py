"""``jaxfl plan``: what each program of an experiment needs, without running any."""

import pytest
from typer.testing import CliRunner

from jaxfl import cli
from jaxfl.commands.plan import programs
from jaxfl.experiments import schema

TABLE = {
    "rounds": 4,
    "byzantine": 2,
    "model": "softmax",
    "data": {"name": "synthetic", "clients": 10, "samples": 200, "features": 4, "classes": 3},
    "sweep": {
        "seed": [0, 1],
        "attack": ["none", {"name": "ipm", "scale": 5.0}, {"name": "ipm", "scale": 10.0}],
        "aggregator": ["mean", {"name": "krum", "f": 4}, "median"],
    },
}
FILE = """
rounds = 4
byzantine = 2
model = "softmax"
[data]
name = "synthetic"
clients = 10
samples = 200
features = 4
classes = 3
[sweep]
aggregator = ["mean", "median"]
"""


def test_cells_that_differ_in_numbers_alone_share_a_program():
    found = programs(schema.parse("x", TABLE))
    # Two attacks, and two rules that are defined: Krum with f = 4 is not for 10 clients.
    assert [len(cells) for cells, *_ in found] == [1, 1, 2, 2]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    path = tmp_path / "small.toml"
    path.write_text(FILE)
    monkeypatch.setattr("jaxfl.simulation.Simulation.advance", lambda *_: pytest.fail("it ran"))
    return lambda *words: CliRunner().invoke(cli.app, ["plan", str(path), *words])


def test_the_command_prints_a_line_for_each_program(ask):
    done = ask("--set", "data.clients=5", "--set", "client_chunk=3")
    assert done.exit_code == 0, done.output
    assert [line.split("│")[2:4] for line in done.stdout.splitlines() if "fits" in line] == [
        [" 5       ", " 3     "],
        [" 5       ", " 3     "],
    ]
    assert "does not fit" not in done.stdout
    assert "Memory that this process may take: " in done.stdout


def test_bars_are_for_terminals_alone(ask, monkeypatch):
    assert ask().stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # to Rich a terminal
    shown = ask().stderr
    assert "cells" in shown
    assert "programs" in shown


def test_the_command_says_what_does_not_fit_and_what_would_help(ask, monkeypatch):
    for where in ("jaxfl.memory", "jaxfl.commands.plan"):
        monkeypatch.setattr(f"{where}.memory_of_device", lambda _: 2**30)
    model = 'model={name = "mlp", hidden = [20000, 2000]}'
    done = ask("--set", model, "--set", 'sweep.aggregator=["median"]')
    assert done.exit_code == 0, done.output
    assert "does not fit" in done.stdout
    assert "take: 1.0 GiB" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "Median: memory: 40,108,003 parameters need at least 1.6 GiB (updates of"
    )
    assert "fewer clients per round (participation)" in last


def test_a_mistake_in_the_file_is_its_usual_line(ask):
    done = ask("--set", "model=mlpp")
    assert isinstance(done.exception, ValueError)
    assert "mlpp" in str(done.exception)
