"""A live view of a running grid; plain lines where there is no terminal."""

import time
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxfl.evaluation import Evaluation
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.runner import Tick
from jaxfl.experiments.schema import Experiment


class Watcher:
    """Follows the cells of an experiment; use as a context manager."""

    def __init__(self, experiment: Experiment, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._live = console.is_terminal and not quiet
        self._quiet = quiet
        self._cells = len(experiment.cells)
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not self._live,
        )
        total = sum(cell.rounds for cell in experiment.cells)
        self._task = self._progress.add_task(experiment.name, total=total, speed="compiling")
        self._starts = [0]
        for cell in experiment.cells:
            self._starts.append(self._starts[-1] + cell.rounds)

    def __enter__(self) -> "Watcher":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def watch(self, index: int, cell: Cell, rounds: int) -> Tick:
        """The function that follows one cell, from so many rounds on."""
        name = " / ".join(cell.labels.values()) or "run"
        head = f"[{index + 1}/{self._cells}] {name}"
        before, started = self._starts[index], time.perf_counter()
        last = [started, rounds]
        if self._live:
            speed, at = f"round {rounds}/{cell.rounds} compiling", before + rounds
            self._progress.update(self._task, completed=at, description=head, speed=speed)

        def tick(done: int, evaluation: Evaluation) -> None:
            now = time.perf_counter()
            accuracy = float(np.mean(evaluation.accuracy))
            rate = (done - last[1]) * len(cell.runs) / max(now - last[0], 1e-9)
            last[:] = [now, done]
            clients = rate * cell.federation.participation.cohort(cell.clients)
            text = (
                f"round {done}/{cell.rounds}  {_short(rate)} rounds/s  "
                f"{_short(clients)} clients/s  accuracy {accuracy:.1%}"
            )
            if self._live:
                self._progress.update(self._task, completed=before + done, speed=text)
            elif done >= cell.rounds and not self._quiet:
                taken = now - started
                self._console.print(
                    f"{head}  accuracy {accuracy:.1%}  {taken:.1f} s", highlight=False, markup=False
                )

        return tick


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
