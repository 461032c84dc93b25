"""``jaxfl reproduce``: a paper's table, ours beside it."""

import csv
import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jaxfl
from jaxfl.commands.common import Reduced, say
from jaxfl.commands.run import execute
from jaxfl.experiments import schema
from jaxfl.experiments.kept import Kept, keep, read_kept
from jaxfl.experiments.reported import METRICS, Compared, Reported, compared, read_reported
from jaxfl.files import write_aside

FAR = 5.0
"""Points from which a difference asks for a reason."""


def reproduce(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="One with reported numbers.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of kept results; default results.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    write: Annotated[Path | None, typer.Option(help="The comparison as CSV.")] = None,
    reduced: Reduced = False,
) -> None:
    """Show a paper's table beside ours: from kept results, or by running what is missing.

    A run that stopped goes on. What has run is kept in the folder of results.
    """
    tables = read_reported(name)
    console = Console(width=None if sys.stdout.isatty() else 160)
    full = f"{name}_reduced" if reduced else name
    known = [folder / full for folder in _folders(results)]
    at = next((path for path in known if (path / "cells.jsonl").is_file()), None)
    if at is None:
        experiment = schema.load(name, [], reduced=reduced)
        path = out or Path("runs") / full
        execute(experiment, path, console, resume=True)
        at = known[0]
        keep(path, at)
        say(console, f"Kept: {at}")
    kept = read_kept(at)
    pairs = [(reported, compared(kept, reported)) for reported in tables]
    pairs = [(reported, found) for reported, found in pairs if found]
    if not pairs:
        raise ValueError(f"{at} has no cell of the table that is reported")
    for reported, found in pairs:
        console.print(beside(reported, kept, found))
        for line in verdict(reported, kept, found):
            say(console, line)
    if write is not None:
        as_csv(write, pairs)


def _folders(results: Path | None) -> list[Path]:
    """Where kept results may lie: as asked, here, or in the repository of this installation."""
    if results is not None:
        return [results]
    return [Path("results"), Path(jaxfl.__file__).parent.parent / "results"]


def beside(reported: Reported, kept: Kept, found: list[Compared]) -> Table:
    """Ours and, in brackets, theirs; what differs by ``FAR`` points or more is red."""
    table = Table(
        title=f"{escape(kept.table.get('title', ''))}\nours (theirs: {escape(reported.source)})"
    )
    table.add_column(reported.axes[0])
    columns = [column for column in reported.columns if any(c.column == column for c in found)]
    for column in columns:
        table.add_column(escape(column), justify="right")
    cells = {(c.row, c.column): c for c in found}
    for row in dict.fromkeys(c.row for c in found):
        texts = [escape(row)]
        for column in columns:
            cell = cells.get((row, column))
            if cell is None:
                texts.append("-")
                continue
            text = f"{cell.ours:.1f} ({cell.theirs:.1f})"
            texts.append(f"[red]{text}[/red]" if is_far(cell) else text)
        table.add_row(*texts)
    return table


def verdict(reported: Reported, kept: Kept, found: list[Compared]) -> list[str]:
    """How near ours are to theirs, in words."""
    seeds = max(len(cell.seeds) for cell in kept.cells)
    ours = f"{kept.table.get('rounds')} rounds, {seeds} seed{'s' if seeds > 1 else ''}"
    metric, _ = METRICS[reported.metric]
    lines = [f"{metric} in %; ours: {ours}; theirs: {reported.scale}"]
    near = sum(abs(c.difference) <= 1 for c in found)
    far = sum(map(is_far, found))
    lines.append(
        f"{len(found)} cells: {near} within 1 point, {len(found) - near - far} within "
        f"{FAR:g}, {far} farther"
    )
    spread = [c.within for c in found if c.within is not None]
    if spread:
        lines.append(f"{sum(spread)} of {len(spread)} within the 95 % interval of our seeds")
    return lines


def is_far(cell: Compared) -> bool:
    """Whether the difference asks for a reason; that of a run that diverged does."""
    return not abs(cell.difference) < FAR


def as_csv(path: Path, pairs: list[tuple[Reported, list[Compared]]]) -> None:
    """Writes every cell: ours by the paper's metric, our last accuracy, theirs, the difference."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ("metric", "row", "column", "ours", "last", "theirs", "difference", "within_seeds")
    )
    for reported, found in pairs:
        for c in found:
            within = "" if c.within is None else c.within
            numbers = (f"{value:.2f}" for value in (c.ours, c.last, c.theirs, c.difference))
            writer.writerow((reported.metric, c.row, c.column, *numbers, within))
    write_aside(path, text.getvalue().encode())
