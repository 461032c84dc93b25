"""What a profile has measured: plain data, for notebooks and for JSON."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The most that a device was measured to do.

    >>> jaxfl.profiling.Peaks(device="cpu", cores=2, flops=1e11, bytes=1e10).cores
    2
    """

    device: str
    cores: int
    flops: float
    """Operations a second in a large float32 product of matrices."""
    bytes: float
    """Bytes a second, read and written, in changing a large array in place."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a round; all numbers are those of one round.

    >>> jaxfl.profiling.Phase("attack", seconds=0.5, flops=1e9, bytes=1e8).flop_rate
    2000000000.0
    """

    name: str
    seconds: float
    flops: float
    """Operations on floating-point numbers."""
    bytes: float
    """Read and written by the phase's instructions, as if nothing stayed in a cache."""

    @property
    def flop_rate(self) -> float:
        """Operations a second; 0 where no time was seen."""
        return self.flops / self.seconds if self.seconds > 0 else 0.0

    @property
    def byte_rate(self) -> float:
        """Bytes a second; 0 where no time was seen."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The round over the number of clients. ``jaxfl.profiling.scaling`` makes it.

    >>> found = jaxfl.profiling.Scaling((10, 100), seconds=(0.1, 1.0), memory=(2**20, 2**20))
    >>> round(found.exponent, 3)
    1.0
    """

    clients: tuple[int, ...]
    seconds: tuple[float, ...]
    """Of one round, by number of clients."""
    memory: tuple[int, ...]
    """Bytes that the program holds, by number of clients."""

    @property
    def exponent(self) -> float:
        """The b of ``seconds = a n^b``, by least squares on logarithms; NaN for fewer than two."""
        return _exponent(self.clients, self.seconds)

    @property
    def memory_exponent(self) -> float:
        """The same for memory."""
        return _exponent(self.clients, self.memory)

    def table(self) -> list[dict[str, Any]]:
        """A row for each number of clients."""
        return [
            {
                "clients": n,
                "seconds": t,
                "rounds_per_second": 1 / t,
                "clients_per_second": n / t,
                "memory_bytes": m,
            }
            for n, t, m in zip(self.clients, self.seconds, self.memory, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a round goes. ``jaxfl.profile``, which has an example, makes it."""

    phases: tuple[Phase, ...]
    """In the order of a round; the last is what belongs to no phase."""
    seconds: float
    """Of one round by the clock, no profiler running: the median of several calls."""
    compile_seconds: float
    """Of the round's program and the evaluation's, traced and compiled anew."""
    memory: int
    """Bytes of the round's program: arguments, results and intermediate results."""
    peaks: Peaks
    clients: int
    """That take part in a round."""
    parameters: int
    rounds: int
    """In the block that was measured."""
    chunk: int
    """Clients vmapped at once."""
    spanning: float
    """Seconds in fusions with parts of several phases; they count for that of their result."""
    tracing: float
    """Seconds by which the profiler made a round longer; taken off the phases again."""
    scaling: Scaling | None = None

    @property
    def total(self) -> float:
        """The sum of the phases' seconds."""
        return sum((phase.seconds for phase in self.phases), 0.0)

    def phase(self, name: str) -> Phase:
        """The phase of this name.

        Raises:
          KeyError: there is none.
        """
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)

    def table(self) -> list[dict[str, Any]]:
        """A row for each phase, and one for the whole round: numbers, in SI units."""
        whole = Phase(
            "whole round",
            self.seconds,
            sum((phase.flops for phase in self.phases), 0.0),
            sum((phase.bytes for phase in self.phases), 0.0),
        )
        return [
            {
                "phase": phase.name,
                "seconds": phase.seconds,
                "share": phase.seconds / self.seconds,
                "flops": phase.flops,
                "bytes": phase.bytes,
                "flops_per_second": phase.flop_rate,
                "bytes_per_second": phase.byte_rate,
                "share_of_peak_flops": phase.flop_rate / self.peaks.flops,
                "share_of_peak_bytes": phase.byte_rate / self.peaks.bytes,
            }
            for phase in (*self.phases, whole)
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``json.dumps``; an exponent that is not known is None: JSON has no NaN."""
        own = dataclasses.asdict(self) | {"phases": self.table()[:-1]}
        own["whole"] = self.table()[-1]
        if self.scaling is not None:
            exponents = {
                "exponent": self.scaling.exponent,
                "memory_exponent": self.scaling.memory_exponent,
            }
            known = {name: None if np.isnan(x) else x for name, x in exponents.items()}
            own["scaling"] = {"points": self.scaling.table()} | known
        return own


def _exponent(sizes: tuple[int, ...], values: tuple[float, ...] | tuple[int, ...]) -> float:
    if len(set(sizes)) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
