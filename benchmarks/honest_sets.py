"""Many honest sets in one program against one by one: wall clock of the same runs.

``python -m benchmarks.honest_sets [--sets N ...] [--rounds R] [--out DIR]``. MNIST, 20 clients with
Dirichlet(0.1), momentum 0.9, barrier clipping under ALIE; sets from a law in which one large group
falls. Both ways run the same program once to compile it, and then the same rounds. A valid
measurement needs a machine that does nothing else.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

import jaxfl
from benchmarks.timing import Report, describe_machine, write
from jaxfl import robustness

LAW = robustness.Clusters(
    groups=(0,) * 8 + (1,) * 12, corruption=np.array([0.3, 1.0]), within=np.array([1.0, 0.03])
)


def simulation(data: jaxfl.data.FederatedData, sets: np.ndarray, first: int) -> jaxfl.Simulation:
    """Runs of these honest sets, whose seeds are counted from ``first``."""
    federation = jaxfl.Federation(
        algorithm=jaxfl.FedSGD(batch_size=4, momentum=0.9),
        attack=jaxfl.ALIE(z=1.5),
        aggregator=robustness.barrier_clipping(LAW),
        byzantine=LAW.most_byzantine,
    )
    return jaxfl.Simulation(
        federation,
        data,
        jaxfl.models.MLP(hidden=(64,)),
        seeds=range(first, first + len(sets)),
        honest=sets,
    )


def seconds(runs: list[jaxfl.Simulation], rounds: int) -> tuple[float, float]:
    """Of the first block, compiling included, and then of a block and evaluation of every run."""
    started = time.perf_counter()
    runs[0].advance(rounds)
    compiled = time.perf_counter() - started
    started = time.perf_counter()
    for run in runs:
        run.advance(rounds)
    return compiled, time.perf_counter() - started


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sets", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder for honest_sets.json and honest_sets.md")
    options = parser.parse_args()
    data = jaxfl.data.mnist().split(jaxfl.data.Dirichlet(alpha=0.1), 20)
    report = Report(
        "Honest sets in one program against one by one",
        ("sets", "together: compiled s", "run s", "one by one: compiled s", "run s", "ratio"),
    )
    facts = []
    for count in options.sets:
        sets = np.asarray(LAW.sample(jax.random.key(0), count))
        whole = seconds([simulation(data, sets, 0)], options.rounds)
        alone = [simulation(data, sets[i : i + 1], i) for i in range(count)]
        single = seconds(alone, options.rounds)
        ratio = single[1] / whole[1]
        report.rows.append((str(count), *(f"{x:.2f}" for x in (*whole, *single)), f"{ratio:.2f}"))
        facts.append({"sets": count, "together": whole, "one by one": single, "ratio": ratio})
    report.show(Console(width=160))
    if options.out:
        more = {"rounds": options.rounds, "runs": facts}
        write(options.out, "honest_sets", describe_machine(), [report], **more)


if __name__ == "__main__":
    main()
