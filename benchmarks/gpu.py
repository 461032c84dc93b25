"""All that is worth knowing of a GPU, in one command: is it right, and how fast.

``python -m benchmarks.gpu [--quick] [--only WORDS] [--seconds N] [--out DIR]`` takes under eight
minutes and needs no more than jax, flax, optax, jaxtyping, numpy, scipy and scikit-learn. It
checks every rule, attack, mechanism and client's algorithm of ``benchmarks.catalogue`` against
double precision on the host's CPU in the same process; then times every rule at 100 x 10M and
1000 x 1M against the measured rate of copying, the kernel of order statistics against XLA's program
for them, the round of 50 clients on the CNN and on ResNet-18, 100,000 clients on the MLP
(streamed), and where the time of a round goes. It prints one table and writes ``gpu.json``; what
the budget of time left out, or what failed, is in both. Exit status 1: something failed or is
wrong. ``--quick`` runs the same code at small sizes, on any device.
"""

import argparse
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from benchmarks import scale, timing
from benchmarks.cases import MODELS, RULES, Case, federated, federation, rounds_of
from benchmarks.catalogue import Numbers, Size, WrongError, check, programs
from benchmarks.kernels import STATISTICS, Statistic, against_xla
from benchmarks.rules import ENTRIES, one_layer
from jaxfl.aggregators import Aggregator
from jaxfl.data import synthetic
from jaxfl.plan import make_plan
from jaxfl.profiling import profile
from jaxfl.profiling.peaks import copy_rate, gemm_rate
from jaxfl.profiling.result import Peaks
from jaxfl.simulation import Simulation
from jaxfl.types import Context, PyTree, Spec

REPEATS = 3
DEEP = {"Mean": 0.86, "NNM(f=10) + TrimmedMean(f=10)": 0.88}
"""The rules that ResNet-18's round is timed with, and until when each is begun."""
STREAMED = ("Mean", "NBS")
"""Rules of one pass and of two."""
CHECKED = ("rule", "attack", "mechanism", "round")
"""Sections of answers; the others are of times."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    check: tuple[Size, ...]
    """The first with everything, others with the rules only."""
    matrices: tuple[tuple[int, int], ...]
    statistics: tuple[Statistic, ...]
    columns: int
    """Of what the kernel is timed on."""
    case: Case
    deep: Case
    streamed: int
    """Clients."""
    copied: int
    """Bytes."""


FULL = Sizes(
    check=(Size(20, 4, 28), Size(100, 20, 28)),
    matrices=((100, 10_000_000), (1000, 1_000_000)),
    statistics=STATISTICS,
    columns=4_000_000,
    case=Case("cnn", 50, rounds=10, repeats=REPEATS),
    deep=Case("resnet-18", 50, rounds=2, repeats=REPEATS),
    streamed=100_000,
    copied=2**32,
)
QUICK = Sizes(
    check=(Size(12, 2, 8),),
    matrices=((12, 2000), (70, 500)),
    # A test has its own of a mean near it: the suite's quick compiler, which writes a shared value
    # anew wherever it is used, needs gigabytes for that kernel at 10 rows.
    statistics=(Statistic(10),),
    columns=300,
    case=Case("mlp", 30, rounds=1, repeats=1),
    deep=Case("small resnet", 30, rounds=1, repeats=1),
    streamed=100,
    copied=2**22,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of the table, and what finds it out."""

    section: str
    name: str
    size: str
    until: float
    """Not begun once this share of the time has passed: every section gets its turn."""
    work: Callable[[], Numbers]


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found; ``status`` is "ok", "wrong", "failed" or "skipped"."""

    section: str
    name: str
    size: str
    status: str
    numbers: Numbers = dataclasses.field(default_factory=dict)
    note: str = ""


def rule_program(rule: Aggregator, n: int) -> Callable[[jax.Array, PyTree], PyTree]:
    """The aggregate and the rule's memory, of the updates and its memory."""

    def answer(updates: jax.Array, state: PyTree) -> PyTree:
        one, layers = updates[0], one_layer(updates.shape[1])
        context = Context.of(n, root_update=one, params=one, segments=layers)
        found = rule.aggregate(updates, state, context)
        return found.update, found.state

    return answer


@functools.lru_cache(maxsize=1)
def _matrix(n: int, dim: int) -> jax.Array:
    return jax.jit(lambda key: jax.random.normal(key, (n, dim)))(jax.random.key(0))


