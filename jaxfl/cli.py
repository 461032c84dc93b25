"""The command line."""

import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.syntax import Syntax

from jaxfl import __version__
from jaxfl.commands.common import Name, Reduced, Settings, intact, reason, say, warn_of
from jaxfl.commands.doctor import doctor
from jaxfl.commands.plan import plan
from jaxfl.commands.profile import profile
from jaxfl.commands.report import report
from jaxfl.commands.reproduce import reproduce
from jaxfl.commands.run import run
from jaxfl.commands.track import track
from jaxfl.contracts import OwnCodeError
from jaxfl.data import Partition, available
from jaxfl.data import prepare as prepare_data
from jaxfl.data.loaders import SOURCES
from jaxfl.experiments import hosts, schema
from jaxfl.experiments.running import Interrupted
from jaxfl.experiments.written import as_toml
from jaxfl.registry import build, unknown
from jaxfl.report.compare import comparison
from jaxfl.report.components import attacks_table, listing, rules_table
from jaxfl.report.datasets import availability_table, summary_table
from jaxfl.report.partition import plot_partition

TRACEBACK = "JAXFL_TRACEBACK"
"""Environment variable that asks for the traceback behind a one-line error."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Byzantine-robust, private and fair federated learning, one compiled program a round.",
)


def print_version(asked: bool) -> bool:
    """Prints the version and ends where that was asked for; else the option's value."""
    if asked:
        print(f"jaxfl {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


app.command()(run)


@app.command("list")
def list_experiments() -> None:
    """List the packaged experiments."""
    console = Console()
    for name in schema.packaged():
        title, cells, seeds = schema.overview(name)
        say(console, f"{name}: {title} ({cells} cells, {seeds} seeds)")


@app.command()
def show(
    name: Name,
    settings: Settings = None,
    reduced: Reduced = False,
) -> None:
    """Show an experiment as TOML, with changes applied."""
    experiment = schema.load(name, settings or [], reduced=reduced)
    kept = {"reduced": experiment.reduced} if experiment.reduced else {}
    text = as_toml(experiment.table | kept)
    if sys.stdout.isatty():
        Console().print(Syntax(text, "toml", background_color="default"))
    else:
        print(text, end="")


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(help="One of them: its whole text.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The rules and the attacks, as tables.")
    ] = False,
) -> None:
    """List every component, its fields and its paper."""
    print(f"{rules_table()}\n\n{attacks_table()}" if markdown else listing(name))


app.command()(report)
app.command()(reproduce)
app.command()(plan)
app.command()(profile)
app.command()(doctor)
app.command()(track)


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, or of kept results.")
    ],
) -> None:
    """Compare runs cell by cell; say what differs between them and what was left out.

    Folders that hold none, or a damaged one, are left out, and named: exit code 1.
    """
    runs, damaged = intact(folders)
    warn_of(damaged)
    console = Console(width=None if sys.stdout.isatty() else 120)
    names, found = [str(folder) for folder, *_ in runs], [(e, results) for _, e, results in runs]
    table, notes = comparison(names, found)
    console.print(table)
    for note in notes:
        say(console, note)
    if damaged:
        raise typer.Exit(1)


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="One of them: load and describe it.")] = None,
    partition: Annotated[
        str | None, typer.Option(help="Draw clients x classes: a name or a TOML table.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Clients to divide among.", show_default="50")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the division.", show_default="0")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The picture.", show_default="partition.png")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Get it through TFDS.")] = False,
) -> None:
    """List the data sets, describe one, draw how it is divided."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if data_dir is not None:
        os.environ["JAXFL_DATA_DIR"] = str(data_dir)
    division = {"--clients": clients, "--seed": seed, "--out": out}
    if name is None:
        others = {"--partition": partition, "--prepare": prepare or None}
        _refuse(others | division, "name a data set")
        console.print(availability_table(available()))
        return
    if name not in SOURCES:
        raise ValueError(f"data: {unknown(name, SOURCES)}")
    way = None
    if partition is None:
        _refuse(division, "set --partition")
    else:
        way = build(Partition, schema.toml_value(partition, "--partition"), "partition")
    if prepare:
        say(console, f"Prepared: {prepare_data(name)}")
    dataset = SOURCES[name]()
    console.print(summary_table(dataset.summary()))
    if way is not None:
        out = Path("partition.png") if out is None else out
        divided = dataset.split(way, 50 if clients is None else clients, seed or 0)
        plot_partition(divided, out)
        say(console, f"Plot: {out}")


def _refuse(options: Mapping[str, object], cure: str) -> None:
    """Refuses options that were given and would do nothing."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: {cure}")


def print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
) -> None:
    """A warning on one line; with its place in the code unless it is meant for users."""
    place = "" if issubclass(category, UserWarning) else f" ({filename}:{lineno})"
    print(f"jaxfl: warning: {' '.join(str(message).split())}{place}", file=sys.stderr)


def main() -> None:
    """The entry point: a mistake ends with one line and exit code 2, a stopped run with 130."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning
            app()
    except Interrupted as stopped:
        print(f"jaxfl: {stopped}", file=sys.stderr)
        sys.exit(130)
    except hosts.Lost as lost:
        if os.environ.get(TRACEBACK):
            traceback.print_exception(lost)
        print(f"jaxfl: error: {lost}", file=sys.stderr, flush=True)
        os._exit(2)  # at its end JAX would wait for the process that is gone
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        text = reason(error)
        if text is None or os.environ.get(TRACEBACK):
            raise
        if isinstance(error, OwnCodeError):
            traceback.print_exception(error.__cause__)
        print(f"jaxfl: error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
