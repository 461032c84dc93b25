"""What the simulator learns: test accuracy on MNIST, clean and under attack, over several seeds.

The SignGuard CNN (dropout 0.5) is trained by 50 clients with IID shares of MNIST. Each sends the
gradient of a batch of 50 (FedSGD); the server takes a step of SGD with rate 0.1, momentum 0.9 and
weight decay 5e-4. 240 rounds are 10 epochs; the model is evaluated every 24. Under attack 10 of
the 50 clients are Byzantine and send -10 times the mean of the honest gradients (IPM, scale 10).

The seeds of a row run in one program, each with its own partition, parameters, Byzantine clients
and batches. Expected: the mean reaches 97 % clean and stays below 30 % under attack;
nearest-neighbour mixing before a trimmed mean stays within 5 points of its own clean accuracy.

``python -m benchmarks.learning [--data-dir DIR] [--out DIR] [--seeds 3]`` writes ``learning.csv``,
``learning.md`` and ``learning.png``, anew after every row, so that a run cut short leaves a part.
"""

import argparse
import csv
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxfl.aggregators import Aggregator, Krum, Mean, Median, Pipeline, TrimmedMean
from jaxfl.attacks import IPM, NoAttack
from jaxfl.clients import FedSGD
from jaxfl.data import IID, Dataset, mnist
from jaxfl.federation import Federation
from jaxfl.files import write_aside
from jaxfl.models import SignGuardCNN
from jaxfl.optimizers import SGD
from jaxfl.preaggregators import NNM
from jaxfl.simulation import Simulation

mpl.use("Agg")
from matplotlib import pyplot as plt

CLIENTS, BYZANTINE, BATCH = 50, 10, 50


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    rule: str
    aggregator: Aggregator
    attacked: bool

    @property
    def label(self) -> str:
        """What the legend says."""
        return f"{self.rule}, {'IPM' if self.attacked else 'no attack'}"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Test accuracy of every seed at every evaluation."""

    case: Case
    rounds: np.ndarray
    accuracy: np.ndarray
    """Seeds by evaluations."""
    seconds: float

    @property
    def final(self) -> np.ndarray:
        """Accuracy of every seed after the last round, in percent."""
        return 100 * self.accuracy[:, -1]


def cases() -> list[Case]:
    mixing = Pipeline(pre=(NNM(f=BYZANTINE),), rule=TrimmedMean(f=BYZANTINE))
    return [
        Case("Mean", Mean(), attacked=False),
        Case("NNM + trimmed mean", mixing, attacked=False),
        Case("Mean", Mean(), attacked=True),
        Case("NNM + trimmed mean", mixing, attacked=True),
        Case("Median", Median(), attacked=True),
        Case("Krum", Krum(f=BYZANTINE), attacked=True),
    ]


def train(case: Case, dataset: Dataset, seeds: int, rounds: int, every: int) -> Curve:
    federation = Federation(
        algorithm=FedSGD(batch_size=BATCH),
        attack=IPM(scale=10.0) if case.attacked else NoAttack(),
        aggregator=case.aggregator,
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        byzantine=BYZANTINE if case.attacked else 0,
    )
    partitions = [dataset.split(IID(), CLIENTS, seed) for seed in range(seeds)]
    start = time.perf_counter()
    simulation = Simulation(
        federation, partitions, SignGuardCNN(), seeds=range(seeds), evaluate_every=every
    )
    history = simulation.run(rounds)
    accuracy = np.atleast_2d(history.accuracy)
    steps = np.atleast_2d(history.rounds)[0]
    return Curve(case, steps, accuracy, time.perf_counter() - start)


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "attack", "seed", "round", "test_accuracy"])
        for curve in curves:
            attack = "IPM(scale=10)" if curve.case.attacked else "none"
            for seed, values in enumerate(curve.accuracy):
                for step, value in zip(curve.rounds, values, strict=True):
                    writer.writerow([curve.case.rule, attack, seed, int(step), f"{value:.4f}"])


def rows(curves: Sequence[Curve]) -> list[tuple[str, ...]]:
    clean = {c.case.rule: c.final.mean() for c in curves if not c.case.attacked}
    result = []
    for curve in curves:
        final, rule = curve.final, curve.case.rule
        known = curve.case.attacked and rule in clean
        result.append(
            (
                rule,
                "IPM(scale=10), 10 of 50" if curve.case.attacked else "none",
                f"{final.mean():.2f}",
                f"{final.std(ddof=1):.2f}" if len(final) > 1 else "-",
                f"{final.min():.2f} to {final.max():.2f}",
                f"{final.mean() - clean[rule]:+.2f}" if known else "-",
                f"{curve.seconds:.0f}",
            )
        )
    return result


HEADER = (
    "rule",
    "attack",
    "test accuracy, %",
    "std over seeds",
    "range",
    "points from its own clean",
    "seconds, all seeds",
)


def write_markdown(curves: Sequence[Curve], path: Path) -> None:
    seeds, last = len(curves[0].accuracy), int(curves[0].rounds[-1])
    lines = [
        f"MNIST, SignGuard CNN, {CLIENTS} IID clients, FedSGD batch {BATCH}, "
        f"SGD(0.1, momentum 0.9, weight decay 5e-4), {last} rounds, {seeds} seeds.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + " --- |" * len(HEADER),
        *("| " + " | ".join(row) + " |" for row in rows(curves)),
    ]
    write_aside(path, ("\n".join(lines) + "\n").encode())


def show(curves: Sequence[Curve], console: Console) -> None:
    table = Table(*HEADER, title="MNIST test accuracy")
    for row in rows(curves):
        table.add_row(*row)
    console.print(table)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Mean over seeds as a line, smallest to largest as a band; dashed without attack."""
    rules = list(dict.fromkeys(case.rule for case in cases()))
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    for curve in curves:
        values, colour = 100 * curve.accuracy, f"C{rules.index(curve.case.rule)}"
        style = "-" if curve.case.attacked else "--"
        label = curve.case.label
        axes.plot(curve.rounds, values.mean(axis=0), style, color=colour, label=label)
        axes.fill_between(curve.rounds, values.min(0), values.max(0), color=colour, alpha=0.15)
    axes.set(xlabel="Round", ylabel="Test accuracy (%)", ylim=(0, 100), xlim=(0, None))
    axes.set_title(f"MNIST, {CLIENTS} clients; IPM (scale 10) by {BYZANTINE} of them", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Test accuracy on MNIST, clean and attacked.")
    parser.add_argument(
        "--data-dir", help="holds mnist/; default: the environment's JAXFL_DATA_DIR"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=240)
    parser.add_argument("--evaluate-every", type=int, default=24)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console, curves = Console(), []
    dataset = mnist(arguments.data_dir)
    for case in cases():
        settings = (arguments.seeds, arguments.rounds, arguments.evaluate_every)
        curves.append(train(case, dataset, *settings))
        accuracy = ", ".join(f"{value:.2f}" for value in curves[-1].final)
        console.print(f"{case.label}: {accuracy} % after {curves[-1].seconds:.0f} s")
        write_csv(curves, arguments.out / "learning.csv")
        write_markdown(curves, arguments.out / "learning.md")
        draw(curves, arguments.out / "learning.png")
    show(curves, console)


if __name__ == "__main__":
    main()