def time_rule(rule: Aggregator, n: int, dim: int, peaks: Callable[[], Peaks]) -> Numbers:
    """Milliseconds, and how often the matrix could have been read at the rate of copying."""
    updates, state = _matrix(n, dim), rule.init(Spec(n, n, dim, n // 5, segments=one_layer(dim)))
    program = jax.jit(rule_program(rule, n))
    seconds = timing.interleaved({"": lambda: program(updates, state)}, REPEATS)[""]
    reads = seconds.best * peaks().bytes / updates.nbytes
    return {"ms": 1e3 * seconds.best, "reads": reads, "first call s": seconds.first}


def rates(peaks: Peaks) -> Numbers:
    """Of a large product at default precision, and of copying (bytes read and written)."""
    return {"GFLOP/s": peaks.flops / 1e9, "GB/s": peaks.bytes / 1e9}


def time_round(case: Case, rule: Aggregator) -> Numbers:
    """A round under attack."""
    data, parts = federated(case), federation(rule, attacked=True)
    plan = make_plan(parts, data, MODELS[case.model])
    run = rounds_of(parts, plan, data, case.rounds, devices=1)
    seconds = timing.interleaved({"": run}, case.repeats)[""].per(case.rounds)
    rate = case.images / seconds.best
    return {"ms": 1e3 * seconds.best, "images/s": rate, "first call s": seconds.first}


def time_streamed(rule: str, clients: int) -> Numbers:
    """A round in which updates are never all held."""
    dataset = synthetic(samples=scale.IMAGES * min(clients, scale.DISTINCT), features=784)
    cost = scale.measure_on(dataset, scale.Case(rule, clients, clients, "stream"))
    numbers: Numbers = {"s": cost.seconds, "us a client": 1e6 * cost.seconds / clients}
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        numbers["peak GB so far"] = stats["peak_bytes_in_use"] / 1e9
    return numbers | {"first call s": cost.compile}


def time_phases(case: Case, peaks: Callable[[], Peaks]) -> Numbers:
    """Milliseconds of each phase of a round."""
    parts = federation(RULES["TrimmedMean(f=10)"], attacked=True)
    simulation = Simulation(parts, federated(case), MODELS[case.model])
    found = profile(simulation, rounds=case.rounds, peaks=peaks())
    phases = {phase.name: 1e3 * phase.seconds for phase in found.phases}
    return {"ms": 1e3 * found.seconds, **phases}


def tasks(sizes: Sizes) -> Iterator[Task]:
    """All lines, in the order in which they are found out."""

    @functools.cache
    def peaks() -> Peaks:
        device = jax.devices()[0].device_kind
        flops, rate = gemm_rate(), copy_rate(sizes.copied)
        return Peaks(device=device, cores=timing.cores(), flops=flops, bytes=rate)

    for i, size in enumerate(sizes.check):
        text = f"{size.clients} x {size.dim:,}"
        for p in programs(size):
            if i == 0 or p.kind == "rule":
                yield Task(p.kind, p.name, text, 0.4, functools.partial(check, p, size))
    yield Task("machine", "peaks", "", 1.0, lambda: rates(peaks()))
    for (n, dim), until in zip(sizes.matrices, (0.6, 0.76), strict=True):
        for entry in ENTRIES:
            work = functools.partial(time_rule, entry.make(n // 5), n, dim, peaks)
            yield Task("rule, timed", entry.name, f"{n} x {dim:,}", until, work)
    for statistic in sizes.statistics:
        work = functools.partial(against_xla, statistic, sizes.columns, REPEATS)
        yield Task("kernel, timed", str(statistic), f"{sizes.columns:,} columns", 0.8, work)
    case, many = sizes.case, sizes.streamed
    rounds = [(case, name, 0.82) for name in RULES]
    for of, name, until in [*rounds, *((sizes.deep, *deep) for deep in DEEP.items())]:
        work = functools.partial(time_round, of, RULES[name])
        yield Task("round, timed", f"{of.model}, {name}", f"{of.clients} clients", until, work)
    for name in STREAMED:
        work = functools.partial(time_streamed, name, many)
        yield Task("streamed, timed", f"mlp, {name}", f"{many:,} clients", 0.93, work)
    phases = functools.partial(time_phases, case, peaks)
    yield Task(
        "profile", f"{case.model}, TrimmedMean(f=10)", f"{case.clients} clients", 1.0, phases
    )


def find_out(task: Task, started: float, budget: float) -> Row:
    """Runs a task, unless its time is over; what it raises is in the row."""
    row = Row(task.section, task.name, task.size, "ok")
    if time.monotonic() - started > task.until * budget:
        return dataclasses.replace(row, status="skipped", note="no time left")
    try:
        return dataclasses.replace(row, numbers=task.work())
    except WrongError as error:
        return dataclasses.replace(row, status="wrong", note=str(error))
    except ModuleNotFoundError as error:  # of a package that is not among those named above
        return dataclasses.replace(row, status="skipped", note=str(error))
    except Exception as error:  # one that fails must not cost the others their time on the device
        note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return dataclasses.replace(row, status="failed", note=note)


def measure(chosen: list[Task], budget: float) -> list[Row]:
    """A row for each task, in order.

    Checks run beside each other, for most of their time is the compiler's; what is timed runs
    alone, after them.
    """
    run = functools.partial(find_out, started=time.monotonic(), budget=budget)
    checks = [task for task in chosen if task.section in CHECKED]
    with ThreadPoolExecutor(timing.cores()) as pool:
        rows = list(pool.map(run, checks))
    return rows + [run(task) for task in chosen[len(checks) :]]


def report(rows: list[Row]) -> timing.Report:
    """The one table."""
    table = timing.Report("GPU", ("what", "name", "size", "status", "numbers"))
    for row in rows:
        numbers = [
            f"{name} {value}" if isinstance(value, str) else f"{name} {value:.4g}"
            for name, value in row.numbers.items()
        ]
        found = ", ".join(numbers) or row.note
        table.rows.append((row.section, row.name, row.size, row.status, found))
    return table


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, on any device")
    parser.add_argument("--only", default="", help="lines that contain one of these, by commas")
    parser.add_argument("--seconds", type=float, default=450, help="begin nothing after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    words = [word for word in options.only.split(",") if word] or [""]
    chosen = [
        task
        for task in tasks(QUICK if options.quick else FULL)
        if any(word in f"{task.section}: {task.name}, {task.size}" for word in words)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    started, machine = time.monotonic(), timing.describe_machine()
    rows = measure(chosen, options.seconds)
    counts = Counter(row.status for row in rows)
    took = time.monotonic() - started
    print(report(rows).markdown())
    print(", ".join(f"{name}: {fact}" for name, fact in machine.items()))
    print(f"{took:.0f} s; " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    lines = [dataclasses.asdict(row) for row in rows]
    whole = {"machine": machine, "seconds": took, "counts": counts, "rows": lines}
    timing.save(options.out / "gpu.json", whole)
    raise SystemExit(bool(counts["wrong"] or counts["failed"]))


if __name__ == "__main__":
    main()
