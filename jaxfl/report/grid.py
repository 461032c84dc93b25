"""Results in rows and columns, and in words."""

import math
from collections.abc import Iterable, Mapping, Sequence

from jaxfl.experiments.labels import place
from jaxfl.experiments.results import DIVERGED, Result
from jaxfl.experiments.schema import Experiment


def pivot(
    experiment: Experiment, results: Sequence[Result]
) -> tuple[list[str], list[str], dict[tuple[str, str], Result]]:
    """Row names, column names, and (row, column) to result: attacks across, the rest down."""
    cells = {place(result.cell.labels, experiment.name): result for result in results}
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    return rows, columns, cells


def lines_of(
    cells: Iterable[tuple[Mapping[str, str], str]], nameless: str = "-", across: str = "attack"
) -> list[list[str]]:
    """Texts of cells, at least one, by their labels, as a table, header first; "-" for no cell."""
    texts = {place(labels, nameless, across): text for labels, text in cells}
    down, columns = (list(dict.fromkeys(names)) for names in zip(*texts, strict=True))
    lines = [[row, *(texts.get((row, column), "-") for column in columns)] for row in down]
    return [["", *columns], *lines]


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
