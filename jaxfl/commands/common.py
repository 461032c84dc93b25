"""What commands share: the experiment and its changes as arguments, lines printed as they are."""

from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track

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


def end_with(damaged: Sequence[str]) -> None:
    """Where something could not be read: a line of each, and exit code 1."""
    errors = Console(stderr=True)
    for text in damaged:
        say(errors, f"jaxfl: warning: {' '.join(text.split())}")
    if damaged:
        raise typer.Exit(1)
