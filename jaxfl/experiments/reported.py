"""What papers report, as data files, and ours beside it."""

import dataclasses
import math
import tomllib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np

from jaxfl.experiments.kept import Cell, Kept
from jaxfl.experiments.labels import place
from jaxfl.experiments.results import half_interval
from jaxfl.experiments.schema import packaged_file, read
from jaxfl.registry import unknown


def _success(cell: Cell) -> list[float]:
    """Of the runs that did not diverge: that a model is lost speaks for no defence."""
    both = zip(cell.success, cell.last, strict=True) if cell.success else ()
    return _known([success for success, last in both if math.isfinite(last)])


def _known(shares: Sequence[float]) -> list[float]:
    return [share for share in shares if math.isfinite(share)]


METRICS: dict[str, tuple[str, Callable[[Cell], Sequence[float] | np.ndarray]]] = {
    "best": ("best test accuracy", lambda cell: np.nan_to_num(cell.best)),
    "last": ("last test accuracy", lambda cell: cell.finals),
    "success": ("success of the backdoor", _success),
    "honest_selected": ("honest clients selected", lambda cell: _known([cell.honest_selected])),
    "malicious_selected": (
        "malicious clients selected",
        lambda cell: _known([cell.malicious_selected]),
    ),
}
"""What papers report, in words, and of a cell: a share for each seed, or for all of them; none
where nothing is known."""


@dataclasses.dataclass(frozen=True)
class Reported:
    """A paper's table: percent, by row and column, which are labels of cells."""

    source: str
    """Paper and table."""
    metric: str
    """A key of ``METRICS``."""
    scale: str
    """How long it was trained, and how often."""
    axes: tuple[str, str]
    """The axes of the grid that rows and columns name."""
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    """NaN where the paper says nothing."""
    rounds_an_epoch: float = math.nan
    """Of the experiment that has the paper's scale; NaN where that is not in epochs."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """A cell of ours beside the paper's number, in percent; NaN where no paper has one.

    A run that diverged counts 0, of a backdoor's success not at all.
    """

    row: str
    column: str
    ours: float
    """By the paper's metric."""
    last: float
    """Test accuracy after the last round."""
    status: str
    """Whether any of our runs had diverged then."""
    theirs: float
    difference: float
    """Ours less theirs."""
    within: bool | None
    """Whether the difference is within the 95 % interval of ours over seeds; None for one seed."""


def available() -> list[str]:
    """Names of the experiments for which a paper's numbers are at hand."""
    folder = resources.files("jaxfl.experiments") / "papers"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name[-5:] == ".toml")


def read_reported(name: str) -> list[Reported]:
    """The paper's tables for an experiment.

    Raises:
      ValueError: there are none.
    """
    if name not in available():
        raise ValueError(f"reported numbers: {unknown(name, available())}")
    file = resources.files("jaxfl.experiments") / "papers" / f"{name}.toml"
    rounds = read(packaged_file(name))["rounds"]
    return [_reported(table, rounds) for table in tomllib.loads(file.read_text())["tables"]]


def _reported(table: dict[str, Any], rounds: int) -> Reported:
    rows = {row: tuple(map(float, values)) for row, values in table["rows"].items()}
    axes, columns = tuple(table["axes"]), tuple(table["columns"])
    an_epoch = rounds / table.pop("epochs", math.nan)
    found = {"axes": axes, "columns": columns, "rows": rows, "rounds_an_epoch": an_epoch}
    return Reported(**table | found)


def compared(kept: Kept, reported: Reported) -> list[Compared]:
    """Every number of the paper with ours.

    Those that were not run are left out, and those that several cells of ours could stand for: a
    grid that goes over more than the paper's has no table of the paper's.
    """
    (down, across), (_, of) = reported.axes, METRICS[reported.metric]
    cells: dict[tuple[str | None, str | None], list[Cell]] = {}
    for cell in kept.cells:
        cells.setdefault((cell.labels.get(down), cell.labels.get(across)), []).append(cell)
    found = []
    for row, values in reported.rows.items():
        for column, theirs in zip(reported.columns, values, strict=True):
            ours = cells.get((row, column), [])
            known = len(ours) == 1 and ours[0].last and len(of(ours[0]))
            if known and not math.isnan(theirs):
                found.append(_beside(ours[0], row, column, theirs, reported.metric))
    return found


Pairs = list[tuple[Reported, list[Compared]]]
"""A paper's tables, each with the cells of ours that stand beside its numbers."""


def beside_papers(kept: Kept, experiment: str) -> Pairs:
    """The tables that papers report of an experiment and ours can stand beside."""
    tables = read_reported(experiment) if experiment in available() else []
    return [(reported, found) for reported in tables if (found := compared(kept, reported))]


def unpaired(kept: Kept, pairs: Pairs) -> Kept:
    """What is kept without the cells that stand beside a paper's numbers."""
    beside = [
        dict(zip(reported.axes, (cell.row, cell.column), strict=True)).items()
        for reported, found in pairs
        for cell in found
    ]
    left = [c for c in kept.cells if not any(labels <= c.labels.items() for labels in beside)]
    return dataclasses.replace(kept, cells=left)


def alone(kept: Kept) -> list[tuple[str, Compared]]:
    """Every number of ours by its metric, with nobody's beside it."""
    found = [
        (metric, _beside(cell, *place(cell.labels), math.nan, metric))
        for metric, (_, of) in METRICS.items()
        for cell in kept.cells
        if cell.last and len(of(cell))
    ]
    return [(metric, cell) for metric, cell in found if math.isfinite(cell.ours)]


def _beside(cell: Cell, row: str, column: str, theirs: float, metric: str) -> Compared:
    _, of = METRICS[metric]
    ours = 100 * np.asarray(of(cell), float)
    difference, half = float(np.mean(ours)) - theirs, half_interval(ours)
    within = None if math.isnan(half) or math.isnan(theirs) else abs(difference) <= half
    mean, last = float(np.mean(ours)), 100 * cell.final
    return Compared(row, column, mean, last, cell.status, theirs, difference, within)
