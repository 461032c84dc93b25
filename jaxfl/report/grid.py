"""Results in rows and columns, and in words."""

import math
from collections.abc import Iterable, Sequence

from jaxfl.experiments.labels import named
from jaxfl.experiments.results import DIVERGED, Result
from jaxfl.experiments.schema import Experiment


def pivot(
    experiment: Experiment, results: Sequence[Result]
) -> tuple[list[str], list[str], dict[tuple[str, str], Result]]:
    """Row names, column names, and (row, column) to result: attacks across, the rest down."""
    across = "attack" if "attack" in experiment.axes else None
    rows: list[str] = []
    columns: list[str] = []
    cells: dict[tuple[str, str], Result] = {}
    for result in results:
        labels = dict(result.cell.labels)
        column = labels.pop(across) if across else "accuracy"
        row = " / ".join(named(axis, value) for axis, value in labels.items()) or experiment.name
        rows += [row] if row not in rows else []
        columns += [column] if column not in columns else []
        cells[row, column] = result
    return rows, columns, cells


def in_percent(status: str, mean: float, deviation: float = math.nan) -> str:
    """A cell's accuracy, and how many of its runs diverged; what stands there where it has none."""
    if status == DIVERGED:
        return status
    if math.isnan(mean):
        return "n/a"
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * mean:.1f}{spread}" + (f", {status}" if status != "done" else "")


def worst(line: Iterable[tuple[str, str, float]]) -> str:
    """The lowest accuracy of a line, and where.

    Args:
      line: column, status and mean accuracy of each cell, 0 where it diverged.
    """
    known = [cell for cell in line if not math.isnan(cell[2])]
    if not known:
        return "-"
    column, status, mean = min(known, key=lambda cell: cell[2])
    return f"{in_percent(status, mean)}, {column}"
