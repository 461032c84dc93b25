"""Rules at the shapes at which ByzPy publishes its own times, beside ByzPy and ByzFL.

``python -m benchmarks.byzpy [--quick] [--out DIR]`` prints a table and writes ``byzpy.json``. All
that are installed run in turn in one process, each on the same updates: ByzPy 0.1 takes a list of
NumPy vectors ("without ActorPool", the way that it recommends for one machine's memory), ByzFL a
tensor. What ByzPy publishes was measured on another machine: ``benchmarks/README.md`` of its
repository (github.com/Byzpy/byzpy), columns "Without ActorPool" and the best pool.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from benchmarks import rivals, timing
from benchmarks.aggregators import draw, prepared
from benchmarks.timing import Report, Seconds
from jaxfl import aggregators as rules
from jaxfl.aggregators import Aggregator, Pipeline
from jaxfl.preaggregators import ARC, NNM, Bucketing, Clipping


@dataclasses.dataclass(frozen=True)
class Case:
    """A rule at a published shape."""

    name: str
    rule: Aggregator
    n: int
    d: int
    byzpy: tuple[str, dict[str, Any]]
    """Class and its arguments."""
    byzfl: tuple[str, dict[str, Any]] | None
    published: tuple[float, float]
    """Milliseconds that ByzPy states: alone, and with its best pool of workers."""
    distances: bool = False
    """Whether it is of all rows' distances, so that no implementation can do without n^2 d
    multiply-adds, besides one read."""


def mixed(*stages: Any) -> Pipeline:
    """Pre-aggregators and their mean, of which the rivals do the first half only."""
    return Pipeline(pre=stages, rule=rules.Mean(weighted=False))


CASES = [
    Case(
        "TrimmedMean(f=8)",
        rules.TrimmedMean(f=8),
        64,
        65_536,
        ("CoordinateWiseTrimmedMean", {"f": 8}),
        ("TrMean", {"f": 8}),
        (65.52, 15.15),
    ),
    Case(
        "Median",
        rules.Median(),
        64,
        65_536,
        ("CoordinateWiseMedian", {}),
        ("Median", {}),
        (52.0, 37.0),
    ),
    Case(
        "MeaMed(f=8)",
        rules.MeaMed(f=8),
        64,
        65_536,
        ("MeanOfMedians", {"f": 8}),
        ("Meamed", {"f": 8}),
        (113.0, 59.0),
    ),
    Case(
        "MultiKrum(f=20, q=12)",
        rules.MultiKrum(f=20, q=12),
        80,
        65_536,
        ("MultiKrum", {"f": 20, "q": 12}),
        ("MultiKrum", {"f": 20}),
        (59.66, 26.30),
        distances=True,
    ),
    Case(
        "GeometricMedian",
        rules.GeometricMedian(),
        64,
        65_536,
        ("GeometricMedian", {}),  # up to 256 steps; ours 32, ByzFL's 3
        ("GeometricMedian", {}),
        (398.21, 142.97),
    ),
    Case(
        "CenteredClipping(10 steps)",
        rules.CenteredClipping(tau=0.1, iterations=10),
        64,
        65_536,
        ("CenteredClipping", {"c_tau": 0.1, "M": 10}),
        ("CenteredClipping", {"L": 10, "tau": 0.1}),
        (112.0, 50.0),
    ),
    Case(
        "MoNNA(f=8)",
        rules.MoNNA(f=8),
        64,
        65_536,
        ("MoNNA", {"f": 8}),
        ("MoNNA", {"f": 8}),
        (67.0, 11.0),
    ),
    Case(
        "CAF(f=8)",
        rules.CAF(f=8),
        64,
        65_536,
        ("CAF", {"f": 8}),
        ("CAF", {"f": 8}),
        (54.51, 54.94),
        distances=True,
    ),
    Case(
        "CGE(f=8)",
        rules.CGE(f=8),
        64,
        65_536,
        ("ComparativeGradientElimination", {"f": 8}),
        None,
        (100.0, 23.0),
    ),
    Case(
        "MDA(f=10)",
        rules.MDA(f=10),
        30,
        2048,
        ("MinimumDiameterAveraging", {"f": 10}),
        None,  # looks at 30 million subsets
        (353.0, 166.0),
        distances=True,
    ),
    Case(
        "SMEA(f=5)",
        rules.SMEA(f=5),
        16,
        4096,
        ("SMEA", {"f": 5}),
        ("SMEA", {"f": 5}),
        (82.0, 48.0),
        distances=True,
    ),
    Case(
        "NNM(f=32) + Mean",
        mixed(NNM(f=32)),
        196,
        4096,
        ("NearestNeighborMixing", {"f": 32}),
        ("NNM", {"f": 32}),
        (12.0, 137.0),
        distances=True,
    ),
    Case(
        "ARC(f=8) + Mean",
        mixed(ARC(f=8)),
        256,
        65_536,
        ("ARC", {"f": 8}),
        ("ARC", {"f": 8}),
        (20.77, 50.87),
    ),
    Case(
        "Clipping(2) + Mean",
        mixed(Clipping(tau=2.0)),
        256,
        65_536,
        ("Clipping", {"threshold": 2.0}),
        ("Clipping", {"c": 2.0}),
        (46.0, 61.0),
    ),
    Case(
        "Bucketing(32) + Mean",
        mixed(Bucketing(size=32)),
        512,
        16_384,
        ("Bucketing", {"bucket_size": 32}),
        None,
        (13.4, 21.7),
    ),
]
MODULES = (
    "aggregators.coordinate_wise",
    "aggregators.geometric_wise",
    "aggregators.norm_wise",
    "pre_aggregators",
)


def byzpy_call(name: str, arguments: dict[str, Any], matrix: np.ndarray) -> Callable[[], Any]:
    """ByzPy's rule, or its pre-aggregator alone, on a list of tensors."""
    torch: Any = importlib.import_module("torch")
    rows = list(torch.from_numpy(matrix))
    for module in MODULES:
        kind = getattr(importlib.import_module(f"byzpy.{module}"), name, None)
        if kind is not None:
            made = kind(**arguments)
            call = getattr(made, "aggregate", None) or made.pre_aggregate
            return lambda: call(rows)
    raise ValueError(f"ByzPy has no {name}")


