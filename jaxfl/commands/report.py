"""``jaxfl report``: finished runs as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxfl.commands.common import say
from jaxfl.experiments.earlier import REPORT
from jaxfl.experiments.finished import read_results
from jaxfl.report.page import write_page


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file; default report.html, in the folder where there is one."),
    ] = None,
) -> None:
    """Write one HTML file of finished runs, to be opened in a browser without a network."""
    runs = [(folder, *read_results(folder)) for folder in folders]
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    write_page(path, runs)
    say(Console(), f"Report: {path}")
