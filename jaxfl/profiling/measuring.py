"""Compiles a program anew, times it, and records what of it ran when."""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.profiler import ProfileData, ProfileOptions

from jaxfl.profiling.costs import OTHER, PHASES, Cost, costs_of
from jaxfl.profiling.events import Executions, executions
from jaxfl.profiling.result import Phase
from jaxfl.profiling.trace import write_trace

REPEATS = 5
"""Calls that are timed, and calls that are recorded, in turn."""
BRIEF = 1.0
"""Seconds in which more calls are made: the time of a short one is less certain."""
RECORDING = 3e-6
"""Seconds that recording one run of an instruction takes at most; on a quiet machine 0.3 to 1.4
microseconds were found."""
ENOUGH = 20.0
"""Seconds after which no call is repeated again."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, with what each of its instructions costs."""

    compiled: Any
    costs: dict[str, Cost]
    seconds: float
    """To trace and compile it."""

    @property
    def memory(self) -> int:
        """Bytes of its arguments, results and intermediate results."""
        found = self.compiled.memory_analysis()
        return (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            + found.temp_size_in_bytes
            - found.alias_size_in_bytes
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """One call of a program."""

    phases: tuple[Phase, ...]
    seconds: float
    """By the clock, no profiler running."""
    spanning: float
    tracing: float


def compiled(
    function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()
) -> Program:
    """Traces and compiles a function.

    Not from the compilation cache: a program from there has the scopes of whoever put it there,
    and does not tell how long compiling takes.
    """
    with _no_cache():
        start = time.perf_counter()
        program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
        seconds = time.perf_counter() - start
    return Program(program, costs_of(program.as_text() or ""), seconds)


def timed(call: Callable[[], Any]) -> float:
    """The median of the seconds of several calls, after a first one that does not count."""
    _clock(call)
    times: list[float] = []
    while _more(len(times), sum(times, 0.0)):
        times.append(_clock(call))
    return statistics.median_low(times)


def measured(program: Program, call: Callable[[], Any], trace: Path | None = None) -> Measured:
    """Times calls of a program, records as many, and divides the time among the phases.

    Of the recorded calls the one of median length counts, brought to the median length of the
    others. To record a run of an instruction takes time: what the call took longer, divided by
    the number of runs and at most ``RECORDING``, is taken off each. What then remains of the
    difference is the machine's other work, and all phases are scaled by it alike.

    Args:
      program: the program.
      call: runs it once.
      trace: a folder for the trace of the last call.

    Raises:
      ValueError: the profiler has no events of this program's instructions.
    """
    names = [name for name, cost in program.costs.items() if not cost.control]
    _clock(call)
    plain: list[float] = []
    recorded: list[tuple[float, Executions]] = []
    started = time.perf_counter()
    while _more(len(plain), time.perf_counter() - started):
        plain.append(_clock(call))
        recorded.append(_recorded(call, names))
    if trace is not None:
        _, runs = _recorded(call, names, trace)
        write_trace(trace, runs, program.costs)
    seconds = statistics.median_low(plain)
    wall, runs = sorted(recorded, key=lambda pair: pair[0])[(len(recorded) - 1) // 2]
    if not runs.start.size:
        raise ValueError("profile: the profiler of this version of JAX shows no instructions here")
    recording = min(max(wall - seconds, 0.0) / runs.start.size, RECORDING)
    tracing = recording * runs.start.size
    scale = seconds / (wall - tracing)
    return Measured(
        phases=_phases(program.costs, runs, recording, scale),
        seconds=seconds,
        spanning=scale * _spanning(program.costs, runs),
        tracing=tracing,
    )


def _more(done: int, elapsed: float) -> bool:
    """Whether to repeat a call: short ones more often, long ones at least once."""
    return done == 0 or elapsed < (ENOUGH if done < REPEATS else BRIEF)


def _phases(
    costs: dict[str, Cost], runs: Executions, recording: float, scale: float
) -> tuple[Phase, ...]:
    """The phases of one recorded call; to record a run of an instruction took so many seconds."""
    seconds, flops, moved = (dict.fromkeys((*PHASES, OTHER), 0.0) for _ in range(3))
    counts = runs.counts()
    for name, share in runs.shares().items():
        cost, count = costs[name], counts[name]
        seconds[cost.phase] += share - recording * count
        flops[cost.phase] += cost.flops * count
        moved[cost.phase] += cost.bytes * count
    return tuple(Phase(p, scale * max(seconds[p], 0.0), flops[p], moved[p]) for p in seconds)


def _spanning(costs: dict[str, Cost], runs: Executions) -> float:
    return sum((share for name, share in runs.shares().items() if costs[name].spans), 0.0)


def _recorded(
    call: Callable[[], Any], names: list[str], folder: Path | None = None
) -> tuple[float, Executions]:
    """The seconds of a call while the profiler runs, and what ran in it."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxfl-")))
        with jax.profiler.trace(folder, profiler_options=options):
            seconds = _clock(call)
        found = folder.glob("plugins/profile/*/*.xplane.pb")
        latest = max(found, key=lambda path: path.stat().st_mtime)
        return seconds, executions(ProfileData.from_file(str(latest)), names)


def _clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
