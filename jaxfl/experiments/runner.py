"""Runs the cells of an experiment one after another, all seeds of a cell in one program."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from jaxfl.data import Dataset
from jaxfl.experiments.schema import Cell, Experiment
from jaxfl.simulation import Evaluation, Simulation

Tick = Callable[[int, Evaluation], None]
"""Called after every block with the number of rounds done and the evaluation."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of one cell."""

    cell: Cell
    status: str
    """"done", "diverged", or why the cell does not apply."""
    rounds: np.ndarray
    """Rounds after which the model was evaluated, [e]."""
    accuracy: np.ndarray
    """Test accuracy, [seeds, e]."""
    honest_selected: float
    malicious_selected: float
    seconds: float

    @property
    def final(self) -> float:
        """Accuracy after the last round, mean over seeds; NaN where the cell did not run."""
        return float(self.accuracy[:, -1].mean()) if self.accuracy.size else float("nan")

    @property
    def best(self) -> float:
        """Best accuracy over the run, mean over seeds."""
        return float(self.accuracy.max(axis=1).mean()) if self.accuracy.size else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation of the final accuracy over seeds; 0 for one seed."""
        if not self.accuracy.size:
            return float("nan")
        return float(self.accuracy[:, -1].std(ddof=1)) if len(self.accuracy) > 1 else 0.0


def not_applicable(cell: Cell) -> str | None:
    """Why a rule is not defined for this cell, or None."""
    cohort = cell.federation.participation.cohort(cell.clients)
    try:
        cell.federation.aggregator.check(cohort)
    except ValueError as error:
        return str(error)
    return None


def check(experiment: Experiment) -> None:
    """Refuses an experiment none of whose cells can run.

    Raises:
      ValueError: with the first cell's reason.
    """
    reasons = [not_applicable(cell) for cell in experiment.cells]
    if all(reasons):
        raise ValueError(reasons[0])


def run_experiment(experiment: Experiment, watch: Callable[[Cell], Tick]) -> Iterator[Result]:
    """Runs every cell; ``watch`` is told of each and gives what follows its progress.

    Raises:
      ValueError: data are missing or damaged, or parts do not fit together.
    """
    check(experiment)
    datasets: dict[str, Dataset] = {}
    for cell in experiment.cells:
        reason = not_applicable(cell)
        if reason is not None:
            empty = np.zeros((len(cell.seeds), 0))
            yield Result(cell, reason, np.zeros(0), empty, float("nan"), float("nan"), 0.0)
            continue
        key = repr(cell.data)
        if key not in datasets:
            datasets[key] = cell.load()
        yield _run_cell(cell, datasets[key], watch(cell))


def _run_cell(cell: Cell, dataset: Dataset, tick: Tick) -> Result:
    started = time.perf_counter()
    parts = cell.divide(dataset)
    simulation = Simulation(
        cell.federation,
        parts,
        cell.model,
        seeds=cell.seeds,
        evaluate_every=cell.evaluate_every,
        client_chunk=cell.client_chunk,
    )
    history = simulation.run(
        cell.rounds, lambda evaluation, _: tick(int(np.max(evaluation.round)), evaluation)
    )
    return Result(
        cell=cell,
        status="diverged" if history.diverged else "done",
        rounds=np.atleast_2d(history.rounds)[0],
        accuracy=np.atleast_2d(history.accuracy),
        honest_selected=_mean(history.records.honest_selected),
        malicious_selected=_mean(history.records.malicious_selected),
        seconds=time.perf_counter() - started,
    )


def _mean(values: object) -> float:
    finite = np.asarray(values)[np.isfinite(np.asarray(values))]
    return float(finite.mean()) if finite.size else float("nan")
