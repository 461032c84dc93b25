"""``jaxfl plan``: what an experiment would need, before it runs."""

import dataclasses
import sys
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxfl.commands.common import Name, Reduced, Settings, say, watched
from jaxfl.data import FederatedData
from jaxfl.devices import memory_of_device
from jaxfl.experiments import schema
from jaxfl.experiments.cells import Cell, Datasets
from jaxfl.experiments.groups import of_any_number
from jaxfl.experiments.limits import Shapes, check_data, suited
from jaxfl.experiments.runner import check, not_applicable
from jaxfl.federation import Federation
from jaxfl.memory import Estimate, amount, estimate, fitting
from jaxfl.state import Plan

COLUMNS = ("clients", "chunk", "data", "memories", "state", "updates", "work", "peak", "")


def plan(
    name: Name,
    settings: Settings = None,
    reduced: Reduced = False,
) -> None:
    """Show how much memory each program of an experiment needs; compute nothing."""
    experiment = schema.load(name, settings or [], reduced=reduced)
    check(experiment)
    console = Console(width=None if sys.stdout.isatty() else 140)
    available = memory_of_device(jax.local_devices()[0])
    table = Table("program", *COLUMNS, title=experiment.title, title_justify="left")
    refused = []
    for cells, federation, found, data in watched(programs(experiment), "programs"):
        needed, found, reason = answer(cells[0], federation, found, data)
        table.add_row(label(cells), *row(needed, found, len(cells[0].runs), fits=reason is None))
        refused += [f"{label(cells)}: {reason}"] if reason else []
    console.print(table)
    left = "unknown" if available is None else amount(available)
    turns = "Seeds and candidates run at once, in turn where they do not fit."
    said = f"Memory that this process may take: {left}. {turns}"
    for line in (said, *refused):
        say(console, line)


def programs(
    experiment: schema.Experiment,
) -> list[tuple[list[Cell], Federation, Plan, FederatedData]]:
    """The cells of each distinct program, its parts, its plan and the shapes of its data."""
    datasets, shapes, found = Datasets(), Shapes(), {}
    for cell in watched(experiment.cells, "cells"):
        if not_applicable(cell) is not None:
            continue
        check_data(cell)
        data = shapes.of(cell, datasets.of(cell))
        federation, plan_of_cell = suited(cell, data)
        sizes = tuple(jax.tree.map(lambda x: (x.shape, x.dtype), jax.tree.leaves(data)))
        spec = dataclasses.replace(plan_of_cell.spec, max_byzantine=0)
        planned = dataclasses.replace(plan_of_cell, spec=spec)
        parts = jax.tree.structure(of_any_number(cell))
        program: Any = parts, planned, sizes, len(cell.runs)
        found.setdefault(program, ([], federation, plan_of_cell, data))[0].append(cell)
    return list(found.values())


def answer(
    cell: Cell, federation: Federation, found: Plan, data: FederatedData
) -> tuple[Estimate, Plan, str | None]:
    """What a program needs, its plan, and why it does not fit or None."""
    asked: dict[str, Any] = {
        "runs": len(cell.runs),
        "devices": len(cell.placed or [0]),
        "client_accuracy": cell.client_accuracy,
    }
    chosen, reason = cell.client_chunk is not None, None
    try:
        found = fitting(federation, found, data, chosen=chosen, turns=True, **asked)
    except ValueError as error:
        reason = str(error)
    return estimate(federation, found, data, **asked), found, reason


def label(cells: list[Cell]) -> str:
    """The first of a program's cells, and how many others share it."""
    first = " / ".join(cells[0].labels.values()) or "all"
    return first if len(cells) == 1 else f"{first} and {len(cells) - 1} more"


def row(needed: Estimate, found: Plan, runs: int, *, fits: bool) -> list[str]:
    """The entries of ``COLUMNS``."""
    turns = f", {found.together} of {runs} runs at once" if found.together else ""
    sizes = (needed.data, needed.memories, needed.state, needed.updates, needed.work, needed.peak)
    entries = [f"{found.spec.cohort:,}", str(found.chunk), *map(amount, sizes)]
    return [*entries, f"fits{turns}" if fits else "does not fit"]
