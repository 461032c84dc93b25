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
