"""The tasks of ``benchmarks.training``: what everybody trains, and how ours is put together."""

import dataclasses
from typing import Any

from benchmarks.cases import both_passes
from jaxfl import (
    ALIE,
    SGD,
    FedAvg,
    Federation,
    FedSGD,
    Krum,
    Mean,
    MinMax,
    NoAttack,
    TrimmedMean,
)
from jaxfl.data import Dataset, mnist
from jaxfl.data.loaders import SOURCES
from jaxfl.models import CNN, MLP, Model, Softmax
from jaxfl.participation import Full, Uniform

ATTACKS = {"alie": "ALIE", "min_max": "Min-Max", "none": "no attack"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What everybody trains."""

    model: str
    rounds: int
    clients: int
    cohort: int
    batch: int
    rate: float
    rivals: tuple[str, ...]
    byzantine: int = 0
    momentum: float = 0.0
    rule: str = "mean"
    attacks: tuple[str, ...] = ("none",)
    flower_rounds: int = 5
    attack: str = "none"
    """Of ``attacks``, the one under which it is run."""

    @property
    def images(self) -> int:
        """Of all clients in a round: a batch each, or all that a client has."""
        own = self.batch if self.byzantine else load(self).labels.size // self.clients
        return self.cohort * own

    def for_rival(self, way: str) -> "Task":
        """With as many rounds as the rival is given."""
        rounds = self.flower_rounds if way == "flower" else self.rounds
        return dataclasses.replace(self, rounds=min(rounds, self.rounds))


BYZANTINE: dict[str, Any] = {
    "model": "mlp",
    "rounds": 50,
    "clients": 100,
    "cohort": 100,
    "batch": 32,
    "rate": 0.1,
    "rivals": ("byzfl", "flower"),
    "byzantine": 20,
    "momentum": 0.9,
}
TASKS = {
    "fedavg-lr": Task("lr", 100, 100, 100, 32, 0.05, ("loop", "flower")),
    "fedavg-mlp": Task("mlp", 100, 100, 100, 32, 0.05, ("loop", "flower")),
    "trimmed-mean": Task(**BYZANTINE, rule="trimmed_mean", attacks=tuple(ATTACKS)),
    "krum": Task(**BYZANTINE, rule="krum", attacks=("min_max", "none")),
    "cnn": Task("cnn", 30, 1000, 50, 10, 0.05, ("loop", "flower"), flower_rounds=5),
}
MODELS: dict[str, Model] = {
    "lr": Softmax(),
    "mlp": MLP(hidden=(100,)),
    "cnn": CNN(channels=(32, 64, 128)),
}


def operations(model: str) -> int:
    """Of one image forward and backward; the first layer needs no gradient of its input."""
    convolutions = [32 * 32 * 9 * 3 * 32, 16 * 16 * 9 * 32 * 64, 8 * 8 * 9 * 64 * 128]
    layers = {
        "lr": [784 * 10],
        "mlp": [784 * 100, 100 * 10],
        "cnn": [*convolutions, 2048 * 10],
    }[model]
    return both_passes(layers)


def load(task: Task) -> Dataset:
    return SOURCES["cifar10"]() if task.model == "cnn" else mnist()


def federation(task: Task) -> Federation:
    optimizer = SGD(learning_rate=1.0)
    if task.byzantine:
        attack = {"alie": ALIE(z=1.5, sign=1), "min_max": MinMax(), "none": NoAttack()}[task.attack]
        return Federation(
            algorithm=FedSGD(batch_size=task.batch, momentum=task.momentum),
            aggregator={"trimmed_mean": TrimmedMean, "krum": Krum}[task.rule](f=task.byzantine),
            attack=attack,
            byzantine=0 if task.attack == "none" else task.byzantine,
            optimizer=SGD(learning_rate=task.rate),
        )
    whole = task.cohort == task.clients
    return Federation(
        algorithm=FedAvg(batch_size=task.batch, epochs=1, optimizer=SGD(learning_rate=task.rate)),
        aggregator=Mean(),
        participation=Full() if whole else Uniform(fraction=task.cohort / task.clients),
        optimizer=optimizer,
    )
