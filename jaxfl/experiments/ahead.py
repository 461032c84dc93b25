"""The next programs are made ready while the current one runs."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

AHEAD = 2
"""Programs made ready at once. Compiling takes one core, and several times as long as the rounds of
a small cell."""

P = TypeVar("P")


class Ahead(Generic[P]):
    """Makes the first cells of programs ready in threads; use as a context manager.

    What later cells of a program have to be made ready for is there by then.

    Args:
      cells: the numbers of the cells, in the order in which they run.
      prepare: makes one ready; called in other threads. What it raises is raised by ``take``.
      program: equal for cells that share a program; each has its own unless given.
    """

    def __init__(
        self,
        cells: Sequence[int],
        prepare: Callable[[int], P],
        program: Callable[[int], Hashable] = lambda cell: cell,
    ) -> None:
        first: dict[Hashable, int] = {}
        for cell in cells:
            first.setdefault(program(cell), cell)
        self._left = list(first.values())
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="ahead")
        self._begun: dict[int, Future[P]] = {}

    def __enter__(self) -> "Ahead[P]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, index: int) -> P | None:
        """The cell made ready, waited for where that is under way; None where it was not begun.

        The programs after it are begun.
        """
        self._left = [cell for cell in self._left if cell > index]
        for cell in self._left[:AHEAD]:
            if cell not in self._begun:
                self._begun[cell] = self._pool.submit(self._prepare, cell)
        found = self._begun.pop(index, None)
        return None if found is None else found.result()
