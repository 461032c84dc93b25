"""The lines of a run's log: what was measured in each round, and what it has cost in privacy."""

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxfl.accounting import Meter, guarantee
from jaxfl.evaluation import Evaluation, named
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.log import Line
from jaxfl.experiments.results import HISTOGRAM
from jaxfl.federation import Federation
from jaxfl.record import RoundRecord

CLIENT_BINS = 20
"""Of equal width, in which clients are counted by accuracy."""


def lines_of(
    index: int,
    cell: Cell,
    done: int,
    record: RoundRecord,
    evaluation: Evaluation,
) -> list[Line]:
    """The log lines of one block of rounds after ``done``: one per run and round.

    The last round of the block carries the evaluation. Nothing in a line depends on when or how
    fast it was computed.
    """
    measured = {name: values for name, values in vars(record).items() if values is not None}
    columns = {name: np.atleast_2d(np.asarray(values)) for name, values in measured.items()}
    ends = {name: np.atleast_1d(value) for name, value in named(evaluation).items()}
    length = columns["loss"].shape[1]
    lines = []
    for run, (candidate, seed, number) in enumerate(cell.runs):
        for i in range(length):
            line: Line = {"cell": index, **cell.labels, "candidate": candidate, "seed": seed}
            line |= {} if cell.honesty is None else {"set": number}
            line["round"] = done + i + 1
            line |= {name: column[run, i].item() for name, column in columns.items()}
            if i == length - 1:
                line |= {name: value[run].item() for name, value in ends.items()}
            lines.append(line)
    return lines


def add_clients(lines: Sequence[Line], accuracy: np.ndarray, byzantine: np.ndarray) -> None:
    """Adds to the last line of every run how many honest clients have which accuracy.

    Args:
      lines: of the last block.
      accuracy: of every client, [runs, K]; those not finite are left out.
      byzantine: which clients are, [runs, K].
    """
    accuracy, byzantine = np.atleast_2d(accuracy), np.atleast_2d(byzantine)
    for run, (own, bad) in enumerate(zip(accuracy, byzantine, strict=True)):
        counts, _ = np.histogram(own[~bad & np.isfinite(own)], bins=CLIENT_BINS, range=(0, 1))
        _of_run(lines, run, len(accuracy))[-1][HISTOGRAM] = counts.tolist()


def add_privacy(lines: Sequence[Line], meters: Sequence[Meter]) -> None:
    """Adds to the lines of a block what each round has cost in privacy; one meter per run."""
    for run, meter in enumerate(meters):
        for line in _of_run(lines, run, len(meters)):
            line["epsilon"] = meter(line["round"], line["participations"])


def add_end(lines: Sequence[Line], params: np.ndarray) -> None:
    """Adds to the last line of every run the SHA-256 of its parameters, [runs, d]."""
    params = np.atleast_2d(params)
    for run, row in enumerate(params):
        digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
        _of_run(lines, run, len(params))[-1]["params_sha256"] = digest


def add_guarantee(
    lines: Sequence[Line], federations: Sequence[Federation], sizes: Sequence[np.ndarray]
) -> None:
    """Adds to the last line of every run what its mechanism guarantees, tightly accounted."""
    for run, (federation, own) in enumerate(zip(federations, sizes, strict=True)):
        line = _of_run(lines, run, len(federations))[-1]
        end = guarantee(federation, own, line["round"], participations=line["participations"])
        if end is not None:
            line["guaranteed_epsilon"] = end.epsilon
            line["guaranteed_delta"] = end.delta
            line["noise_multiplier"] = end.noise_multiplier


def _of_run(lines: Sequence[Line], run: int, runs: int) -> Sequence[Line]:
    length = len(lines) // runs
    return lines[run * length : (run + 1) * length]
