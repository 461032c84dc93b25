"""Rounds and evaluations of CNNs, beside those of another version of jaxfl.

50 clients, batches of random images, Mean; on one device and on a device per core. Every version
and number of devices runs in processes of its own, all in turn; the best of them counts, compiling
does not.

``python -m benchmarks.convolutions [--before CHECKOUT] [--turns N] [--out DIR]`` prints the table
and writes ``convolutions.json`` and ``convolutions.md``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxfl import SGD, Federation, FedSGD, Mean, Simulation
from jaxfl.data import IID, from_arrays
from jaxfl.models import CNN, FLTrustCNN, Model, SignGuardCNN

CLIENTS, ROUNDS, TESTED = 50, 3, 2000
CASES: dict[str, tuple[Model, int, tuple[int, int, int]]] = {
    "SignGuardCNN, 28 x 28 grey": (SignGuardCNN(dropout=0.0), 50, (28, 28, 1)),
    "FLTrustCNN, 28 x 28 grey": (FLTrustCNN(), 32, (28, 28, 1)),
    "CNN 32-64-128, 32 x 32 colour": (CNN(channels=(32, 64, 128)), 10, (32, 32, 3)),
}
"""Model, images of a client's batch, shape of an image."""


def measure(devices: int) -> dict[str, list[float]]:
    """Of each case, seconds of a round and of one test image, in this process."""
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    found = {}
    for name, (model, batch, shape) in CASES.items():
        random = np.random.default_rng(0)
        inputs = random.integers(0, 256, (max(CLIENTS * batch, TESTED), *shape), dtype=np.uint8)
        labels = (np.arange(len(inputs)) % 10).astype(np.int32)
        dataset = from_arrays(inputs, labels, inputs[:TESTED], labels[:TESTED])
        parts = Federation(
            algorithm=FedSGD(batch_size=batch), aggregator=Mean(), optimizer=SGD(learning_rate=0.1)
        )
        on = jax.devices() if devices > 1 else None
        data = dataset.split(IID(), CLIENTS)
        simulation = Simulation(parts, data, model, evaluate_every=ROUNDS, devices=on)
        block = simulation.block(ROUNDS)

        def rounds(simulation: Simulation = simulation, block: Any = block) -> None:
            simulation.state, _ = block(simulation.federation, simulation.data, simulation.state)
            jax.block_until_ready(simulation.state.params)

        def evaluation(simulation: Simulation = simulation) -> None:
            jax.block_until_ready(simulation.evaluate())

        found[name] = [_best(rounds) / ROUNDS, _best(evaluation) / TESTED]
    return found


def _best(call: Any) -> float:
    call()
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def in_turn(
    versions: dict[str, Path], counts: list[int], turns: int
) -> dict[tuple[str, int], dict[str, list[float]]]:
    """The best of each version and number of devices."""
    best: dict[tuple[str, int], dict[str, list[float]]] = {}
    for _ in range(turns):
        for version, checkout in versions.items():
            for devices in counts:
                # -P: of this file's folder nothing is imported, all is the version's own.
                words = [sys.executable, "-P", str(Path(__file__).resolve()), "--one", str(devices)]
                environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
                done = subprocess.run(
                    words, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                known = best.setdefault((version, devices), found)
                for name, seconds in found.items():
                    known[name] = [min(a, b) for a, b in zip(known[name], seconds, strict=True)]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--before", type=Path, help="folder of another version's checkout")
    parser.add_argument("--turns", type=int, default=2, help="processes of each kind")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)), flush=True)
        return
    # Not above: what ``--one`` measures may be a version whose benchmarks are others.
    from benchmarks import timing

    machine = timing.describe_machine()
    versions = {"now": Path(__file__).parents[1]}
    if options.before:
        versions = {"before": options.before} | versions
    counts = sorted({1, timing.cores()})
    best = in_turn(versions, counts, options.turns)
    header = ["model", "devices", *(f"{v}: ms a round" for v in versions)]
    header += [f"{v}: us a test image" for v in versions]
    report = timing.Report(f"Rounds of {CLIENTS} clients, and evaluations", tuple(header))
    for name in CASES:
        for devices in counts:
            seconds = [best[version, devices][name] for version in versions]
            row = [f"{1e3 * a:.0f}" for a, _ in seconds] + [f"{1e6 * b:.0f}" for _, b in seconds]
            report.rows.append((name, str(devices), *row))
    report.show(Console(width=140))
    timing.write(options.out, "convolutions", machine, [report])


if __name__ == "__main__":
    main()
