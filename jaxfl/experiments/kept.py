"""What was really run, small enough for a repository: ``results/NAME``.

    experiment.toml    what was run
    environment.json   versions, machine, date, command
    cells.jsonl        one line a cell: accuracies of every seed, rates of selection, seconds

Made from the folder of a finished run; the rounds' own log stays there.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.experiments.finished import read_results
from jaxfl.experiments.results import Result
from jaxfl.experiments.schema import read
from jaxfl.files import write_aside


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell's outcome; accuracies by seed."""

    labels: dict[str, str]
    status: str
    seeds: list[int]
    best: list[float]
    """Best test accuracy over the run."""
    last: list[float]
    """Test accuracy after the last round."""
    success: list[float]
    """Of the backdoor after the last round; empty without one."""
    honest_selected: float
    malicious_selected: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Kept:
    """A run as it is kept."""

    table: dict[str, Any]
    """The experiment."""
    environment: dict[str, Any]
    cells: list[Cell]


def keep(folder: Path, into: Path) -> None:
    """Writes what is kept of the finished run in a folder.

    Raises:
      ValueError: it holds no finished run, or is damaged.
      OSError: it cannot be written.
    """
    _, results = read_results(folder)
    into.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_plain(dataclasses.asdict(cell_of(result)))) for result in results]
    write_aside(into / "experiment.toml", (folder / "experiment.toml").read_bytes())
    environment = _without_places(json.loads((folder / "environment.json").read_bytes()))
    write_aside(into / "environment.json", json.dumps(environment, indent=1).encode() + b"\n")
    write_aside(into / "cells.jsonl", "".join(f"{line}\n" for line in lines).encode())


def read_kept(path: Path) -> Kept:
    """What is kept in a folder.

    Raises:
      ValueError: something is missing or damaged: the file, and the line where there is one.
    """
    cells = []
    try:
        lines = (path / "cells.jsonl").read_text().splitlines()
        environment = json.loads((path / "environment.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no results that were kept: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            cells.append(Cell(**_numbers(json.loads(line))))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path / 'cells.jsonl'}, line {number} is damaged: {error}") from None
    return Kept(read(path / "experiment.toml"), environment, cells)


def cell_of(result: Result) -> Cell:
    """What is kept of a result."""
    ran = bool(result.accuracy.size)
    success = result.success
    return Cell(
        labels=dict(result.cell.labels),
        status=result.status,
        seeds=list(result.cell.seeds),
        best=_rounded(np.fmax.reduce(result.accuracy, axis=1)) if ran else [],
        last=_rounded(result.finals) if ran else [],
        success=_rounded(success[result.chosen][:, -1]) if ran and success is not None else [],
        honest_selected=round(result.honest_selected, 6),
        malicious_selected=round(result.malicious_selected, 6),
        seconds=round(result.seconds, 2),
    )


def _without_places(environment: dict[str, Any]) -> dict[str, Any]:
    """An environment as others may read it: without the folders of the machine."""
    words = [word for word in environment.get("command", []) if os.sep not in word]
    kept = {name: value for name, value in environment.items() if name != "modules"}
    return kept | {"command": ["jaxfl", *(word for word in words if word != "--out")]}


def _rounded(values: np.ndarray | Sequence[float]) -> list[float]:
    return [round(float(value), 6) for value in values]


def _plain(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Null as NaN again."""

    def number(value: Any) -> Any:
        return math.nan if value is None else value

    return {
        key: [number(inner) for inner in value] if isinstance(value, list) else number(value)
        for key, value in line.items()
    }
