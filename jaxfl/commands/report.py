"""``jaxfl report``: finished runs as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxfl.commands.common import end_with, intact, say
from jaxfl.experiments.earlier import REPORT
from jaxfl.experiments.kept import is_kept
from jaxfl.report.page import write_page


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, or of kept results.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file; default report.html, in the folder of a run where it is one."),
    ] = None,
) -> None:
    """Write one HTML file of finished runs, to be opened in a browser without a network.

    Of kept results there are tables, heat maps, rankings and claims, but nothing over rounds or
    clients. Folders that hold neither, or are damaged, are left out, and named: exit code 1.
    """
    runs, damaged = intact(folders)
    alone = len(folders) == 1 and not is_kept(folders[0])
    path = out or (folders[0] / REPORT if alone else Path(REPORT))
    write_page(path, runs)
    say(Console(), f"Report: {path}")
    end_with(damaged)
