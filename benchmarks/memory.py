"""What fresh memory costs on a CPU: malloc as it is, and as the command ``jaxfl`` sets it.

Every measurement is a process of its own, because glibc reads its settings when one starts; the
two ways run in turn, and of several processes' best times the best counts.

``python -m benchmarks.memory [--quick] [--out DIR]`` prints a table and writes ``memory.json`` and
``memory.md``.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks import timing
from benchmarks.cases import Case, jaxfl_block
from benchmarks.timing import Report
from jaxfl.aggregators import SignGuard
from jaxfl.types import PyTree
from jaxfl_launch import SETTINGS, TUNABLES

WAYS = {"malloc as it is": None, "as jaxfl sets it": TUNABLES}
ENOUGH = 10.0
"""Seconds after which no other call is timed."""
Work = Callable[[], PyTree]


def written() -> Work:
    return lambda row=jnp.ones((1, 101_632)): _write(row)


@jax.jit
def _write(row: jax.Array) -> jax.Array:
    return jnp.broadcast_to(row, (1000, row.shape[1])) + 1


@jax.jit
def _weight_gradients(inputs: jax.Array, errors: jax.Array) -> jax.Array:
    return jnp.einsum("nbi,nbo->nio", inputs, errors)


def weighed() -> Work:
    """The largest of a dense layer's gradients: of 1,000 clients with 50 images each."""
    keys = jax.random.split(jax.random.key(0))
    inputs, errors = (
        jax.random.normal(k, (1000, 50, d)) for k, d in zip(keys, (784, 128), strict=True)
    )
    return lambda: _weight_gradients(inputs, errors)


def dense(clients: int, storage: str, rounds: int = 1) -> Work:
    """A block of rounds, 10 images a client."""
    return jaxfl_block(Case("mlp", clients, rounds, repeats=1, batch=10), storage=storage)


def screened() -> Work:
    updates = jax.random.normal(jax.random.key(0), (50, 98_304))
    return lambda: SignGuard()(updates)


WORK: dict[str, Callable[[], Work]] = {
    "write 1,000 x 101,632 floats": written,
    "weight gradients, 1,000 x 784 x 128": weighed,
    "MLP round, 100 clients, matrix": lambda: dense(100, "matrix"),
    "MLP round, 1,000 clients, matrix": lambda: dense(1000, "matrix"),
    "ten such rounds as a block": lambda: dense(1000, "matrix", rounds=10),
    "MLP round, 1,000 clients, stream": lambda: dense(1000, "stream"),
    "MLP round, 10,000 clients, matrix": lambda: dense(10_000, "matrix"),
    "MLP round, 10,000 clients, stream": lambda: dense(10_000, "stream"),
    "SignGuard, 50 x 98,304": screened,
}


def best_time(name: str, repeats: int) -> float:
    """Seconds of the fastest call in this process."""
    run, best = WORK[name](), float("inf")
    jax.block_until_ready(run())
    begun = time.perf_counter()
    for _ in range(repeats):
        if time.perf_counter() - begun > ENOUGH:
            break
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
        del result
    return best


def measured(name: str, way: str, repeats: int) -> float:
    """``best_time`` in a process that starts with a way's settings."""
    environment = {key: value for key, value in os.environ.items() if key != SETTINGS}
    settings = WAYS[way]
    if settings is not None:
        environment[SETTINGS] = settings
    command = [sys.executable, "-m", "benchmarks.memory", "--alone", name, str(repeats)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/memory"))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(best_time(given.alone[0], int(given.alone[1])))
        return
    processes, repeats = (1, 3) if given.quick else (3, 10)
    header = ("work", *(f"{way} (ms)" for way in WAYS), "times as fast")
    report, console = Report("Fresh memory on a CPU", header), Console()
    for name in WORK:
        best = dict.fromkeys(WAYS, float("inf"))
        for _ in range(processes):
            for way in WAYS:
                best[way] = min(best[way], measured(name, way, repeats))
        slow, fast = best.values()
        report.rows.append((name, f"{slow * 1e3:.1f}", f"{fast * 1e3:.1f}", f"{slow / fast:.2f}"))
    report.show(console)
    timing.write(given.out, "memory", timing.describe_machine(), [report], tunables=TUNABLES)


if __name__ == "__main__":
    main()