def byzfl_call(name: str, arguments: dict[str, Any], matrix: np.ndarray) -> Callable[[], Any]:
    """ByzFL's rule, or its pre-aggregator alone, on a tensor."""
    torch: Any = importlib.import_module("torch")
    made, tensor = getattr(rivals.byzfl(), name)(**arguments), torch.from_numpy(matrix)
    return lambda: made(tensor)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One case, in seconds."""

    name: str
    n: int
    d: int
    ours: Seconds
    rivals: dict[str, Seconds]
    published: tuple[float, float]
    floor: float
    """One read of the matrix, or the operations at the rate of a large product, if longer."""


def measure(case: Case, rate: float, repeats: int, shrink: int) -> Measured:
    """Ours and the rivals in turn."""
    updates = draw(case.n, max(case.d // shrink, 64))
    matrix = np.array(updates)
    runs: dict[str, Callable[[], Any]] = {"jaxfl": prepared(case.rule, updates)}
    if timing.installed("byzpy"):
        runs["ByzPy"] = byzpy_call(*case.byzpy, matrix)
    if case.byzfl is not None and rivals.byzfl() is not None:
        runs["ByzFL"] = byzfl_call(*case.byzfl, matrix)
    ones = jax.numpy.ones((case.n,))
    runs["read"] = lambda read=jax.jit(lambda x: ones @ x): read(updates)
    times = timing.interleaved(runs, repeats)
    operations = case.n * case.n * case.d if case.distances else 0
    floor = max(times.pop("read").best, 2 * operations / shrink / rate)
    ours = times.pop("jaxfl")
    return Measured(case.name, case.n, updates.shape[1], ours, times, case.published, floor)


def table(results: list[Measured]) -> Report:
    """A line per rule."""
    header = ("rule", "n x d", "jaxfl ms", "ByzPy ms", "ByzFL ms", "x ByzPy", "x ByzFL")
    header += ("ByzPy states: alone, best pool", "floor ms")
    report = Report("Rules at ByzPy's shapes, milliseconds of one call", header)
    for result in results:
        best = {name: seconds.best for name, seconds in result.rivals.items()}
        told = [f"{1e3 * best[name]:.2f}" if name in best else "-" for name in ("ByzPy", "ByzFL")]
        times = [
            f"{best[name] / result.ours.best:.1f}" if name in best else "-"
            for name in ("ByzPy", "ByzFL")
        ]
        stated = ", ".join(f"{value:g}" for value in result.published)
        shape = f"{result.n} x {result.d:,}"
        ours, floor = f"{1e3 * result.ours.best:.2f}", f"{1e3 * result.floor:.2f}"
        report.rows.append((result.name, shape, ours, *told, *times, stated, floor))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a 64th of the columns, once")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    console = Console(width=160)
    shrink, repeats = (64, 1) if options.quick else (1, 7)
    rate = timing.gemm_rate(repeats)
    results = []
    for case in CASES:
        results.append(measure(case, rate, repeats, shrink))
        console.print(f"{case.name}: {1e3 * results[-1].ours.best:.2f} ms")
    report = table(results)
    report.show(console)
    facts = {"gemm_rate": rate, "rules": [dataclasses.asdict(result) for result in results]}
    timing.write(options.out, "byzpy", timing.describe_machine(), [report], **facts)


if __name__ == "__main__":
    main()
