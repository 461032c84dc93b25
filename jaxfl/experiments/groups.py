"""Which cells of a grid run together, as one program."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import numpy as np

from jaxfl.attacks import Attack, NoAttack
from jaxfl.attacks.branches import Branches
from jaxfl.data import Dataset
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.limits import messages_of
from jaxfl.federation import Federation
from jaxfl.given import countless

MOST_BYTES = 2**24
"""Of a round's messages of all cells of a group. Together, small cells share what a step of any
program costs; larger ones push each other out of the processor's cache."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that differ in numbers of their federations only, as one cell of all their runs.

    How many clients are Byzantine is such a number, where some are.
    """

    indices: tuple[int, ...]
    """Which cells of the grid."""
    cells: tuple[Cell, ...]

    @property
    def cell(self) -> Cell:
        """One cell whose candidates are those of all cells, in order."""
        federations = tuple(f for cell in self.cells for f in cell.federations)
        return dataclasses.replace(self.cells[0], federations=federations)

    @property
    def rounds(self) -> int:
        """Rounds of all cells together."""
        return sum(cell.rounds for cell in self.cells)

    @property
    def name(self) -> str:
        """What the cells are called in tables, shortened."""
        names = [" / ".join(cell.labels.values()) or "run" for cell in self.cells]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

    @property
    def program(self) -> Any:
        """Equal for groups that one program serves after another."""
        return max(c.federation.byzantine for c in self.cells), *map(_program, self.cells)

    def runs_of(self, place: int, answer: Any) -> Any:
        """What the group's program answered, for the runs of one of its cells."""
        if len(self.cells) == 1:
            return answer
        length = len(self.cells[0].runs)
        return jax.tree.map(lambda x: x[place * length : (place + 1) * length], answer)


def grouped(
    cells: Sequence[Cell], wanted: Container[int], load: Callable[[Cell], Dataset]
) -> list[list[int]]:
    """The cells of a grid in groups, each cell in one, in the order of their first cells.

    Cells are together where one program serves all, on one device, up to ``MOST_BYTES``.

    Args:
      cells: of the grid.
      wanted: numbers of the cells that run; each other is alone.
      load: gives a cell's data set.
    """
    groups: list[list[int]] = []
    latest: dict[Any, list[int]] = {}
    for index, cell in enumerate(cells):
        alone = cell.placed is not None or isinstance(cell.federation.attack, Branches)
        key = _program(cell) if index in wanted and not alone else None
        group = latest.get(key) if key is not None else None
        if group is not None and (len(group) + 1) * messages_of(cell, load(cell)) <= MOST_BYTES:
            group.append(index)
            continue
        groups.append([index])
        if key is not None:
            latest[key] = groups[-1]
    return groups


def sharing(cells: Sequence[Cell], wanted: Container[int]) -> list[Cell]:
    """The cells of a grid, with attacks that share a program with others as its branches.

    One program runs cells that differ in the attack one after another. An attack that learns, or
    needs an update of the server's own, has a program of its own; so has every one under a
    mechanism of privacy, which may treat what is crafted otherwise than the rest.

    Args:
      cells: of the grid.
      wanted: numbers of the cells that run; each other stays as it is.
    """
    result, alike = list(cells), defaultdict[Any, list[int]](list)
    for index, cell in enumerate(cells):
        attack, candidates = cell.federation.attack, cell.federations
        alone = attack.learns or attack.needs_root or cell.federation.private
        if index in wanted and not alone and all(f.attack is attack for f in candidates):
            program = _program(_attacked_by(cell, NoAttack()))
            alike[program, cell.federation.byzantine, attack.streams].append(index)
    for indices in alike.values():
        distinct: dict[Any, Attack] = {}
        for index in indices:
            attack = cells[index].federation.attack
            distinct.setdefault(_described(attack), attack)
        attacks, numbers = tuple(distinct.values()), list(distinct)
        for index in indices if len(attacks) > 1 else ():
            which = numbers.index(_described(cells[index].federation.attack))
            result[index] = _attacked_by(cells[index], Branches(attacks=attacks, which=which))
    return result


def _described(attack: Attack) -> Any:
    """Equal for attacks that are the same in all."""
    leaves, structure = jax.tree.flatten(attack)
    return structure, *(np.asarray(leaf).tobytes() for leaf in leaves)


def _attacked_by(cell: Cell, attack: Attack) -> Cell:
    changed = (federation.replace(attack=attack) for federation in cell.federations)
    return dataclasses.replace(cell, federations=tuple(changed))


def of_any_number(cell: Cell) -> Federation:
    """A cell's parts, equal for cells whose program differs in the number of attackers alone."""
    federation = cell.federation
    if countless(federation) and cell.honesty is None:
        return federation.replace(byzantine=1)
    return federation


def _program(cell: Cell) -> Any:
    """Equal for cells whose program is the same."""
    leaves, structure = jax.tree.flatten(of_any_number(cell))
    kinds = tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves)
    # The parts themselves, as those of two classes of one name print alike.
    others = {f.name for f in dataclasses.fields(cell)} - {"labels", "federations", "data"}
    parts = tuple(getattr(cell, name) for name in sorted(others))
    return parts, repr(cell.data), len(cell.federations), structure, kinds
