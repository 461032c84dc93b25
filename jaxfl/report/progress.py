"""A live view of a running grid; plain lines where there is no terminal."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.monitoring
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxfl.evaluation import Evaluation
from jaxfl.experiments.groups import Group
from jaxfl.experiments.running import Tick
from jaxfl.experiments.schema import Experiment

COMPILING = "/jax/core/compile/"
"""What JAX's events of tracing, lowering and compiling are called; they nest."""


class CompileClock:
    """Tells when JAX traces and compiles, and how long it has; use as a context manager.

    What other threads compile ahead of its turn does not count: nobody waits for it.

    Args:
      changed: called with True when it begins, with False when it ends.
    """

    def __init__(self, changed: Callable[[bool], None] = lambda _: None) -> None:
        self.seconds = 0.0
        self._changed = changed
        self._under_way: list[str] = []
        self._thread = threading.get_ident()
        self._started = 0.0

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_scalar_listener(self._begins)
        jax.monitoring.register_event_duration_secs_listener(self._ends)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_scalar_listener(self._begins)
        jax.monitoring.unregister_event_duration_listener(self._ends)

    def _begins(self, event: str, value: float | int, **_: Any) -> None:
        if not event.startswith(COMPILING) or threading.get_ident() != self._thread:
            return
        self._under_way.append(event)
        if len(self._under_way) == 1:
            self._started = time.perf_counter()
            self._changed(True)

    def _ends(self, event: str, duration_secs: float, **_: Any) -> None:
        if event not in self._under_way or threading.get_ident() != self._thread:
            return
        self._under_way.remove(event)
        if not self._under_way:
            self.seconds += time.perf_counter() - self._started
            self._changed(False)


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
        start = last = (time.perf_counter(), self._clock.seconds, rounds)

        def rate(since: tuple[float, float, int], now: tuple[float, float, int]) -> float:
            """Rounds of all runs per second, in the time that nothing compiled."""
            ran = (now[0] - since[0]) - (now[1] - since[1])
            return (now[2] - since[2]) * len(cell.runs) / max(ran, 1e-9)

        def tick(done: int, evaluation: Evaluation) -> None:
            nonlocal last
            now = (time.perf_counter(), self._clock.seconds, done)
            accuracy = f"accuracy {float(np.mean(evaluation.accuracy)):.1%}"
            if self._live:
                speed = rate(last, now)
                clients = speed * cell.federation.participation.cohort(cell.clients)
                place = f"round {done}/{cell.rounds}"
                self._shown = (
                    place,
                    f" {_short(speed)} rounds/s  {_short(clients)} clients/s  {accuracy}",
                )
                text = " ".join(self._shown)
                self._progress.update(self._task, completed=before + size * done, speed=text)
            last = now
            if done < cell.rounds:
                return
            taken, compiled = now[0] - start[0], now[1] - start[1]
            speed = f"{_short(rate(start, now))} rounds/s"
            self._print(f"{head}  {accuracy}  {speed}  {taken:.1f} s")
            self._estimate(
                groups[at + 1 :], (taken - compiled) / max(done - rounds, 1) / size, compiled
            )

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
        programs = _count(len(left), "program")
        self._print(f"{_count(cells, 'cell')} in {programs}, {_count(runs, 'run')} a cell")
        self._announced = True

    def _estimate(self, left: Sequence[Group], seconds_a_round: float, compiled: float) -> None:
        """How long the rest will take if it is as the first group was."""
        if self._estimated or not left:
            return
        seconds = sum(group.rounds * seconds_a_round + compiled for group in left)
        cells = sum(len(group.cells) for group in left)
        self._print(f"about {duration(seconds)} for {_count(cells, 'more cell')}")
        self._estimated = True

    def _print(self, text: str) -> None:
        if not (self._live or self._quiet):
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


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
