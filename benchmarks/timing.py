"""What the measurements share: clocks, memory, tables, a description of the machine."""

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxfl.files import write_aside


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time of one call, repeated."""

    best: float
    median: float
    first: float
    """The call that compiled."""

    def per(self, rounds: float) -> "Seconds":
        """The same for one of so many rounds; the first call stays whole."""
        return Seconds(self.best / rounds, self.median / rounds, self.first)


ENOUGH = 5.0
"""Seconds after which a call that has been timed once is not timed again."""
PAUSE = 0.05
"""Seconds before every repeated call: threads of PyTorch and NumPy (GNU OpenMP) go on spinning for
some milliseconds after their work, at the expense of who runs next."""


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """Times rivals in turn, so that what disturbs the machine disturbs all of them."""
    first = {name: _time(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if sum(times[name]) < ENOUGH:
                time.sleep(PAUSE)
                times[name].append(_time(run))
    return {n: Seconds(min(t), statistics.median(t), first[n]) for n, t in times.items()}


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def gemm_rate(repeats: int, size: int = 2048) -> float:
    """Float32 operations a second of a large matrix product in JAX: the machine's ceiling."""
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    best = interleaved({"gemm": lambda: product(matrix, matrix)}, max(repeats, 5))["gemm"].best
    return 2 * size**3 / best


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process, whose peak memory is that call's alone."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes() -> int:
    """The most memory this process has held at once."""
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss, which on Linux begins with the parent's memory
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def cores() -> int:
    """Cores that this process may use."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


def a_device_per_core() -> None:
    """Splits the CPU into as many JAX devices; to be called before JAX runs anything."""
    jax.config.update("jax_num_cpu_devices", cores())


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@dataclasses.dataclass
class Report:
    """A table, for people and for programs."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = dataclasses.field(default_factory=list)

    def markdown(self) -> str:
        """The table under its title."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines)

    def show(self, console: Console) -> None:
        """Prints it."""
        table = Table(*self.header, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def write(
    folder: Path, name: str, machine: dict[str, str], reports: Sequence[Report], **facts: object
) -> None:
    """The tables and the machine as ``name.json`` and ``name.md``; the first with more facts."""
    tables = [dataclasses.asdict(report) for report in reports]
    save(folder / f"{name}.json", {"machine": machine, **facts, "tables": tables})
    said = "\n".join(f"- {fact}: {value}" for fact, value in machine.items())
    text = "\n\n".join([*(report.markdown() for report in reports), said])
    write_aside(folder / f"{name}.md", f"{text}\n".encode())


def save(path: Path, record: object) -> None:
    """What a benchmark measured as a JSON file, and its folder where there is none."""
    write_aside(path, f"{json.dumps(record, indent=1)}\n".encode())


def describe_machine() -> dict[str, str]:
    """What a reader must know to compare the numbers with others."""
    facts = {
        "processor": _processor(),
        "cores": str(cores()),
        "devices": f"{jax.device_count()} ({jax.devices()[0].device_kind})",
        "python": platform.python_version(),
    }
    for package in ("jax", "jaxlib", "flax", "torch", "byzfl", "byzpy", "flwr"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    if installed("torch"):
        facts["torch threads"] = str(importlib.import_module("torch").get_num_threads())
    facts["jax threads"] = f"{cores()} in XLA's pool; XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    facts["load average at start"] = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    return facts


def _processor() -> str:
    """Model, with family and SIMD width where Linux tells: a bare "AMD EPYC" says little."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    facts = {}
    for name, value in pairs:
        facts.setdefault(name.strip(), value.strip())
    simd = next((s for s in ("avx512f", "avx2") if s in facts.get("flags", "").split()), "")
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{facts.get('model name', platform.machine())}, {family}, {simd}"
