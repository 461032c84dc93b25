"""What commands share: an experiment and its changes as arguments, finished runs, printed lines."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from jaxfl.experiments.finished import read_results
from jaxfl.experiments.kept import is_kept, read_kept
from jaxfl.experiments.recalled import results_of
from jaxfl.experiments.results import Result
from jaxfl.experiments.scales import as_told_now
from jaxfl.experiments.schema import Experiment

Name = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A packaged experiment or a TOML file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field; may be repeated."),
]
Reduced = Annotated[
    bool, typer.Option("--reduced", help="The smaller version that the file describes.")
]

Item = TypeVar("Item")


def watched(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items; on a terminal under a bar, which goes when they are done."""
    errors = Console(stderr=True)
    return track(items, what, console=errors, transient=True, disable=not errors.is_terminal)


def say(console: Console, text: str) -> None:
    """Prints a line as it is: brackets in it are no markup, and it is not wrapped."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def reason(error: Exception) -> str | None:
    """What to say of an error; None where it is no mistake of the user's."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory: lower client_chunk, or run fewer seeds or candidates at once"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ValueError | OSError) else None


def intact(
    folders: Sequence[Path],
) -> tuple[list[tuple[Path, Experiment, list[Result]]], list[str]]:
    """The finished runs in folders, or what is kept of one, and a line for each that holds none,
    or a damaged one.

    Raises:
      ValueError: none holds one.
    """
    runs, damaged = [], []
    for folder in folders:
        try:
            if is_kept(folder):
                kept = as_told_now(folder, read_kept(folder))
                experiment = dataclasses.replace(kept.experiment, name=folder.resolve().name)
                runs.append((folder, experiment, results_of(kept)))
                damaged += kept.damaged
            else:
                runs.append((folder, *read_results(folder)))
        except (ValueError, OSError) as error:
            damaged.append(f"{reason(error)}")
    if not runs:
        raise ValueError("; ".join(damaged))
    return runs, damaged


def warn_of(damaged: Sequence[str]) -> None:
    """A line of each thing that could not be read."""
    errors = Console(stderr=True)
    for text in damaged:
        say(errors, f"jaxfl: warning: {' '.join(text.split())}")


def end_with(damaged: Sequence[str]) -> None:
    """Where something could not be read: a line of each, and exit code 1."""
    warn_of(damaged)
    if damaged:
        raise typer.Exit(1)
