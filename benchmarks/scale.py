"""Rounds of 100 to 100,000 clients: time, memory, and where the updates are held.

``python -m benchmarks.scale [--quick] [--most N] [--only WORDS] [--out DIR]`` runs FedSGD on MNIST
(the MLP 784-128-10, up to 1,000 clients also the CNN; 10 images a client and round; beyond 6,000
clients several have the same images) with the updates held in a matrix and streamed, each in a
process of its own, so that its peak memory is its own. It fits time ~ n^a, and times a cohort of
1,000 in populations of 10,000 and 1,000,000. What the plan of memory refuses is a row with its
reason; rules that compare all with all are only planned at 100,000 clients, not run.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.timing import Report, describe_machine, in_fresh_process, peak_bytes, write
from jaxfl import (
    ARC,
    CGE,
    NBS,
    TNBS,
    CenteredClipping,
    Clipping,
    FedSGD,
    FLTrust,
    Krum,
    Mean,
    Median,
    NormClipping,
    Oracle,
    Pipeline,
    SignGuard,
    SignMajority,
    Simulation,
    Uniform,
)
from jaxfl.aggregators import Aggregator
from jaxfl.data import IID, Dataset, FederatedData, RootData, from_arrays, mnist
from jaxfl.federation import Federation
from jaxfl.models import MLP, Model, SignGuardCNN
from jaxfl.plan import make_plan

IMAGES = 10
DISTINCT = 6000
"""Clients that have images of their own."""
RULES = {
    "Mean": lambda n: Mean(),
    "Oracle": lambda n: Oracle(),
    "SignMajority": lambda n: SignMajority(),
    "NormClipping": lambda n: NormClipping(),
    "CGE": lambda n: CGE(f=n // 10),
    "NBS": lambda n: NBS(f=n // 10),
    "TNBS": lambda n: TNBS(f=n // 10),
    "FLTrust": lambda n: FLTrust(),
    "CenteredClipping": lambda n: CenteredClipping(iterations=1),
    "ARC + Mean": lambda n: Pipeline(pre=(ARC(f=n // 10),), rule=Mean()),
    "Clipping + Mean": lambda n: Pipeline(pre=(Clipping(tau=1.0),), rule=Mean()),
    "SignGuard": lambda n: SignGuard(),
    "Median": lambda n: Median(),
    "Krum": lambda n: Krum(f=n // 10),
}
STREAMED = tuple(RULES)[: list(RULES).index("Median")]
MODELS: dict[str, Model] = {"mlp": MLP(), "cnn": SignGuardCNN()}
MANY = 100_000
LONG = 60.0
"""Seconds of a block that is timed once only, after the call that compiles."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement."""

    rule: str
    population: int
    cohort: int
    storage: str
    model: str = "mlp"
    planned: bool = False
    """Whether it is asked for its plan only."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a round takes, in the steady state."""

    seconds: float
    peak: float
    """Of the process, in bytes, data and compiler included."""
    compile: float
    refused: str = ""
    """Why there are no numbers."""


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
    return measure_on(noise() if quick else mnist(), case, enough=0.0 if quick else 10.0)


def noise() -> Dataset:
    """As many images as a quick run needs."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1000, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(1000, dtype=np.int32) % 10
    return from_arrays(images, labels, images[:100], labels[:100])


def measure_on(dataset: Dataset, case: Case, enough: float = 10.0) -> Cost:
    """The same on images of one's own, blocks being timed for so many seconds."""
    participation: dict[str, Any] = {}
    if case.cohort < case.population:
        participation = {"participation": Uniform(fraction=case.cohort / case.population)}
    rule: Aggregator = RULES[case.rule](case.cohort)
    parts = Federation(aggregator=rule, algorithm=FedSGD(batch_size=IMAGES), **participation)
    data, model = population(dataset, case.population), MODELS[case.model]
    try:
        if case.planned:
            make_plan(parts, data, model, storage=case.storage)
            return Cost(math.nan, math.nan, math.nan, "fits; not run")
        simulation = Simulation(parts, data, model, storage=case.storage, evaluate_every=1)
    except ValueError as error:
        if not str(error).startswith("memory: "):
            raise
        return Cost(math.nan, math.nan, math.nan, str(error))
    return timed(simulation, case, enough)


