"""``jaxfl report``: finished runs as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxfl.commands.common import end_with, intact, say
from jaxfl.experiments.earlier import REPORT
from jaxfl.report.page import write_page


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file; default report.html, in the folder where there is one."),
    ] = None,
) -> None:
    """Write one HTML file of finished runs, to be opened in a browser without a network.

    Folders that hold none, or a damaged one, are left out, and named: exit code 1.
    """
    runs, damaged = intact(folders)
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    write_page(path, runs)
    say(Console(), f"Report: {path}")
    end_with(damaged)
