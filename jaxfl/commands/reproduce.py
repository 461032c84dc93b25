"""``jaxfl reproduce``: a paper's table, ours beside it; of other experiments what was run."""

import csv
import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxfl.commands.common import Reduced, say
from jaxfl.commands.run import execute
from jaxfl.experiments import schema
from jaxfl.experiments.kept import Kept, keep, read_kept
from jaxfl.experiments.reported import Compared, Reported, available, compared, read_reported
from jaxfl.files import write_aside
from jaxfl.report.replications import beside, own, repository_results, verdict


def reproduce(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A packaged experiment.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of kept results; default results.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    write: Annotated[Path | None, typer.Option(help="The comparison as CSV.")] = None,
    reduced: Reduced = False,
) -> None:
    """Show a paper's table beside ours: from kept results, or by running what is missing.

    Of an experiment that no paper reports our table alone.

    A run that stopped goes on. What has run is kept in the folder of results.
    """
    tables = read_reported(name) if name in available() else []
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
    if tables and not pairs:
        raise ValueError(f"{at} has no cell of the table that is reported")
    if not tables:
        lines = [list(map(escape, line)) for line in own(kept)]
        console.print(as_table(lines, kept, caption="Last test accuracy in %"))
    for reported, found in pairs:
        lines = [
            [f"[red]{escape(text)}[/red]" if far else escape(text) for text, far in line]
            for line in beside(reported, found)
        ]
        console.print(as_table(lines, kept, f"\nours (theirs: {escape(reported.source)})"))
        for line in verdict(reported, kept, found):
            say(console, line)
    if write is not None:
        as_csv(write, pairs)


def _folders(results: Path | None) -> list[Path]:
    """Where kept results may lie: as asked, here, or in the repository of this installation."""
    if results is not None:
        return [results]
    return [Path("results"), repository_results()]


def as_table(
    lines: list[list[str]], kept: Kept, what: str = "", caption: str | None = None
) -> Table:
    """Lines of markup, the first of them the header, under the experiment's title."""
    table = Table(title=escape(kept.table.get("title", "")) + what, caption=caption)
    header, *rest = lines
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in rest:
        table.add_row(*line)
    return table


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
