"""Speed of a round of adapters: 50 clients with 16 texts each, beside the machine's ceiling.

A round is: draw batches, every client's gradient of its adapters and head (the small transformer,
8,192 words, texts of 64 words, rank 8, the base held once), the attack, the rule, the server's
step and the round's record; the test set is not evaluated. Texts are drawn at random, all of full
length, and the base is not trained: neither changes the work. Several rounds are one compiled
``scan``; the time is the best of several, without compilation, which is beside it. The floor is
the operations of all forward and backward passes at the rate of a large float32 matrix product in
the same run. Rows with an attack have 10 attackers: what ``benchmarks.attacks`` cannot time on
images, the gauge of adapters and a backdoor in texts.

``python -m benchmarks.adapters [--quick] [--out DIR]`` prints the table and writes
``adapters.json`` and ``adapters.md``.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from benchmarks import timing
from benchmarks.cases import BYZANTINE, rounds_of
from benchmarks.timing import Report
from jaxfl.aggregators import Aggregator, Mean, MultiKrum, ProductSpace
from jaxfl.attacks import Attack, Gauge, Neurotoxin, NoAttack, TokenBackdoor
from jaxfl.clients import FedSGD
from jaxfl.data import IID, FederatedData, from_arrays
from jaxfl.federation import Federation
from jaxfl.models import LoRA, Transformer
from jaxfl.optimizers import SGD
from jaxfl.plan import make_plan

CLIENTS, TEXTS, LENGTH, CLASSES = 50, 16, 64, 4
MODEL = Transformer()
ADAPTED = LoRA(model=MODEL)
WORD = TokenBackdoor(tokens=(MODEL.vocabulary - 1,))
CASES: dict[str, tuple[Attack, Aggregator]] = {
    "Mean": (NoAttack(), Mean()),
    "MultiKrum": (NoAttack(), MultiKrum(f=BYZANTINE)),
    "ProductSpace(Mean)": (NoAttack(), ProductSpace()),
    "ProductSpace(MultiKrum)": (NoAttack(), ProductSpace(rule=MultiKrum(f=BYZANTINE))),
    "Gauge, Mean": (Gauge(), Mean()),
    "TokenBackdoor, Mean": (WORD, Mean()),
    "Neurotoxin with TokenBackdoor, Mean": (Neurotoxin(attack=WORD), Mean()),
}
WANTED = 2.0
"""Seconds that a round may take on two cores."""


def texts() -> FederatedData:
    """Texts of random words, in four classes."""
    random = np.random.default_rng(0)
    words = random.integers(2, MODEL.vocabulary, (4 * CLIENTS * TEXTS, LENGTH)).astype(np.int32)
    labels = np.arange(len(words)) % CLASSES
    return from_arrays(words, labels, words[:4], labels[:4]).split(IID(), CLIENTS)


def operations() -> int:
    """Of one text forward and backward.

    Frozen kernels have no gradient of their own, so their products come twice, not three times;
    attention and adapters come three times. The first block's input needs no gradient.
    """
    d, r, layers = MODEL.width, ADAPTED.rank, MODEL.layers
    dense = 4 * d**2 + 2 * d * MODEL.hidden
    attention = 2 * LENGTH * d
    adapters = r * (d + 3 * d) + r * (d + d)
    word = layers * (2 * dense + 3 * (attention + adapters)) - 3 * d**2
    return 2 * (LENGTH * word + 3 * d * CLASSES)


def measure(console: Console, quick: bool) -> Report:
    """Seconds of a round for each case."""
    data, rounds = texts(), 1 if quick else 3
    runs = {}
    for name, (attack, rule) in CASES.items():
        console.print(f"{name} ...")
        parts = Federation(
            algorithm=FedSGD(batch_size=TEXTS),
            attack=attack,
            aggregator=rule,
            optimizer=SGD(learning_rate=1.0),
            byzantine=0 if isinstance(attack, NoAttack) else BYZANTINE,
        )
        plan = make_plan(parts, data, ADAPTED)
        runs[name] = rounds_of(parts, plan, data, rounds, devices=jax.device_count())
    times = timing.interleaved(runs, 1 if quick else 7)
    needed, rate = CLIENTS * TEXTS * operations(), timing.gemm_rate(5)
    floor = needed / rate
    report = Report(
        f"A round of adapters: {CLIENTS} clients x {TEXTS} texts; {needed / 1e9:.1f} GFLOP take "
        f"{floor:.2f} s at {rate / 1e9:.0f} GFLOP/s; wanted below {WANTED:g} s on two cores",
        ("rule", "s a round", "median", "times the floor", "compile s"),
    )
    for name, whole in times.items():
        one = whole.per(rounds)
        report.rows.append(
            (
                name,
                f"{one.best:.2f}",
                f"{one.median:.2f}",
                f"{one.best / floor:.1f}",
                f"{whole.first - whole.best:.1f}",
            )
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of a round of adapters.")
    parser.add_argument("--quick", action="store_true", help="one repeat of one round")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    console = Console()
    timing.a_device_per_core()
    machine = timing.describe_machine()
    report = measure(console, arguments.quick)
    report.show(console)
    timing.write(arguments.out, "adapters", machine, [report])


if __name__ == "__main__":
    main()
