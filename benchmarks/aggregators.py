"""Speed of every rule: against ByzFL, plain PyTorch, NumPy, and the machine's floor.

Updates are random ``[n, d]`` float32; a rule is one compiled call on them, its first call
(compilation) apart. The floor of a rule is what no implementation can undercut: one read of the
matrix (``ones @ x``, the fastest way here), or for rules that need all inner products the
``2 n^2 d`` operations at the rate of a large matrix product, whichever is longer. All rivals of
a case run in turn in one process.

``python -m benchmarks.aggregators [--quick] [--out DIR]`` prints the tables and writes
``aggregators.json`` and ``aggregators.md``. Rivals are optional: ``pip install jaxfl[peers]``.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import rivals, timing
from benchmarks.rules import ENTRIES, Entry, one_layer
from benchmarks.timing import Report, Seconds
from jaxfl.aggregators import Aggregator, Median
from jaxfl.types import Context, Spec

SHAPES = ((50, 10, 98_304), (50, 10, 1_000_000), (1000, 200, 20_000))
QUICK = ((12, 2, 20_000),)
SUBSETS = ((16, 4, 98_304),)
"""Where a rule that looks at all subsets can be compared."""
WIDE = ((200, 100_000), (400, 50_000), (1000, 20_000), (10_000, 2000))


GOALS = {"coordinatewise": 20, "mixing": 20, "distances": 8, "iterative": 4}
"""Times faster than ByzFL that we set out for; the mean is held against its floor instead."""


def prepared(rule: Aggregator, updates: jax.Array) -> Callable[[], Any]:
    """The rule as the round runs it: one compiled call, memory and context given."""
    n, d = updates.shape
    context = Context.of(
        n, root_update=updates[0] + 1, params=jnp.zeros((d,)), segments=one_layer(d)
    )
    state = rule.init(Spec(n, n, d, dtype=updates.dtype, segments=one_layer(d)))
    call = jax.jit(lambda rule, x, state, context: rule.aggregate(x, state, context).update)
    return lambda: call(rule, updates, state, context)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One rule at one shape, in seconds."""

    entry: Entry
    shape: tuple[int, int, int]
    ours: Seconds
    rivals: dict[str, Seconds | str]
    floor: float

    def speedup(self, rival: str) -> float | None:
        """The rival's time over ours, where it ran."""
        other = self.rivals.get(rival)
        return other.best / self.ours.best if isinstance(other, Seconds) else None


def measure(entry: Entry, n: int, f: int, d: int, updates: jax.Array, floor: float, repeats: int):
    """Times our rule and its rivals in turn; None where the rule does not apply."""
    rule = entry.make(f)
    try:
        rule.check(n)
    except ValueError:
        return None
    runs: dict[str, Callable[[], Any]] = {"jaxfl": prepared(rule, updates)}
    said: dict[str, Seconds | str] = {}
    matrix = np.asarray(updates)
    if entry.rival is not None:
        tensor = _tensor(matrix)
        peer = rivals.byzfl_rule(entry.rival, entry.pre, n, f, d) if entry.rival != "TNBS" else ""
        if isinstance(peer, str):
            said["ByzFL"] = peer
        else:
            runs["ByzFL"] = lambda: peer(tensor)
        if not entry.pre:
            torch_call = rivals.torch_rule(entry.rival, f)
            if torch_call is not None:
                runs["PyTorch"] = lambda: torch_call(tensor)
            numpy_call = rivals.numpy_rule(entry.rival, f)
            if numpy_call is not None:
                runs["NumPy"] = lambda: numpy_call(matrix)
    times = timing.interleaved(runs, repeats)
    said |= {name: seconds for name, seconds in times.items() if name != "jaxfl"}
    return Measured(entry, (n, f, d), times["jaxfl"], said, floor)


def _tensor(matrix: np.ndarray) -> Any:
    if not timing.installed("torch"):
        return None
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(np.array(matrix))


def floors(updates: jax.Array, rate: float, repeats: int) -> tuple[float, float]:
    """Seconds of one read of the matrix, and of its inner products at GEMM rate."""
    n, d = updates.shape
    ones = jnp.ones((n,), updates.dtype)
    read = jax.jit(lambda x: ones @ x)
    runs = {"read": lambda: read(updates)}
    return timing.interleaved(runs, repeats)["read"].best, 2 * n * n * d / rate


def draw(n: int, d: int) -> jax.Array:
    """Updates about a common direction, as clients' are."""
    keys = jax.random.split(jax.random.key(0))
    centre = 0.3 * jax.random.normal(keys[0], (1, d))
    return centre + jax.random.normal(keys[1], (n, d))


def table(results: list[Measured]) -> Report:
    """A line per rule and shape."""
    header = ("rule", "n", "f", "d", "jaxfl ms", "ByzFL ms", "PyTorch ms", "NumPy ms")
    header += ("x ByzFL", "floor ms", "x floor", "compile s")
    report = Report("Rules, milliseconds of one call", header)

    def told(value: Seconds | str | None) -> str:
        if value is None or value == "":
            return "-"
        return value if isinstance(value, str) else f"{1e3 * value.best:.2f}"

    for result in results:
        ratio = result.speedup("ByzFL")
        others = (told(result.rivals.get(name)) for name in ("ByzFL", "PyTorch", "NumPy"))
        report.rows.append(
            (
                result.entry.name,
                *map(str, result.shape),
                told(result.ours),
                *others,
                "-" if ratio is None else f"{ratio:.1f}",
                f"{1e3 * result.floor:.2f}",
                f"{result.ours.best / result.floor:.1f}",
                f"{result.ours.first - result.ours.best:.1f}",
            )
        )
    return report


