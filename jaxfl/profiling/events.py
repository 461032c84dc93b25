"""Which instruction ran when: the profiler's events of one program, as arrays."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

_END = "end: "
"""What XLA's CPU runtime puts before an instruction's name where it has ended."""


@dataclasses.dataclass(frozen=True)
class Executions:
    """Every run of every instruction, in the order in which they started."""

    names: tuple[str, ...]
    index: np.ndarray
    """Of every run its instruction's place in ``names``."""
    start: np.ndarray
    """Seconds."""
    end: np.ndarray
    """Seconds."""

    def counts(self) -> dict[str, int]:
        """How often each instruction ran."""
        found = np.bincount(self.index, minlength=len(self.names))
        return dict(zip(self.names, found.tolist(), strict=True))

    def shares(self) -> dict[str, float]:
        """The seconds of each instruction; their sum is the time from the first start to the end.

        At every instant the time is divided among the instructions that run. While none runs, it
        belongs to the one that starts next: it is what starting it takes.
        """
        if not self.start.size:
            return dict.fromkeys(self.names, 0.0)
        busy = np.concatenate([self.start, self.end])
        change = np.concatenate([np.ones_like(self.start), -np.ones_like(self.end)])
        order = np.argsort(busy, kind="stable")
        times, running = busy[order], np.cumsum(change[order])
        gaps = np.diff(times, append=times[-1])
        divided = np.where(running > 0, gaps / np.maximum(running, 1), 0)
        passed = np.concatenate([[0.0], np.cumsum(divided)])
        place = np.empty(order.size, int)
        place[order] = np.arange(order.size)
        n = self.start.size
        own = passed[place[n:]] - passed[place[:n]]
        # An idle gap ends at the start of the run whose place follows it.
        idle = np.where(running > 0, 0, gaps)
        own += np.concatenate([[0.0], idle])[place[:n]]
        total = np.bincount(self.index, weights=own, minlength=len(self.names))
        return dict(zip(self.names, total.tolist(), strict=True))


def executions(profile: Any, names: Collection[str]) -> Executions:
    """The runs of these instructions in a ``ProfileData``, which holds one call of their program.

    XLA's CPU runtime marks apart where an instruction ended that others worked on: the first
    start of a name belongs to its first end. Elsewhere an event has its own length.
    """
    known = {name: i for i, name in enumerate(names)}
    started: list[tuple[float, int, float]] = []
    ended: list[tuple[float, int]] = []
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name
                if name in known:
                    started.append((event.start_ns, known[name], event.duration_ns))
                elif name.startswith(_END) and name[len(_END) :] in known:
                    ended.append((event.start_ns, known[name[len(_END) :]]))
    table = np.array(sorted(started), np.float64).reshape(-1, 3)
    start, index = table[:, 0], table[:, 1].astype(int)
    end = start + table[:, 2]
    if len(ended) == len(started):
        stops = np.array(sorted(ended), np.float64).reshape(-1, 2)
        by_name = np.argsort(index, kind="stable")
        end[by_name] = np.maximum(stops[np.argsort(stops[:, 1], kind="stable"), 0], end[by_name])
    return Executions(tuple(known), index, start * 1e-9, end * 1e-9)
