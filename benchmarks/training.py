"""Whole training runs against the rivals' own ways of training: same task, same data, same rounds.

``python -m benchmarks.training [--tasks fedavg-lr ...] [--flower-python PATH] [--out DIR]`` runs
every way as a command of its own, one after the other, and compares the wall clock of the whole
command (start, compilation and all), the steady state (median of the rounds after the first), and
the test accuracy after as many rounds, which shows that the same work was done: all start from the
same weights. Rivals are optional: PyTorch and ByzFL (extra ``peers``); Flower pins other packages,
so it runs in an environment of its own (``pip install 'flwr[simulation]' torch`` there, and
``--flower-python``).

Tasks: FedAvg on MNIST with 100 clients, an epoch of batches of 32 a round, by softmax regression
and by an MLP; 100 clients of which 20 are Byzantine (ALIE, z 1.5; Min-Max, which ByzFL and Flower
lack and are given; none, all being honest) under a trimmed mean and under Krum on the MLP, one
batch of 32 with client momentum a round; a CNN of 32, 64 and 128 channels on CIFAR-10, cohorts of
50 of 1,000 clients of 50 images, an epoch of batches of 10. Flower's clients send models, ours and
ByzFL's messages; its attackers are put in by the server, from what the honest ones sent. "of GEMM"
is what the forward and backward passes would take at the rate of a large float32 matrix product.
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

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxfl_launch
from benchmarks.tasks import ATTACKS, MODELS, TASKS, Task, federation, load, operations
from benchmarks.timing import (
    Report,
    a_device_per_core,
    describe_machine,
    gemm_rate,
    installed,
    write,
)
from jaxfl import Simulation
from jaxfl.data import IID

PEERS = Path(__file__).with_name("training_peers.py")
BLOCK = 5
"""Rounds of ours between two evaluations."""
LIMIT = 1500
"""Seconds after which a run is given up."""
WAYS = {"loop": "PyTorch loop", "byzfl": "ByzFL", "flower": "Flower"}


def write_data(task: Task, path: Path) -> None:
    """The data as the rivals read them: normalised, channels first, divided as ours; our model."""
    dataset = load(task)
    data = dataset.split(IID(), task.clients)

    def tensor(inputs: Any) -> np.ndarray:
        scaled = np.asarray(data.normalise(jnp.asarray(inputs)), np.float32)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, 1))

    count = np.asarray(data.count)
    simulation = Simulation(federation(task), data, MODELS[task.model], evaluate_every=BLOCK)
    weights = in_their_order(simulation.plan.objective.unravel(simulation.state.params))
    named: dict[str, Any] = {f"parameter_{i}": value for i, value in enumerate(weights)}
    np.savez(
        path,
        x=tensor(dataset.inputs),
        y=np.asarray(dataset.labels, np.int64),
        test_x=tensor(dataset.test_inputs),
        test_y=np.asarray(dataset.test_labels, np.int64),
        order=np.asarray(data.order)[: count.sum()],
        start=np.concatenate([[0], np.cumsum(count)]),
        **named,
    )


def in_their_order(parameters: Any) -> list[np.ndarray]:
    """Weight and bias of each layer as PyTorch has them, which flattens images channels first."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
    found, channels = [], 1
    for bias, kernel in zip(leaves[::2], leaves[1::2], strict=True):
        if kernel.ndim == 4:
            weight, channels = kernel.transpose(3, 2, 0, 1), kernel.shape[3]
        else:
            apart = kernel.reshape(-1, channels, kernel.shape[1])
            weight, channels = apart.transpose(2, 1, 0).reshape(kernel.shape[::-1]), 1
        found += [np.ascontiguousarray(weight), bias]
    return found


def ours(task: Task) -> None:
    """Our run, as a command: prints what the rivals print."""
    a_device_per_core()
    data, model = load(task).split(IID(), task.clients), MODELS[task.model]
    devices = jax.devices() if model.convolves else None  # as `jaxfl run` does
    simulation = Simulation(federation(task), data, model, evaluate_every=BLOCK, devices=devices)
    block, seconds, accuracy = simulation.block(BLOCK), [], []
    for _ in range(task.rounds // BLOCK):
        begun = time.perf_counter()
        simulation.state, _ = block(simulation.federation, simulation.data, simulation.state)
        jax.block_until_ready(simulation.state.params)
        seconds += [(time.perf_counter() - begun) / BLOCK] * BLOCK
        accuracy += [float(np.ravel(simulation.evaluate().accuracy)[-1])] * BLOCK
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}), flush=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """One way's run of a task."""

    task: str
    way: str
    attack: str
    rounds: int
    whole: float
    """Seconds of the whole command."""
    steady: float
    """Median seconds of a round, the first (of ours: the first block) left out."""
    accuracy: list[float]
    failed: str = ""


