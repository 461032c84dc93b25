"""What a run shows while it runs: when it compiles, how fast it is, how long it will take."""

import copy
import io
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress as Bar

from jaxfl import progress
from jaxfl.evaluation import Evaluation
from jaxfl.experiments import schema
from jaxfl.experiments.groups import Group
from jaxfl.progress import CompileClock, follow
from jaxfl.record import RoundRecord
from jaxfl.report.progress import Watcher, duration

TABLE = {
    "rounds": 20,
    "evaluate_every": 10,
    "model": "softmax",
    "data": {"name": "synthetic", "clients": 10, "samples": 200, "features": 4, "classes": 3},
    "participation": {"name": "uniform", "fraction": 0.5},
    "byzantine": 2,
    "sweep": {"seed": [0, 1], "aggregator": ["mean", {"name": "krum", "f": 4}, "median"]},
}


class Time:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def evaluated():
    """An evaluation of two runs, as Simulation gives it."""
    evaluation = object.__new__(Evaluation)
    object.__setattr__(evaluation, "accuracy", np.array([0.5, 0.7]))
    return evaluation


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def shown():
    return io.StringIO()


def compile_for(seconds, clock):
    """What JAX says where it compiles so long."""
    event = f"{progress.COMPILING}backend_compile_duration"
    jax.monitoring.record_scalar(event, 0.0)
    clock.now += seconds
    jax.monitoring.record_event_duration_secs(event, seconds)


def followed(clock, console, **options):
    """What is said of a cell that compiles for 8 s, runs 10 rounds in 2 s and 10 more in 1 s."""
    said, experiment = [], schema.parse("x", copy.deepcopy(TABLE))
    with Watcher(experiment, console, **options) as watcher:
        update = watcher._progress.update

        def listen(task, **fields):
            said.append(fields.get("speed"))
            update(task, **fields)

        watcher._progress.update = listen
        groups = [Group((i,), (experiment.cells[i],)) for i in (0, 2)]
        tick = watcher.watch(groups, 0, 0)
        compile_for(8.0, clock)
        clock.now += 2
        tick(10, evaluated())
        clock.now += 1
        tick(20, evaluated())
        tick = watcher.watch(groups, 1, 0)
        clock.now += 4
        tick(20, evaluated())
    return [text for text in said if text and text.startswith("round")]


def test_plain_lines_have_the_speed_and_an_estimate(clock, shown):
    console = Console(file=shown, width=120)
    followed(clock, console)
    lines = shown.getvalue().splitlines()
    # 20 rounds of 2 seeds in the 3 s that nothing compiled; the other cell compiles as long.
    assert lines == [
        "2 cells in 2 programs, 2 runs a cell",
        "[1/3] Mean  accuracy 60.0%  13.3 rounds/s  11.0 s",
        "about 11 s for 1 more cell",
        "[3/3] Median  accuracy 60.0%  10 rounds/s  4.0 s",
    ]


def test_the_bar_says_compiling_while_it_compiles_and_does_not_count_it(clock, shown):
    said = followed(clock, Console(file=shown, width=120, force_terminal=True))
    assert said[:3] == ["round 0/20 preparing", "round 0/20 compiling", "round 0/20 running"]
    # 10 rounds x 2 seeds / 2 s; 5 of 10 clients take part in each.
    assert said[3] == "round 10/20  10 rounds/s  50 clients/s  accuracy 60.0%"
    assert said[4] == "round 20/20  20 rounds/s  100 clients/s  accuracy 60.0%"


def test_the_bar_of_a_run_in_python_is_of_the_same_clock(clock, monkeypatch):
    said = []
    monkeypatch.setattr(Bar, "update", lambda bar, task, **new: said.append(new))
    record = object.__new__(RoundRecord)
    object.__setattr__(record, "loss", np.zeros((2, 10)))
    with follow(True, rounds=20, runs=2, cohort=5) as tell:
        compile_for(8.0, clock)
        clock.now += 2
        tell(evaluated(), record)
    # 10 rounds x 2 seeds / 2 s; 5 clients take part in each.
    assert [new["description"] for new in said if "description" in new] == [
        "round 0/20  compiling",
        "round 0/20  running",
        "round 10/20  10 rounds/s  50 clients/s  test accuracy 60.0%",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_how_many_programs_there_are_is_said_first(clock, shown, terminal):
    experiment = schema.parse("x", copy.deepcopy(TABLE))
    cells = experiment.cells
    together = [Group((0,), (cells[0],)), Group((1, 2), tuple(cells[1:3]))]
    console = Console(file=shown, width=120, force_terminal=terminal)
    with Watcher(experiment, console) as watcher:
        watcher.watch(together, 0, 0)
    assert "3 cells in 2 programs, 2 runs a cell" in shown.getvalue()


def test_quiet_says_nothing(clock, shown):
    console = Console(file=shown, width=120)
    followed(clock, console, quiet=True)
    assert shown.getvalue() == ""


def test_the_clock_of_compilation_is_that_of_jax():
    changes = []
    with CompileClock(changes.append) as clock:
        started = time.perf_counter()
        jax.jit(lambda x: jnp.sum(jnp.sort(x) * 3.25))(jnp.arange(7.0)).block_until_ready()
        taken = time.perf_counter() - started
    assert 0 < clock.seconds <= taken
    assert changes[0]
    assert not changes[-1]
    before = clock.seconds
    jax.jit(lambda x: jnp.sum(jnp.sort(x) * 4.75))(jnp.arange(9.0))
    assert clock.seconds == before
    with CompileClock(changes.append) as clock, ThreadPoolExecutor(1) as pool:
        pool.submit(jax.jit(lambda x: jnp.sum(jnp.sort(x) * 5.25)), jnp.arange(9.0)).result()
    assert clock.seconds == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.0, "45 s"), (720.0, "12 min"), (12_600.0, "3.5 h")]
)
def test_a_time_is_read_at_a_glance(seconds, text):
    assert duration(seconds) == text
