"""``jaxfl profile``: where the time of an experiment's round goes."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxfl.commands.common import Name, Settings, say
from jaxfl.experiments import schema
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.runner import check, not_applicable
from jaxfl.experiments.running import made_ready
from jaxfl.files import write_aside
from jaxfl.profiling import Profile, scaling
from jaxfl.profiling import profile as measure
from jaxfl.profiling.profiler import ROUNDS, check_clients
from jaxfl.profiling.trace import NAME, check_folder
from jaxfl.report.profile import (
    bar_plot,
    profile_table,
    roofline_plot,
    scaling_plot,
    scaling_table,
    summary,
)
from jaxfl.simulation import Simulation


def profile(
    name: Name,
    settings: Settings = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in the measured block.")] = ROUNDS,
    trace: Annotated[
        Path | None, typer.Option(help="Folder for a trace that Perfetto opens.")
    ] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Also time a round of so many clients.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Results; default runs/NAME_profile.")] = None,
) -> None:
    """Measure where the time of a round goes: by phase, beside what the machine can do.

    Of a grid the first cell that applies is profiled, with its first seed.
    """
    given = list(settings or [])
    experiment, place = _first(name, given)
    sizes = _sizes(clients)
    larger = {n: _with_clients(name, given, place, n) for n in sizes}
    path = out or Path("runs") / f"{experiment.name}_profile"
    check_folder(path, "--out")
    if trace is not None:
        check_folder(trace, "--trace")
    console = Console(width=None if sys.stdout.isatty() else 120)
    cell = experiment.cells[place]
    if len(experiment.cells) > 1:
        say(console, _which(experiment, place))
    found = measure(_simulation(cell), rounds=rounds, trace=trace)
    if sizes:
        grown = scaling(lambda n: _simulation(larger[n]), sizes, rounds=rounds)
        found = dataclasses.replace(found, scaling=grown)
    _write(path, found)
    _show(console, path, found, trace)


def _first(name: str, settings: Sequence[str]) -> tuple[schema.Experiment, int]:
    """The experiment, and the place of its first cell that applies."""
    experiment = schema.load(name, settings)
    check(experiment)
    return experiment, next(
        i for i, cell in enumerate(experiment.cells) if not_applicable(cell) is None
    )


def _which(experiment: schema.Experiment, place: int) -> str:
    labels = ", ".join(f"{k} = {v}" for k, v in experiment.cells[place].labels.items())
    return (
        f"Cell {place + 1} of {len(experiment.cells)}: {labels}; "
        f"--set 'sweep.{experiment.axes[0]}=[...]' chooses another"
    )


def _sizes(clients: str | None) -> tuple[int, ...]:
    """The numbers of ``--clients``."""
    if clients is None:
        return ()
    try:
        numbers = [int(n) for n in clients.split(",")]
    except ValueError:
        raise ValueError(
            f"--clients wants numbers with commas between them, such as 10,100; got {clients!r}"
        ) from None
    return check_clients(numbers)


def _with_clients(name: str, settings: Sequence[str], place: int, n: int) -> Cell:
    """The same cell with so many clients; raises ValueError where its parts do not allow it."""
    try:
        cell = schema.load(name, [*settings, f"data.clients={n}"]).cells[place]
        reason = not_applicable(cell)
    except ValueError as error:
        reason = str(error)
    else:
        if reason is None:
            return cell
    raise ValueError(f"--clients: {n} clients cannot be profiled: {reason}")


def _simulation(cell: Cell) -> Simulation:
    """The cell's first candidate on its first seed, on one device."""
    first = dataclasses.replace(
        cell, seeds=cell.seeds[:1], federations=cell.federations[:1], devices=1
    )
    return made_ready(first, first.load()).simulation


def _write(path: Path, found: Profile) -> None:
    numbers = json.dumps(found.to_json(), indent=1, allow_nan=False)
    write_aside(path / "profile.json", numbers.encode())
    bar_plot(path / "profile.png", found)
    roofline_plot(path / "roofline.png", found)
    if found.scaling is not None:
        scaling_plot(path / "scaling.png", found.scaling)


def _show(console: Console, path: Path, found: Profile, trace: Path | None) -> None:
    console.print(profile_table(found))
    for line in summary(found):
        say(console, line)
    if found.scaling is not None:
        console.print(scaling_table(found.scaling))
    shown = {"Bar": "profile.png", "Roofline": "roofline.png", "Numbers": "profile.json"}
    shown |= {} if found.scaling is None else {"Clients": "scaling.png"}
    for what, file in shown.items():
        say(console, f"{what + ':':9} {path / file}")
    if trace is not None:
        say(console, f"Trace:    {trace / NAME} (open it in ui.perfetto.dev)")
