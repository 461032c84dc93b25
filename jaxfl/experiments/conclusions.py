"""What the results of a whole grid tell of each other."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from jaxfl.aggregators import Mean
from jaxfl.attacks import NoAttack
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.results import Result

Labels = tuple[tuple[str, str], ...]

ADVERSARY = ("attack", "byzantine", "byzantine_per_round", "noise_order")
"""What a defence does not know when it is tuned: keys of an experiment, and all that is below."""


def choose(results: Sequence[Result]) -> list[Result]:
    """Picks for every defence the candidate of ``tune`` that validates best.

    A defence does not know which attack it will meet: cells that differ only in ``ADVERSARY``
    share the choice, by their mean validation accuracy after the last round (0 where diverged).
    """
    groups: dict[Labels, list[Result]] = {}
    for result in results:
        groups.setdefault(_defence(result.cell), []).append(result)
    chosen: dict[int, int] = {}
    for group in groups.values():
        scores = [
            np.where(r.lost, 0.0, np.nan_to_num(r.validation[..., -1])).mean(axis=1)
            for r in group
            if r.validation is not None and r.validation.size
        ]
        best = int(np.argmax(np.mean(scores, axis=0))) if scores else 0
        chosen |= {id(result): best for result in group}
    return [dataclasses.replace(r, chosen=chosen[id(r)]) for r in results]


def settled(cells: Sequence[Cell], done: Collection[int]) -> set[int]:
    """Numbers of the cells that are done, and for which ``tune`` can choose: so are all cells that
    share the choice.
    """
    open_choices = {_defence(cell) for index, cell in enumerate(cells) if index not in done}
    return {
        index
        for index in done
        if len(cells[index].federations) == 1 or _defence(cells[index]) not in open_choices
    }


def _defence(cell: Cell) -> Labels:
    """What a choice of ``tune`` is made for."""
    return tuple((k, v) for k, v in cell.labels.items() if k.split(".")[0] not in ADVERSARY)


def conclude(results: Sequence[Result]) -> list[Result]:
    """The results of a whole grid, each with what only the others tell: ``choose``, ``refer``."""
    return refer(choose(results))


def refer(results: Sequence[Result]) -> list[Result]:
    """The results with ``reference`` filled in where the grid has a cell to refer to."""

    def others(result: Result) -> Labels:
        labels = result.cell.labels
        return tuple((k, v) for k, v in labels.items() if k not in ("attack", "aggregator"))

    plain: dict[Labels, float] = {}
    for r in results:
        parts = r.cell.federation
        if isinstance(parts.attack, NoAttack) and isinstance(parts.aggregator, Mean):
            plain.setdefault(others(r), r.final if r.status == "done" else float("nan"))
    return [dataclasses.replace(r, reference=plain.get(others(r), float("nan"))) for r in results]
