"""A sweep as one program: 16 strengths of an attack x 4 seeds, against one run after another.

``python -m benchmarks.sweep [--quick] [--out DIR]`` times both from their start in a process of
their own, compilation included. One after another they share the compiled program, too: a strength
is a leaf. Writes ``sweep.json`` and ``sweep.md``.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console

import jaxfl
from benchmarks.timing import Report, describe_machine, in_fresh_process, write
from jaxfl import IPM, SGD, Federation, FedSGD, Simulation, TrimmedMean
from jaxfl.models import MLP, Model, Softmax

SCALES, SEEDS = tuple(float(x) for x in np.linspace(0.1, 2, 16)), (0, 1, 2, 3)
CLIENTS, BYZANTINE, BLOCK = 10, 2, 25
MODELS: dict[str, Model] = {
    "Softmax": Softmax(),
    "MLP of 32": MLP(hidden=(32,)),
    "MLP of 128": MLP(hidden=(128,)),
}


def sweep(model: Model, rounds: int, together: bool) -> tuple[float, list[float]]:
    """Seconds of the whole sweep, and the accuracies at its end, of all seeds at each strength."""
    started = time.perf_counter()
    data = jaxfl.data.digits()
    parts = {seed: data.split(jaxfl.data.IID(), CLIENTS, seed) for seed in SEEDS}
    runs = [
        (
            Federation(
                algorithm=FedSGD(batch_size=10),
                attack=IPM(scale=scale),
                aggregator=TrimmedMean(f=BYZANTINE),
                optimizer=SGD(learning_rate=0.1),
                byzantine=BYZANTINE,
            ),
            seed,
        )
        for scale in SCALES
        for seed in SEEDS
    ]
    groups = [runs] if together else [[run] for run in runs]
    ends = []
    for group in groups:
        simulation = Simulation(
            [federation for federation, _ in group],
            [parts[seed] for _, seed in group],
            model,
            seeds=[seed for _, seed in group],
            evaluate_every=BLOCK,
        )
        accuracy = simulation.run(rounds).evaluations.accuracy
        ends.extend(np.asarray(accuracy)[..., -1].reshape(-1).tolist())
    return time.perf_counter() - started, ends


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one block of rounds, one model")
    parser.add_argument("--out", type=Path, help="folder for sweep.json and sweep.md")
    options = parser.parse_args()
    rounds = BLOCK if options.quick else 4 * BLOCK
    models = {"Softmax": MODELS["Softmax"]} if options.quick else MODELS
    title = f"Seconds of {len(SCALES) * len(SEEDS)} runs of {rounds} rounds, compilation included"
    report = Report(title, ("model on digits", "one by one", "one program", "ratio"))
    found = {}
    for name, model in models.items():
        alone, ends = in_fresh_process(sweep, model, rounds, False)
        one, same = in_fresh_process(sweep, model, rounds, True)
        if not np.allclose(ends, same, atol=0.02):
            raise SystemExit(f"{name}: accuracies differ")
        found[name] = {"one by one": alone, "one program": one}
        report.rows.append((name, f"{alone:.1f}", f"{one:.1f}", f"{alone / one:.1f}"))
    report.show(Console())
    if options.out:
        write(options.out, "sweep", describe_machine(), [report], rounds=rounds, seconds=found)


if __name__ == "__main__":
    main()
