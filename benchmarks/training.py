"""Whole training runs against the rivals' own ways of training: same task, same data, same rounds.

``python -m benchmarks.training [--tasks fedavg-lr ...] [--flower-python PATH] [--out DIR]`` runs
every way as a command of its own, one after the other, and compares the wall clock of the whole
command (start, compilation and all), the steady state (median of the rounds after the first), and
the test accuracy after as many rounds, which shows that the same work was done. Rivals are
optional: PyTorch and ByzFL (extra ``peers``); Flower pins other packages, so it runs in an
environment of its own (``pip install 'flwr[simulation]' torch`` there, and ``--flower-python``).

Tasks: FedAvg on MNIST with 100 clients, an epoch of batches of 32 a round, by softmax regression
and by an MLP; 100 clients of which 20 are Byzantine (ALIE, z 1.5; trimmed mean) on the MLP, one
batch of 32 with client momentum a round; a CNN of 32, 64 and 128 channels on CIFAR-10, cohorts
of 50 of 1,000 clients of 50 images, an epoch of batches of 10.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxfl_launch
from benchmarks.timing import Report, describe_machine, installed
from jaxfl import ALIE, SGD, FedAvg, Federation, FedSGD, Mean, MinMax, Simulation, TrimmedMean
from jaxfl.data import IID, Dataset, mnist
from jaxfl.data.loaders import SOURCES
from jaxfl.models import CNN, MLP, Model, Softmax
from jaxfl.participation import Full, Uniform

PEERS = Path(__file__).with_name("training_peers.py")
BLOCK = 5
"""Rounds of ours between two evaluations."""
LIMIT = 1500
"""Seconds after which a run is given up."""
WAYS = {"loop": "PyTorch loop", "byzfl": "ByzFL", "flower": "Flower"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What everybody trains."""

    model: str
    rounds: int
    clients: int
    cohort: int
    batch: int
    rate: float
    rivals: tuple[str, ...]
    byzantine: int = 0
    momentum: float = 0.0
    flower_rounds: int = 5

    def for_rival(self, way: str) -> "Task":
        """With as many rounds as the rival is given."""
        rounds = self.flower_rounds if way == "flower" else self.rounds
        return dataclasses.replace(self, rounds=min(rounds, self.rounds))


TASKS = {
    "fedavg-lr": Task("lr", 100, 100, 100, 32, 0.05, ("loop", "flower")),
    "fedavg-mlp": Task("mlp", 100, 100, 100, 32, 0.05, ("loop", "flower")),
    "byzantine-mlp": Task("mlp", 50, 100, 100, 32, 0.1, ("byzfl",), 20, 0.9),
    "cnn": Task("cnn", 30, 1000, 50, 10, 0.05, ("loop", "flower"), flower_rounds=5),
}
MODELS: dict[str, Model] = {
    "lr": Softmax(),
    "mlp": MLP(hidden=(100,)),
    "cnn": CNN(channels=(32, 64, 128)),
}


def load(task: Task) -> Dataset:
    return SOURCES["cifar10"]() if task.model == "cnn" else mnist()


def write(task: Task, path: Path) -> None:
    """The data as the rivals read them: normalised, channels first, divided as ours."""
    dataset = load(task)
    data = dataset.split(IID(), task.clients)

    def tensor(inputs: Any) -> np.ndarray:
        scaled = np.asarray(data.normalise(jnp.asarray(inputs)), np.float32)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, 1))

    count = np.asarray(data.count)
    np.savez(
        path,
        x=tensor(dataset.inputs),
        y=np.asarray(dataset.labels, np.int64),
        test_x=tensor(dataset.test_inputs),
        test_y=np.asarray(dataset.test_labels, np.int64),
        order=np.asarray(data.order)[: count.sum()],
        start=np.concatenate([[0], np.cumsum(count)]),
    )


def federation(task: Task, attack: Any = None) -> Federation:
    optimizer = SGD(learning_rate=1.0)
    if task.byzantine:
        return Federation(
            algorithm=FedSGD(batch_size=task.batch, momentum=task.momentum),
            aggregator=TrimmedMean(f=task.byzantine),
            attack=ALIE(z=1.5, sign=1) if attack is None else attack,
            byzantine=task.byzantine,
            optimizer=SGD(learning_rate=task.rate),
        )
    whole = task.cohort == task.clients
    return Federation(
        algorithm=FedAvg(batch_size=task.batch, epochs=1, optimizer=SGD(learning_rate=task.rate)),
        aggregator=Mean(),
        participation=Full() if whole else Uniform(fraction=task.cohort / task.clients),
        optimizer=optimizer,
    )


