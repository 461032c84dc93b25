"""Rounds of 100 to 100,000 clients: time, memory, and where the updates are held.

``python -m benchmarks.scale [--quick] [--most N] [--out DIR]`` runs FedSGD on MNIST (the MLP
784-128-10, 10 images a client and round; beyond 6,000 clients several have the same images) with
the updates held in a matrix and streamed, each in a process of its own, so that its peak memory
is its own. It fits time ~ n^a, and times a cohort of 1,000 in populations of 10,000 and 1,000,000.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.timing import Report, describe_machine, in_fresh_process, peak_bytes
from jaxfl import NBS, FedSGD, FLTrust, Krum, Mean, Median, SignGuard, Simulation, Uniform
from jaxfl.aggregators import Aggregator
from jaxfl.data import IID, Dataset, FederatedData, RootData, mnist, synthetic
from jaxfl.federation import Federation
from jaxfl.models import MLP

IMAGES = 10
DISTINCT = 6000
"""Clients that have images of their own."""
RULES = {
    "Mean": lambda n: Mean(),
    "NBS": lambda n: NBS(f=n // 10),
    "FLTrust": lambda n: FLTrust(),
    "SignGuard": lambda n: SignGuard(),
    "Median": lambda n: Median(),
    "Krum": lambda n: Krum(f=n // 10),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement."""

    rule: str
    population: int
    cohort: int
    storage: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a round takes, in the steady state."""

    seconds: float
    peak: float
    """Of the process, in bytes, data and compiler included."""
    compile: float


def population(dataset: Dataset, clients: int) -> FederatedData:
    """So many clients with 10 images each."""
    distinct = min(clients, len(dataset.labels) // IMAGES)
    data = dataset.split(IID(), distinct, root=RootData(size=100))
    repeats = -(-clients // distinct)

    def again(x: jax.Array) -> jax.Array:
        return jnp.tile(x, (repeats, *[1] * (x.ndim - 1)))[:clients]

    return data.replace(
        start=again(data.start), count=again(data.count), label_counts=again(data.label_counts)
    )


def measure(case: Case, quick: bool) -> Cost:
    """Time and memory of the case's round."""
    return measure_on(synthetic(samples=IMAGES * DISTINCT // 100) if quick else mnist(), case)


def measure_on(dataset: Dataset, case: Case) -> Cost:
    """The same on images of one's own."""
    participation: dict[str, Any] = {}
    if case.cohort < case.population:
        participation = {"participation": Uniform(fraction=case.cohort / case.population)}
    rule: Aggregator = RULES[case.rule](case.cohort)
    parts = Federation(aggregator=rule, algorithm=FedSGD(batch_size=IMAGES), **participation)
    simulation = Simulation(
        parts, population(dataset, case.population), MLP(), storage=case.storage, evaluate_every=1
    )
    rounds = max(1, min(10, 20_000 // case.cohort))
    block = simulation.block(rounds)

    def run() -> float:
        start = time.perf_counter()
        simulation.state, record = block(simulation.federation, simulation.data, simulation.state)
        jax.block_until_ready((simulation.state.params, record))
        return time.perf_counter() - start

    first = run()
    times = []
    while len(times) < 2 or (sum(times) < 10 and len(times) < 7):
        times.append(run())
    seconds = min(times) / rounds
    return Cost(seconds, peak_bytes(), first - min(times))


def cases(most: int) -> list[Case]:
    """All measurements of cohorts of up to ``most`` clients."""
    sizes = [10**k for k in range(2, int(math.log10(most)) + 1)]
    held = [Case(rule, n, n, "matrix") for rule in ("Mean", "Median", "Krum") for n in sizes]
    held = [c for c in held if c.cohort <= (1000 if c.rule == "Krum" else 10_000)]
    streamed = [Case(r, n, n, "stream") for r in ("Mean", "NBS", "FLTrust") for n in sizes]
    streamed += [Case("SignGuard", n, n, "stream") for n in sizes if n <= 10_000]
    cohort = min(1000, most // 10)
    few = [Case("Mean", p * cohort, cohort, "stream") for p in (10, 1000)]
    return [*held, *streamed, *few]


def exponent(found: dict[Case, Cost], rule: str, storage: str) -> float | None:
    """A in time ~ n^a, by least squares on logarithms over full participation."""
    points = [
        (case.cohort, cost.seconds)
        for case, cost in found.items()
        if (case.rule, case.storage) == (rule, storage) and case.cohort == case.population
    ]
    if len(points) < 2:
        return None
    clients, seconds = np.log(np.asarray(points)).T
    return float(np.polyfit(clients, seconds, 1)[0])


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="synthetic data, up to 100 clients")
    parser.add_argument("--most", type=int, default=100_000, help="clients in the largest round")
    parser.add_argument("--out", type=Path, help="folder for scale.md and scale.json")
    options = parser.parse_args()
    most = 100 if options.quick else options.most
    console = Console()
    console.print(describe_machine())
    columns = ("rule", "clients", "of", "updates", "a round", "a client", "peak memory", "compile")
    report = Report(f"FedSGD on the MLP, {IMAGES} images a client", columns)
    found: dict[Case, Cost] = {}
    for case in track(cases(most), console=console):
        found[case] = cost = in_fresh_process(measure, case, options.quick)
        row = (case.rule, f"{case.cohort:,}", f"{case.population:,}", case.storage)
        client = f"{1e6 * cost.seconds / case.cohort:.0f} us"
        numbers = (f"{cost.seconds:.4g} s", client, f"{cost.peak / 2**30:.2f} GiB")
        report.rows.append((*row, *numbers, f"{cost.compile:.1f} s"))
    report.show(console)
    ways = {(case.rule, case.storage) for case in found}
    exponents = {f"{r}, {s}": a for r, s in sorted(ways) if (a := exponent(found, r, s))}
    console.print({name: round(a, 3) for name, a in exponents.items()})
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scale.md").write_text(report.markdown() + "\n")
        lines = [dataclasses.asdict(c) | dataclasses.asdict(cost) for c, cost in found.items()]
        whole = {"machine": describe_machine(), "rounds": lines, "exponents": exponents}
        (options.out / "scale.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
