"""``jaxfl reproduce``: a paper's table, ours beside it; of other experiments what was run."""

import csv
import dataclasses
import io
import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxfl.commands.common import Reduced, Settings, end_with, say
from jaxfl.commands.run import MOST_COLUMNS, execute
from jaxfl.experiments import schema
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.kept import Kept, is_kept, keep, read_kept
from jaxfl.experiments.ranking import rankings
from jaxfl.experiments.recalled import results_of
from jaxfl.experiments.reported import Compared, Pairs, alone, beside_papers, unpaired
from jaxfl.experiments.running import Interrupted
from jaxfl.experiments.scales import (
    REDUCED,
    as_told_now,
    check_scale,
    folder_name,
    scale_of,
    whole_scales,
)
from jaxfl.files import write_aside
from jaxfl.registry import unknown
from jaxfl.report import over_sets
from jaxfl.report.ranking import is_ranked, ranking_table
from jaxfl.report.replications import (
    APART,
    apart,
    beside,
    own,
    reduction,
    repository_results,
    verdict,
)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A packaged experiment.")],
    settings: Settings = None,
    scale: Annotated[
        str | None,
        typer.Option("--as", metavar="SCALE", help="Under this name, what --set changes is kept."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of kept results; default results.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    write: Annotated[Path | None, typer.Option(help="The comparison as CSV.")] = None,
    reduced: Reduced = False,
    run: Annotated[
        bool, typer.Option("--run", help="Run what is missing, whatever else is kept.")
    ] = False,
) -> None:
    """Show a paper's table beside ours: from kept results, or by running what is missing.

    Of an experiment that no paper reports our table alone. Where a smaller scale of the experiment
    is kept, but not the whole, that is shown, and nothing runs without --run. Scales and selections
    of one's own (--set, --as) are kept beside the others.

    A run that stopped goes on. What has run is kept in the folder of results, cell by cell, also
    when it is stopped by Ctrl-C: a large grid may be run in several sittings, or on machines.
    """
    if name not in schema.packaged():
        raise ValueError(f"no packaged experiment: {unknown(name, schema.packaged())}")
    if scale is not None:
        check_scale(name, scale)
    elif settings:
        raise ValueError("--set changes the experiment: --as SCALE names what is kept of it")
    console = Console(width=None if sys.stdout.isatty() else 160)
    folders = _folders(results)
    full = folder_name(name, scale or (REDUCED if reduced else None))
    at = next((path for path in (f / full for f in folders) if is_kept(path)), folders[0] / full)
    schema.importable([str(Path.cwd())])
    kept, unreadable = None, None
    try:
        kept = read_kept(at) if is_kept(at) else None
    except ValueError as error:
        unreadable = error
    enough = kept is not None and (kept.whole if run else kept.was_whole)
    smaller, damaged = ([], []) if enough or run or full != name else whole_scales(folders, name)
    if unreadable is not None and not smaller:
        raise unreadable
    if smaller:
        here = "none" if kept is None else len(kept.cells)
        damaged += kept.damaged if kept is not None else []
        at, *others = smaller
        also = f"; also kept: {', '.join(map(_option, others))}" if others else ""
        say(console, f"Shown: {at}{also}. Of {name} {here} of the cells kept; --run runs the rest")
        kept = read_kept(at)
    elif settings or (scale and reduced) or not enough:
        experiment = _asked(name, scale, settings or [], kept, at, reduced=reduced)
        if kept is not None:
            kept.check_same(experiment.table, at)
        if kept is None or not enough:
            _run_what_is_missing(experiment, kept, out or Path("runs") / full, at, console)
            kept = read_kept(at)
    assert kept is not None, "shown, or run"
    kept = as_told_now(at, kept)
    pairs = beside_papers(kept, name)
    _show(at, kept, pairs, console)
    if write is not None:
        beside_theirs = [(reported.metric, cell) for reported, found in pairs for cell in found]
        as_csv(write, [*beside_theirs, *alone(unpaired(kept, pairs))])
    end_with([*damaged, *kept.damaged])


def _option(folder: Path) -> str:
    """What asks for the scale that is kept in a folder."""
    _, scale = scale_of(folder)
    return "--reduced" if scale == REDUCED else f"--as {scale}"


def _show(at: Path, kept: Kept, pairs: Pairs, console: Console) -> None:
    """Prints the paper's tables beside which ours stand, and what else is ours."""
    for line in reduction(at, kept):
        say(console, line)
    for reported, found in pairs:
        source = f"\nours (theirs: {escape(reported.source)})"
        for lines, what, caption in (
            (beside(reported, found), source, None),
            (apart(reported, found), "\nours less theirs (ours, last)", APART),
        ):
            marked = [
                [f"[red]{escape(text)}[/red]" if far else escape(text) for text, far in line]
                for line in lines
            ]
            console.print(as_table(marked, kept, what, caption))
        for line in verdict(reported, kept, found):
            say(console, line)
    experiment, results = kept.experiment, results_of(kept)
    for ranking in rankings(experiment, results) if is_ranked(experiment) else []:
        console.print(ranking_table(experiment, ranking))
    for lines, caption in own(kept, results, pairs):
        if len(lines[0]) > MOST_COLUMNS:
            say(console, f"Not shown: {len(lines[0]) - 1} columns; --write has them. {caption}")
            continue
        escaped = [list(map(escape, line)) for line in lines]
        console.print(as_table(escaped, kept, caption=escape(caption)))
    if over_sets.has_sets(kept.experiment):
        for heading, texts in over_sets.tables(kept.experiment, kept.outcomes):
            lines = [list(map(escape, line)) for line in texts]
            console.print(as_table(lines, kept, f"\n{escape(heading)}"))
        say(console, over_sets.CAPTION)
    for found in verdicts(experiment, results):
        say(console, f"Stated: {found}")


def _asked(
    name: str,
    scale: str | None,
    settings: list[str],
    kept: Kept | None,
    at: Path,
    *,
    reduced: bool,
) -> schema.Experiment:
    """The experiment at this scale: as it is kept where nothing else says how it is changed."""
    if scale is None:
        return schema.load(name, reduced=reduced)
    if settings or reduced:
        experiment = schema.load(name, settings, reduced=reduced)
        title = f"{experiment.title}: {scale}"
        table = experiment.table | {"title": title}
        return dataclasses.replace(experiment, title=title, table=table)
    if kept is None:
        raise ValueError(f"{at} is not kept: --set says what it changes")
    modules = (str(Path.cwd()),)  # where classes of one's own were found, if there are any
    return dataclasses.replace(schema.parse(name, kept.table), modules=modules)


def _run_what_is_missing(
    experiment: schema.Experiment, kept: Kept | None, path: Path, at: Path, console: Console
) -> None:
    """Runs the cells that are not kept, and keeps them."""
    done = set() if kept is None else kept.done(experiment)
    if kept is not None:
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


def as_csv(path: Path, cells: list[tuple[str, Compared]]) -> None:
    """Writes every cell: ours by the metric, our last accuracy, theirs, the difference."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ("metric", "row", "column", "ours", "last", "theirs", "difference", "within_seeds")
    )
    for metric, c in cells:
        numbers = (c.ours, c.last, c.theirs, c.difference)
        told = ("" if math.isnan(value) else f"{value:.2f}" for value in numbers)
        within = "" if c.within is None else c.within
        writer.writerow((metric, c.row, c.column, *told, within))
    write_aside(path, text.getvalue().encode())
