"""``jaxfl track``: a run's log for an experiment tracker."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxfl.commands.common import say
from jaxfl.registry import unknown
from jaxfl.report.trackers import WRITERS, tracks


def track(
    folder: Annotated[Path, typer.Argument(help="A run's folder; it may still be running.")],
    to: Annotated[str, typer.Option(help=f"{', '.join(WRITERS)}.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to; default: a folder of its name in the run's.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
) -> None:
    """Write what a run has measured for a tracker: a run of theirs for each seed and honest set."""
    if to not in WRITERS:
        raise ValueError(f"--to: {unknown(to, WRITERS)}")
    found, where = tracks(folder), out or folder / to
    WRITERS[to](found, where, project or folder.resolve().name)
    say(Console(), f"Tracked: {len(found)} runs in {where}")
