"""A live view of a running grid; plain lines where there is no terminal."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxfl.evaluation import Evaluation
from jaxfl.experiments.groups import Group
from jaxfl.experiments.running import Tick
from jaxfl.experiments.schema import Experiment
from jaxfl.progress import CompileClock, Pace


class Watcher:
    """Follows the cells of an experiment; use as a context manager."""

    def __init__(self, experiment: Experiment, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._live = console.is_terminal and not quiet
        self._quiet = quiet
        self._cells = len(experiment.cells)
        self._clock = CompileClock(self._compiles)
        self._announced = self._estimated = False
        self._shown = ("", "preparing")
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not self._live,
        )
        total = sum(cell.rounds for cell in experiment.cells)
        self._task = self._progress.add_task(experiment.name, total=total, speed="preparing")

    def __enter__(self) -> "Watcher":
        self._clock.__enter__()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._clock.__exit__(None, None, None)

    def watch(self, groups: Sequence[Group], at: int, rounds: int) -> Tick:
        """The function that follows one group of cells, from so many rounds on."""
        group, cell = groups[at], groups[at].cell
        head = f"[{_numbers(group.indices)}/{self._cells}] {group.name}"
        before = sum(earlier.rounds for earlier in groups[:at])
        size = len(group.cells)
        if not self._announced:
            self._announce(groups[at:])
            self._progress.update(self._task, total=sum(group.rounds for group in groups))
        if self._live:
            self._shown = (f"round {rounds}/{cell.rounds}", "preparing")
            speed = " ".join(self._shown)
            done = before + size * rounds
            self._progress.update(self._task, completed=done, description=head, speed=speed)
            self._shown = (self._shown[0], "running")
        cohort = cell.federation.participation.cohort(cell.clients)
        pace = Pace(self._clock, rounds, len(cell.runs), cohort)

        def tick(done: int, evaluation: Evaluation) -> None:
            speed = pace.tick(done)
            accuracy = f"accuracy {float(np.mean(evaluation.accuracy)):.1%}"
            if self._live:
                self._shown = (f"round {done}/{cell.rounds}", f" {speed}  {accuracy}")
                text = " ".join(self._shown)
                self._progress.update(self._task, completed=before + size * done, speed=text)
            if done < cell.rounds:
                return
            speed, ran, compiled = pace.whole()
            self._print(f"{head}  {accuracy}  {speed}  {ran + compiled:.1f} s")
            self._estimate(groups[at + 1 :], ran / max(done - rounds, 1) / size, compiled)

        return tick

    def _compiles(self, compiling: bool) -> None:
        """Says what is going on between two blocks."""
        place, text = self._shown
        if self._live:
            shown = f"{place} compiling" if compiling else f"{place} {text}"
            self._progress.update(self._task, speed=shown.strip())

    def _announce(self, left: Sequence[Group]) -> None:
        """How much there is to do, before the first cell runs."""
        cells = sum(len(group.cells) for group in left)
        runs = len(left[0].cells[0].runs)
        programs = _count(len({group.program for group in left}), "program")
        if not self._quiet:  # above the bar, where there is one
            self._say(f"{_count(cells, 'cell')} in {programs}, {_count(runs, 'run')} a cell")
        self._announced = True

    def _estimate(self, left: Sequence[Group], seconds_a_round: float, compiled: float) -> None:
        """How long the rest will take if it is as the first group was."""
        if self._estimated or not left:
            return
        programs = {group.program for group in left}
        seconds = sum(group.rounds for group in left) * seconds_a_round + compiled * len(programs)
        cells = sum(len(group.cells) for group in left)
        self._print(f"about {duration(seconds)} for {_count(cells, 'more cell')}")
        self._estimated = True

    def _print(self, text: str) -> None:
        if not (self._live or self._quiet):
            self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time to be read: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _numbers(indices: Sequence[int]) -> str:
    """Numbers of cells, from 1: ``4``, or ``4..9`` for several, which need not be all between."""
    first, last = indices[0] + 1, indices[-1] + 1
    return str(first) if first == last else f"{first}..{last}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