def ours(task: Task, attack: str) -> None:
    """Our run, as a command: prints what the rivals print."""
    data = load(task).split(IID(), task.clients)
    chosen = MinMax() if attack == "min_max" else None
    simulation = Simulation(
        federation(task, chosen), data, MODELS[task.model], evaluate_every=BLOCK
    )
    seconds, accuracy = [], []
    for _ in range(task.rounds // BLOCK):
        begun = time.perf_counter()
        _, evaluation = simulation.advance(BLOCK)
        seconds += [(time.perf_counter() - begun) / BLOCK] * BLOCK
        accuracy += [float(np.ravel(evaluation.accuracy)[-1])] * BLOCK
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}), flush=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """One way's run of a task."""

    task: str
    way: str
    rounds: int
    whole: float
    """Seconds of the whole command."""
    steady: float
    """Median seconds of a round, the first (of ours: the first block) left out."""
    accuracy: list[float]
    failed: str = ""


def timed(name: str, way: str, words: list[str], rounds: int, env: dict[str, str]) -> Run:
    """A command, and what it printed."""
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=env, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Run(name, way, rounds, LIMIT, LIMIT, [], f"no end within {LIMIT} s")
    whole = time.perf_counter() - begun
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or not lines:
        return Run(name, way, rounds, whole, 0.0, [], done.stderr.strip()[-300:])
    said = json.loads(lines[-1])
    first = BLOCK if way.startswith("jaxfl") else 1
    steady = statistics.median(said["seconds"][first:] or said["seconds"])
    return Run(name, way, rounds, whole, steady, said["accuracy"])


def compare(name: str, task: Task, flower_python: str, console: Console) -> list[Run]:
    """Everybody's run of a task, one after the other."""
    plain = dict(os.environ)
    # malloc as the command `jaxfl` sets it, for all.
    fast = jaxfl_launch.improved(os.environ, glibc=jaxfl_launch.has_glibc()) or plain
    theirs = fast | {"PYTHONPATH": str(PEERS.parent)}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        write(task, path)
        for attack in ("", *(("min_max",) if task.byzantine else ())):
            words = [sys.executable, "-m", "benchmarks.training", "--ours", name]
            words += ["--attack", attack] if attack else []
            said = "jaxfl, Min-Max" if attack else "jaxfl"
            runs.append(timed(name, said, words, task.rounds, fast))
            console.print(f"{name}: {said} {runs[-1].whole:.1f} s {runs[-1].failed}")
        for way in task.rivals:
            python = flower_python if way == "flower" else sys.executable
            if (way == "flower" and not python) or (way != "flower" and not installed("torch")):
                continue
            given = task.for_rival(way)
            words = [python, str(PEERS), way, json.dumps(dataclasses.asdict(given)), str(path)]
            runs.append(timed(name, WAYS[way], words, given.rounds, theirs))
            console.print(f"{name}: {WAYS[way]} {runs[-1].whole:.1f} s {runs[-1].failed}")
    return runs


def table(runs: list[Run]) -> Report:
    """A line per task and way."""
    header = ("task", "way", "rounds", "command s", "round ms", "x ours", "accuracy", "ours then")
    report = Report("Whole training runs", header)
    for run in runs:
        our = next(r for r in runs if r.task == run.task and r.way == "jaxfl")
        if run.failed:
            report.rows.append((run.task, run.way, str(run.rounds), *["-"] * 4, run.failed[-60:]))
            continue
        same = our.accuracy[run.rounds - 1] if our.accuracy else float("nan")
        times = "-" if our.failed else f"{run.steady / our.steady:.1f}"
        numbers = (f"{run.whole:.1f}", f"{1e3 * run.steady:.1f}", times)
        report.rows.append(
            (run.task, run.way, str(run.rounds), *numbers, f"{run.accuracy[-1]:.4f}", f"{same:.4f}")
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--flower-python", default="", help="an interpreter that has flwr")
    parser.add_argument("--rounds", type=int, help="of every task, a multiple of 5")
    parser.add_argument("--ours", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--attack", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    if options.rounds is not None and (options.rounds < BLOCK or options.rounds % BLOCK):
        parser.error(f"--rounds must be a multiple of {BLOCK}; got {options.rounds}")
    tasks = {
        name: task if options.rounds is None else dataclasses.replace(task, rounds=options.rounds)
        for name, task in TASKS.items()
    }
    if options.ours:
        ours(tasks[options.ours], options.attack)
        return
    console, runs = Console(width=140), []
    for name in options.tasks:
        runs += compare(name, tasks[name], options.flower_python, console)
    table(runs).show(console)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe_machine(), "runs": [dataclasses.asdict(run) for run in runs]}
    (options.out / "training.json").write_text(json.dumps(record, indent=1))
    (options.out / "training.md").write_text(table(runs).markdown() + "\n")


if __name__ == "__main__":
    main()
