"""Result tables, for the terminal and as CSV."""

import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from jaxfl.experiments.runner import Result
from jaxfl.experiments.schema import Experiment


def pivot(experiment: Experiment, results: Sequence[Result]) -> tuple[list[str], list[str], dict]:
    """Row names, column names, and (row, column) to result: attacks across, the rest down."""
    across = "attack" if "attack" in experiment.axes else None
    rows: list[str] = []
    columns: list[str] = []
    cells: dict[tuple[str, str], Result] = {}
    for result in results:
        labels = dict(result.cell.labels)
        column = labels.pop(across) if across else "accuracy"
        row = " / ".join(labels.values()) or experiment.name
        rows += [row] if row not in rows else []
        columns += [column] if column not in columns else []
        cells[row, column] = result
    return rows, columns, cells


def result_table(experiment: Experiment, results: Sequence[Result]) -> Table:
    """Final test accuracy in percent, mean and standard deviation over seeds, and the worst."""
    rows, columns, cells = pivot(experiment, results)
    seeds = len(results[0].cell.seeds) if results else 0
    table = Table(
        title=experiment.title,
        caption=f"Test accuracy in % after the last round; mean ± deviation over {seeds} seed(s).",
    )
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    if len(columns) > 1:
        table.add_column("worst", justify="right", style="bold")
    for row in rows:
        entries = [cells.get((row, column)) for column in columns]
        finals = [e.final for e in entries if e is not None and np.isfinite(e.final)]
        worst = [_coloured(min(finals)) if finals else "-"] if len(columns) > 1 else []
        table.add_row(row, *(_entry(e) for e in entries), *worst)
    return table


def _entry(result: Result | None) -> str:
    if result is None:
        return ""
    if result.status == "diverged":
        return "[red]diverged[/red]"
    if result.status != "done":
        return "n/a"
    return f"{_coloured(result.final)} ± {result.spread * 100:.1f}"


def _coloured(accuracy: float) -> str:
    colour = "green" if accuracy >= 0.8 else "yellow" if accuracy >= 0.5 else "red"
    return f"[{colour}]{accuracy * 100:.1f}[/{colour}]"


def write_summary(path: Path, experiment: Experiment, results: Sequence[Result]) -> None:
    """One line per cell as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *experiment.axes,
            *("status", "final_accuracy", "deviation", "best_accuracy"),
            *("honest_selected", "malicious_selected", "seeds", "rounds", "seconds"),
        ]
    )
    for result in results:
        numbers = (result.final, result.spread, result.best)
        rates = (result.honest_selected, result.malicious_selected)
        writer.writerow(
            [
                *(result.cell.labels[axis] for axis in experiment.axes),
                result.status,
                *(f"{x:.9g}" for x in (*numbers, *rates)),
                len(result.cell.seeds),
                result.cell.rounds,
                f"{result.seconds:.2f}",
            ]
        )
    write_aside(path, text.getvalue().encode())


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: aside first, then renamed over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