def timed(name: str, way: str, words: list[str], task: Task, env: dict[str, str]) -> Run:
    """A command, and what it printed."""
    given = name, way, ATTACKS[task.attack], task.rounds
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=env, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Run(*given, LIMIT, LIMIT, [], f"no end within {LIMIT} s")
    whole = time.perf_counter() - begun
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or not lines:
        return Run(*given, whole, 0.0, [], done.stderr.strip()[-300:])
    said = json.loads(lines[-1])
    first = BLOCK if way == "jaxfl" else 1
    steady = statistics.median(said["seconds"][first:] or said["seconds"])
    return Run(*given, whole, steady, said["accuracy"])


def compare(name: str, task: Task, flower_python: str, console: Console) -> list[Run]:
    """Everybody's run of a task, one after the other."""
    plain = dict(os.environ)
    # malloc as the command `jaxfl` sets it, for all.
    fast = jaxfl_launch.improved(os.environ, glibc=jaxfl_launch.has_glibc()) or plain
    theirs = fast | {"PYTHONPATH": str(PEERS.parent)}
    runs: list[Run] = []

    def add(run: Run) -> None:
        runs.append(run)
        console.print(f"{name}: {run.way}, {run.attack} {run.whole:.1f} s {run.failed}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        write_data(task, path)
        for attack in task.attacks:
            attacked = dataclasses.replace(task, attack=attack)
            words = [sys.executable, "-m", "benchmarks.training", "--ours", name]
            words += ["--attack", attack, "--rounds", str(task.rounds)]
            add(timed(name, "jaxfl", words, attacked, fast))
            for way in task.rivals:
                python = flower_python if way == "flower" else sys.executable
                if (way == "flower" and not python) or (way != "flower" and not installed("torch")):
                    continue
                given = attacked.for_rival(way)
                words = [python, str(PEERS), way, json.dumps(dataclasses.asdict(given)), str(path)]
                add(timed(name, WAYS[way], words, given, theirs))
    return runs


def table(runs: list[Run], floors: dict[str, float]) -> Report:
    """A line per task and way; ``floors`` are seconds of each task's round at the GEMM's rate."""
    header = ("task", "way", "attack", "rounds", "command s", "round ms", "attack adds", "x ours")
    report = Report("Whole training runs", (*header, "of GEMM", "accuracy", "ours then"))

    def find(run: Run, **others: str) -> Run:
        wanted = {"task": run.task, "way": run.way, "attack": run.attack} | others
        return next(r for r in runs if wanted.items() <= dataclasses.asdict(r).items())

    for run in runs:
        our, clean = find(run, way="jaxfl"), find(run, attack=ATTACKS["none"])
        named = (run.task, run.way, run.attack, str(run.rounds))
        if run.failed:
            report.rows.append((*named, *["-"] * 6, run.failed[-60:]))
            continue
        same = our.accuracy[run.rounds - 1] if our.accuracy else float("nan")
        times = "-" if our.failed else f"{run.steady / our.steady:.1f}"
        adds = "-" if clean is run or clean.failed else f"{run.steady / clean.steady - 1:.0%}"
        share = f"{floors[run.task] / run.steady:.0%}"
        numbers = (f"{run.whole:.1f}", f"{1e3 * run.steady:.1f}", adds, times, share)
        report.rows.append((*named, *numbers, f"{run.accuracy[-1]:.4f}", f"{same:.4f}"))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--flower-python", default="", help="an interpreter that has flwr")
    parser.add_argument("--rounds", type=int, help="of every task, a multiple of 5")
    parser.add_argument("--ours", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--attack", default="none", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    if options.rounds is not None and (options.rounds < BLOCK or options.rounds % BLOCK):
        parser.error(f"--rounds must be a multiple of {BLOCK}; got {options.rounds}")
    tasks = {
        name: task if options.rounds is None else dataclasses.replace(task, rounds=options.rounds)
        for name, task in TASKS.items()
    }
    if options.ours:
        ours(dataclasses.replace(tasks[options.ours], attack=options.attack))
        return
    console, runs, machine, rate = Console(width=150), [], describe_machine(), gemm_rate(5)
    floors = {
        name: tasks[name].images * operations(tasks[name].model) / rate for name in options.tasks
    }
    for name in options.tasks:
        runs += compare(name, tasks[name], options.flower_python, console)
    report = table(runs, floors)
    report.show(console)
    facts = {"gemm": rate, "floors": floors, "runs": [dataclasses.asdict(run) for run in runs]}
    write(options.out, "training", machine, [report], **facts)


if __name__ == "__main__":
    main()