def timed(simulation: Simulation, case: Case, enough: float) -> Cost:
    """Of blocks of rounds, one after the other; the best counts."""
    least = 2 if enough else 1
    rounds = max(1, min(10, 20_000 // case.cohort))
    block = simulation.block(rounds)

    def run() -> float:
        start = time.perf_counter()
        simulation.state, record = block(simulation.federation, simulation.data, simulation.state)
        jax.block_until_ready((simulation.state.params, record))
        return time.perf_counter() - start

    first = run()
    times = []
    while not times or (sum(times) < (LONG if len(times) < least else enough) and len(times) < 7):
        times.append(run())
    seconds = min(times) / rounds
    return Cost(seconds, peak_bytes(), first - min(times))


def cases(most: int) -> list[Case]:
    """All measurements of cohorts of up to ``most`` clients."""
    sizes = [10**k for k in range(2, int(math.log10(most)) + 1)]
    held = [Case(rule, n, n, "matrix") for rule in ("Mean", "Median", "Krum") for n in sizes]
    held = [c for c in held if c.cohort <= (1000 if c.rule == "Krum" else 10_000)]
    streamed = [Case(rule, n, n, "stream") for rule in STREAMED for n in sizes]
    cohort = min(1000, most // 10)
    few = [Case("Mean", p * cohort, cohort, "stream") for p in (10, 1000)]
    images = [
        Case("Mean", n, n, storage, model="cnn")
        for storage in ("matrix", "stream")
        for n in (10, 100, 1000)
        if n <= most
    ]
    planned = [
        Case(rule, MANY, MANY, storage, planned=True)
        for rule in ("Mean", "Median", "Krum")
        for storage in ("matrix", "bfloat16")
    ]
    return [*held, *streamed, *few, *images, *planned]


def exponents(found: dict[Case, Cost]) -> dict[str, float]:
    """The a of time ~ n^a by model, rule and storage, where everybody takes part.

    By least squares on logarithms.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for case, cost in found.items():
        if case.cohort == case.population and not cost.refused:
            name = f"{case.rule}, {case.storage}" + (", cnn" if case.model == "cnn" else "")
            points.setdefault(name, []).append((case.cohort, cost.seconds))
    fitted = {}
    for name, measured in sorted(points.items()):
        if len(measured) > 1:
            clients, seconds = np.log(np.asarray(measured)).T
            fitted[name] = float(np.polyfit(clients, seconds, 1)[0])
    return fitted


def line(case: Case, cost: Cost) -> tuple[str, ...]:
    """A row of the table."""
    row = (case.rule, case.model, f"{case.cohort:,}", f"{case.population:,}", case.storage)
    if cost.refused:
        return (*row, cost.refused, "-", "-", "-")
    client = f"{1e6 * cost.seconds / case.cohort:.0f} us"
    memory = f"{cost.peak / 2**30:.2f} GiB"
    return (*row, f"{cost.seconds:.4g} s", client, memory, f"{cost.compile:.1f} s")


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="synthetic data, up to 100 clients")
    parser.add_argument("--most", type=int, default=100_000, help="clients in the largest round")
    parser.add_argument("--only", default="", help="rules, models or storages, by commas")
    parser.add_argument("--out", type=Path, help="folder for scale.md and scale.json")
    options = parser.parse_args()
    most = 100 if options.quick else options.most
    words = set(filter(None, options.only.split(",")))
    console = Console(width=160)
    machine = describe_machine()
    console.print(machine)
    columns = ("rule", "model", "clients", "of", "updates", "a round", "a client", "peak memory")
    report = Report(f"FedSGD, {IMAGES} images a client", (*columns, "compile"))
    found: dict[Case, Cost] = {}
    chosen = [c for c in cases(most) if not words or words & {c.rule, c.model, c.storage}]
    for case in track(chosen, console=console):
        found[case] = in_fresh_process(measure, case, options.quick)
        report.rows.append(line(case, found[case]))
    report.show(console)
    fitted = exponents(found)
    console.print({name: round(a, 3) for name, a in fitted.items()})
    if options.out:
        lines = [dataclasses.asdict(c) | known(cost) for c, cost in found.items()]
        write(options.out, "scale", machine, [report], rounds=lines, exponents=fitted)


def known(cost: Cost) -> dict[str, Any]:
    """A cost as JSON has it, which knows no NaN."""
    return {"refused": cost.refused} if cost.refused else dataclasses.asdict(cost)


if __name__ == "__main__":
    main()
