"""Results in rows and columns."""

from collections.abc import Sequence

from jaxfl.experiments.labels import named
from jaxfl.experiments.results import Result
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
