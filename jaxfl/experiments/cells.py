"""One cell of an experiment: parts that can be run, on data that can be read."""

import dataclasses
from typing import Any

import jax

from jaxfl.data import SOURCES, Dataset, FederatedData, Partition, RareData, RootData
from jaxfl.devices import Device
from jaxfl.experiments.honesty import Honesty
from jaxfl.federation import Federation
from jaxfl.models import Model
from jaxfl.plan import AUTOMATIC


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of a grid."""

    labels: dict[str, str]
    """Axis of the sweep to this cell's value on it."""
    federations: tuple[Federation, ...]
    """One per candidate of ``tune``, or of several cells that are one program."""
    model: Model
    data: tuple[str, dict[str, Any]]
    clients: int
    partition: Partition
    root: RootData | None
    """The server's own samples."""
    rare: RareData | None
    """Samples that only attackers have."""
    client_test: float
    """Share of its samples that each client holds out, to be tested on."""
    rounds: int
    evaluate_every: int
    checkpoint_every: int
    validation: float
    """Share of the training samples held out for choosing."""
    seeds: tuple[int, ...]
    honesty: Honesty | None
    """Who is honest, by a law; None: the seed decides."""
    client_chunk: int | None
    devices: int | str
    """How many devices the clients are mapped over; ``all``; ``auto``: see ``placed``."""
    way: str
    """How: see ``jaxfl.devices``."""
    storage: str
    """Of a round's updates: see ``jaxfl.make_plan``."""
    signs: bool
    """Whether the signs of what was sent are counted in every round."""
    client_accuracy: bool
    """Whether clients' accuracies are measured: wherever clients hold out samples or fairness
    weighs them."""

    @property
    def federation(self) -> Federation:
        """The first candidate with the most attackers: all have its parts."""
        return max(self.federations, key=lambda candidate: candidate.byzantine)

    @property
    def draws(self) -> list[tuple[int, int]]:
        """Seed, and number of the honest set, of every run of one candidate."""
        sets = 1 if self.honesty is None else self.honesty.sets
        return [(seed, number) for seed in self.seeds for number in range(sets)]

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """Candidate, seed and honest set of every run of the cell's one program."""
        return [(c, *draw) for c in range(len(self.federations)) for draw in self.draws]

    @property
    def placed(self) -> list[Device] | None:
        """The devices; None for the first alone, where nothing needs to be placed.

        ``auto`` is one, or for a model that convolves and a CPU as many as there are: on a core
        of its own each client's arithmetic pays for taking messages apart and together again.

        Raises:
          ValueError: there are not as many.
        """
        there = jax.devices()
        wanted = self.devices
        if jax.process_count() > 1:
            if wanted not in (AUTOMATIC, "all", len(there)) or self.way != "shard_map":
                raise ValueError(
                    "several processes share the clients over all devices by shard_map; got "
                    f"devices = {wanted!r}, way = {self.way!r}"
                )
            return there
        if wanted == AUTOMATIC:
            alone = not self.model.convolves or there[0].platform != "cpu"
            cohort = self.federation.participation.cohort(self.clients)
            wanted = 1 if alone else min(len(there), cohort)
        if isinstance(wanted, str):
            wanted = len(there)
        if wanted > len(there):
            raise ValueError(
                f"devices must be at most {len(there)}, as many as JAX has; got {wanted}"
            )
        return there[:wanted] if wanted > 1 else None

    def load(self) -> Dataset:
        """The data set, read from where it lies."""
        name, arguments = self.data
        dataset = SOURCES[name](**arguments)
        dataset = dataset if self.rare is None else dataset.set_apart(self.rare)
        return dataset.hold_out(self.validation) if self.validation else dataset

    def divide(self, dataset: Dataset) -> list[FederatedData]:
        """The data divided anew for every seed."""
        return [
            dataset.split(
                self.partition, self.clients, seed, root=self.root, client_test=self.client_test
            )
            for seed in self.seeds
        ]


class Datasets:
    """The data sets of cells; each is read once."""

    def __init__(self) -> None:
        self._known: dict[Any, Dataset] = {}

    def of(self, cell: Cell) -> Dataset:
        """That of a cell, as ``Cell.load`` reads it."""
        key = (repr(cell.data), cell.rare, cell.validation)
        if key not in self._known:
            self._known[key] = cell.load()
        return self._known[key]
