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
from jaxfl.experiments.kept import Kept, is_kept, keep, read_kept
from jaxfl.experiments.reported import Compared, Reported, available, compared, read_reported
from jaxfl.experiments.running import Interrupted
from jaxfl.files import write_aside
from jaxfl.report import over_sets
from jaxfl.report.replications import beside, own, reduction, repository_results, verdict


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

    A run that stopped goes on. What has run is kept in the folder of results, cell by cell, also
    when it is stopped by Ctrl-C: a large grid may be run in several sittings, or on machines.
    """
    tables = read_reported(name) if name in available() else []
    console = Console(width=None if sys.stdout.isatty() else 160)
    full = f"{name}_reduced" if reduced else name
    known = [folder / full for folder in _folders(results)]
    at = next((path for path in known if is_kept(path)), known[0])
    if not is_kept(at) or not read_kept(at).whole:
        _run_what_is_missing(
            schema.load(name, [], reduced=reduced), out or Path("runs") / full, at, console
        )
    kept = read_kept(at)
    pairs = [(reported, compared(kept, reported)) for reported in tables]
    pairs = [(reported, found) for reported, found in pairs if found]
    if tables and not pairs:
        raise ValueError(f"{at} has no cell of the table that is reported")
    for line in reduction(at, kept):
        say(console, line)
    if not tables:
        lines = [list(map(escape, line)) for line in own(kept)]
        console.print(as_table(lines, kept, caption="Last test accuracy in %"))
        if over_sets.has_sets(kept.experiment):
            for heading, texts in over_sets.tables(kept.experiment, kept.outcomes):
                lines = [list(map(escape, line)) for line in texts]
                console.print(as_table(lines, kept, f"\n{escape(heading)}"))
            say(console, over_sets.CAPTION)
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


def _run_what_is_missing(
    experiment: schema.Experiment, path: Path, at: Path, console: Console
) -> None:
    """Runs the cells that are not kept, and keeps them."""
    done: set[int] = set()
    if is_kept(at):
        kept = read_kept(at)
        kept.check_same(experiment.table, at)
        done = kept.done(experiment)
        say(console, f"Kept in {at}: {len(done)} of {len(experiment.cells)} cells")
    try:
        execute(experiment, path, console, resume=True, elsewhere=done)
    except Interrupted:
        keep(path, at)
        raise
    keep(path, at)
    say(console, f"Kept: {at}")


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
