"""A folder with the trace of a block of rounds, for Perfetto and for XProf."""

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.files import write_aside
from jaxfl.profiling.costs import Cost
from jaxfl.profiling.events import Executions

NAME = "trace.json.gz"
"""Of the file that Perfetto opens."""
_PROCESS = 10**6
"""The number of the row of phases among the processes: none of the profiler's own is as large."""


def check_folder(path: Path, what: str) -> None:
    """Raises ValueError, naming what it is for, where a folder cannot be made or written to.

    It leaves none behind that was not there: what is asked for may still be refused.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"{what}: the folder {os.fspath(path)} cannot be written: {error.strerror}"
        ) from error
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_trace(folder: Path, runs: Executions, costs: Mapping[str, Cost]) -> Path:
    """Adds a row of phases to the profiler's own events, and writes both as one file."""
    own = max(folder.glob("plugins/profile/*/*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
    with gzip.open(own, "rb") as file:
        trace = json.load(file)
    trace.pop("metadata", None)  # Perfetto does not know it
    trace["traceEvents"] = [x for x in trace["traceEvents"] if x] + spans(runs, costs)
    path = folder / NAME
    write_aside(path, gzip.compress(json.dumps(trace).encode(), 1))
    return path


def spans(runs: Executions, costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """One event for each stretch of time in which all that starts is of one phase."""
    phases = [costs[name].phase for name in runs.names]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(phases))}
    of_run = np.array([numbers[name] for name in phases])[runs.index]
    first = np.flatnonzero(np.diff(of_run, prepend=-1))
    # Where runs of two phases overlap, the earlier stretch ends as the later one starts.
    last = np.append(runs.start[first[1:]], runs.end.max(initial=0.0))
    names = list(numbers)
    head = {"ph": "M", "pid": _PROCESS, "name": "process_name", "args": {"name": "phases"}}
    return [head] + [
        {
            "ph": "X",
            "pid": _PROCESS,
            "tid": 1,
            "name": names[of_run[i]],
            "ts": float(runs.start[i] * 1e6),
            "dur": float((end - runs.start[i]) * 1e6),
        }
        for i, end in zip(first, last, strict=True)
    ]