def by_shape(results: list[Measured]) -> Report:
    """A line per rule, its shapes side by side."""
    shapes = [f"{n} x {d:,}" for n, _, d in dict.fromkeys(result.shape for result in results)]
    header = ("rule", *(f"{shape} (ms)" for shape in shapes), "x ByzFL", "x floor")
    report = Report("Rules by shape", header)
    rules: dict[str, dict[str, Measured]] = {}
    for result in results:
        n, _, d = result.shape
        rules.setdefault(result.entry.name, {})[f"{n} x {d:,}"] = result
    for name, found in rules.items():
        ratios = [found[s].speedup("ByzFL") if s in found else None for s in shapes]
        told = ["-" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
        times = (f"{1e3 * found[s].ours.best:.2f}" if s in found else "-" for s in shapes)
        floors = (f"{found[s].ours.best / found[s].floor:.1f}" for s in shapes if s in found)
        against = ", ".join(told) if any(ratios) else "-"
        report.rows.append((name, *times, against, ", ".join(floors)))
    return report


def by_family(results: list[Measured]) -> Report:
    """Geometric means of the speed-up over ByzFL."""
    report = Report(
        "Times faster than ByzFL", ("family", "cases", "geometric mean", "goal", "worst")
    )
    ratios: dict[str, list[float]] = {}
    for result in results:
        ratio = result.speedup("ByzFL")
        if ratio is not None:
            ratios.setdefault(result.entry.family, []).append(ratio)
            ratios.setdefault("all", []).append(ratio)
    for family, values in ratios.items():
        mean = math.exp(sum(math.log(v) for v in values) / len(values))
        goal = GOALS.get(family, 12 if family == "all" else "-")
        report.rows.append(
            (family, str(len(values)), f"{mean:.1f}", str(goal), f"{min(values):.2f}")
        )
    return report


def wide_medians(repeats: int) -> Report:
    """The median of many clients against sorting."""
    names = ("jaxfl", "np.sort", "np.median", "torch.sort", "torch.median")
    header = ("n", "d", *(f"{name} ms" for name in names), "floor ms")
    report = Report("Median of many clients", header)
    for n, d in WIDE:
        updates = draw(n, d)
        matrix = np.asarray(updates)
        runs: dict[str, Callable[[], Any]] = {"jaxfl": prepared(Median(), updates)}
        runs["np.sort"] = lambda matrix=matrix: np.sort(matrix, axis=0)
        runs["np.median"] = lambda matrix=matrix: np.median(matrix, axis=0)
        tensor = _tensor(matrix)
        if tensor is not None:
            runs["torch.sort"] = lambda tensor=tensor: tensor.sort(dim=0)
            runs["torch.median"] = lambda tensor=tensor: tensor.median(dim=0)
        times = timing.interleaved(runs, repeats)
        read, _ = floors(updates, 1.0, repeats)
        cells = (f"{1e3 * times[name].best:.1f}" if name in times else "-" for name in names)
        report.rows.append((str(n), str(d), *cells, f"{1e3 * read:.2f}"))
    return report


def reports_of(results: list[Measured]) -> list[Report]:
    """All tables of rules."""
    common = [result for result in results if result.shape not in SUBSETS]
    return [table(results), by_shape(common), by_family(results)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small shape, to see it run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", help="rules whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    console = Console(width=160)
    machine = timing.describe_machine()
    rate = timing.gemm_rate(arguments.repeats)
    results = []
    for n, f, d in QUICK if arguments.quick else (*SHAPES, *SUBSETS):
        updates = draw(n, d)
        read, gram = floors(updates, rate, arguments.repeats)
        chosen = arguments.only or ""
        entries = [e for e in ENTRIES if chosen in e.name and n <= e.most]
        if (n, f, d) in SUBSETS:
            entries = [e for e in entries if e.name in ("MDA", "SMEA")]
        for entry in track(entries, f"n = {n}, f = {f}, d = {d}", console=console, transient=True):
            floor = max(read, gram) if entry.gram else read
            result = measure(entry, n, f, d, updates, floor, arguments.repeats)
            if result is not None:
                results.append(result)
        if arguments.out:  # what is measured stays, whatever follows
            reports = reports_of(results)
            timing.write(arguments.out, "aggregators", machine, reports, gemm_flops=rate)
    reports = reports_of(results)
    if not arguments.quick and not arguments.only:
        reports.append(wide_medians(max(arguments.repeats // 2, 2)))
    for report in reports:
        report.show(console)
    console.print(f"GEMM rate {rate / 1e9:.0f} GFLOP/s")
    if arguments.out:
        timing.write(arguments.out, "aggregators", machine, reports, gemm_flops=rate)


if __name__ == "__main__":
    main()
