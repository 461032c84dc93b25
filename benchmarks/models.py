"""What each model learns here: test accuracy of plain federated training, one seed.

``python -m benchmarks.models [--only WORDS] [--data-dir DIR] [--out DIR] [--quick]`` trains every
model on its data set: IID clients, FedSGD, the mean of their messages, no attack. Each is a process
of its own, whose memory is its peak; ``models.json`` is written anew after each, and what is in it
already is not run again. The last lines are one round of ResNet-18 with 50 clients of 50 images
under attack, the size of the SignGuard paper's, which has to fit into 24 GB.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import jaxfl
from benchmarks.timing import Report, describe_machine, in_fresh_process, peak_bytes, save
from jaxfl import ALIE, SGD, FedSGD, Mean, NoAttack, SignGuard, simulate
from jaxfl.models import (
    CNN,
    MLP,
    Augmented,
    FLTrustCNN,
    Model,
    Objective,
    ResNet,
    SignGuardCNN,
    Softmax,
    TextRNN,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One model on one data set."""

    model: Model
    data: str
    rounds: int
    clients: int = 50
    batch: int = 50
    rate: float = 0.1
    attacked: bool = False
    """By ALIE of a fifth of the clients, against SignGuard."""


BATCH_NORM, GROUP_NORM = Augmented(model=ResNet()), Augmented(model=ResNet(norm="group"))
CASES = {
    "Softmax": Case(Softmax(), "mnist", 240),
    "MLP": Case(MLP(), "mnist", 240),
    "SignGuardCNN": Case(SignGuardCNN(), "mnist", 240),
    "SignGuardCNN, paper's head": Case(SignGuardCNN(hidden=(120,)), "fashion_mnist", 240),
    "FLTrustCNN": Case(FLTrustCNN(), "mnist", 240),
    "CNN": Case(CNN(), "cifar10", 480),
    "TextRNN": Case(TextRNN(), "ag_news", 240, batch=32, rate=0.5),
    "ResNet-18, BatchNorm": Case(BATCH_NORM, "cifar10", 100, clients=10, batch=32),
    "ResNet-18, GroupNorm": Case(GROUP_NORM, "cifar10", 100, clients=10, batch=32),
    "ResNet-18, BatchNorm, one round": Case(BATCH_NORM, "cifar10", 1, attacked=True),
    "ResNet-18, GroupNorm, one round": Case(GROUP_NORM, "cifar10", 1, attacked=True),
}
MANY = 8_192
"""Test samples that accuracy is measured on, at most."""


def learn(case: Case, data_dir: str | None) -> dict[str, Any]:
    """Accuracy in percent, seconds and bytes of one case."""
    dataset = getattr(jaxfl.data, case.data)(data_dir=data_dir)
    test = (dataset.test_inputs[:MANY], dataset.test_labels[:MANY])
    dataset = dataclasses.replace(dataset, test_inputs=test[0], test_labels=test[1])
    parts = dataset.split(jaxfl.data.IID(), case.clients)
    started = time.perf_counter()
    history = simulate(
        data=parts,
        model=case.model,
        algorithm=FedSGD(batch_size=case.batch),
        attack=ALIE() if case.attacked else NoAttack(),
        aggregator=SignGuard() if case.attacked else Mean(),
        optimizer=SGD(learning_rate=case.rate, momentum=0.9, weight_decay=5e-4),
        byzantine=case.clients // 5 if case.attacked else 0,
        rounds=case.rounds,
        evaluate_every=max(1, case.rounds // 10),
    )
    accuracy = np.asarray(history.accuracy)
    objective = Objective.of(case.model, parts.sample_shape, parts.classes)
    return {
        "data": case.data,
        "parameters": objective.dim,
        "clients": case.clients,
        "batch": case.batch,
        "rate": case.rate,
        "rounds": case.rounds,
        "attack": "ALIE, SignGuard" if case.attacked else "none",
        "accuracy": [round(100 * float(a), 2) for a in accuracy],
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(peak_bytes() / 2**30, 2),
        "largest_class": round(100 * float(np.bincount(test[1]).max() / len(test[1])), 2),
    }


def table(found: dict[str, dict[str, Any]]) -> Report:
    """What was found, one line a model."""
    header = ("model", "data", "parameters", "clients x batch", "rounds", "accuracy, %")
    report = Report("What each model learns", (*header, "largest class, %", "seconds", "peak GiB"))
    for name, line in found.items():
        size = f"{line['clients']} x {line['batch']}"
        told = f"{line['accuracy'][-1]:.1f}"
        report.rows.append(
            (
                name,
                line["data"],
                f"{line['parameters']:,}",
                size,
                str(line["rounds"]),
                told if line["rounds"] > 1 else "-",
                f"{line['largest_class']:.1f}",
                f"{line['seconds']:.0f}",
                f"{line['peak_gib']:.1f}",
            )
        )
    return report


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--data-dir", help="default: the environment's JAXFL_DATA_DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="two rounds of each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "models.json"
    record = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    record["machine"] = describe_machine()
    for name, case in CASES.items():
        if options.only not in name or name in record["models"]:
            continue
        case = dataclasses.replace(case, rounds=min(case.rounds, 2)) if options.quick else case
        record["models"][name] = in_fresh_process(learn, case, options.data_dir)
        save(path, record)
        print(name, record["models"][name]["accuracy"], flush=True)
    table(record["models"]).show(Console())


if __name__ == "__main__":
    main()
