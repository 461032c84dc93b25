"""What a run shows while it runs, and how fast it is without the time that something compiled."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax.monitoring
import numpy as np

from jaxfl.evaluation import Evaluation
from jaxfl.record import RoundRecord

Tell = Callable[[Evaluation, RoundRecord], None]
Progress = bool | Tell | None
"""True: a bar. A function: called after every block with its evaluation and records."""

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


class Pace:
    """How fast a run is, by a clock that runs while nothing compiles.

    Args:
      clock: in use as a context manager.
      rounds: done so far.
      runs: how many one program does at once; each of their rounds counts.
      cohort: clients in a round.
    """

    def __init__(self, clock: CompileClock, rounds: int, runs: int, cohort: int) -> None:
        self._clock, self._runs, self._cohort = clock, runs, cohort
        self._start = self._last = self._now(rounds)

    def tick(self, done: int) -> str:
        """The speed since the last tick, to be read."""
        last, self._last = self._last, self._now(done)
        rounds = self._rate(last)
        return f"{_short(rounds)} rounds/s  {_short(rounds * self._cohort)} clients/s"

    def whole(self) -> tuple[str, float, float]:
        """The speed up to the last tick, to be read, and the seconds that it ran and compiled."""
        start, last = self._start, self._last
        return f"{_short(self._rate(start))} rounds/s", last[0] - start[0], last[1] - start[1]

    def _now(self, rounds: int) -> tuple[float, float, int]:
        return time.perf_counter() - self._clock.seconds, self._clock.seconds, rounds

    def _rate(self, since: tuple[float, float, int]) -> float:
        ran = self._last[0] - since[0]
        return (self._last[2] - since[2]) * self._runs / max(ran, 1e-9)


@contextlib.contextmanager
def follow(progress: Progress, rounds: int, runs: int, cohort: int) -> Iterator[Tell]:
    """The function to tell of every block of a run.

    Args:
      progress: what to show.
      rounds: to be done.
      runs: that the program does at once.
      cohort: clients in a round.
    """
    if not progress:
        yield lambda evaluation, record: None
    elif callable(progress):
        yield progress
    else:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        place, text = f"round 0/{rounds}", "running"
        with Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        ) as bar:
            task = bar.add_task(f"{place}  {text}", total=rounds)

            def show(compiling: bool) -> None:
                bar.update(task, description=f"{place}  {'compiling' if compiling else text}")

            def tell(evaluation: Evaluation, record: RoundRecord) -> None:
                nonlocal place, text
                done = int(bar.tasks[0].completed) + record.loss.shape[-1]
                accuracy = f"test accuracy {float(np.mean(evaluation.accuracy)):.1%}"
                place, text = f"round {done}/{rounds}", f"{pace.tick(done)}  {accuracy}"
                bar.update(task, completed=done)
                show(False)

            with CompileClock(show) as clock:
                pace = Pace(clock, 0, runs, cohort)
                yield tell


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
