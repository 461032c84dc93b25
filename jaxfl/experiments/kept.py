"""What was really run, small enough for a repository: ``results/NAME``.

    experiment.toml    what is run
    environment.json   of each run: versions, machine, date, command
    cells.jsonl        one line a cell: accuracies and losses of every seed (and honest set), rates
                       of selection, seconds

Made from the folders of one run, or of several that did the cells of a large grid in turn; the
rounds' own log stays there.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from jaxfl.experiments.commit import ELSEWHERE
from jaxfl.experiments.conclusions import conclude, settled
from jaxfl.experiments.difference import SAID, differences
from jaxfl.experiments.finished import read_done
from jaxfl.experiments.over_sets import Outcome
from jaxfl.experiments.results import DIVERGED, Result, diverged, status_of
from jaxfl.experiments.schema import Experiment, parse, read
from jaxfl.files import write_aside

PLACES = ("--out", "--results", "--data-dir", "--write")
"""Options of commands that name a place on the machine."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell's outcome; accuracies and losses by seed, and by honest set where sets are drawn."""

    labels: dict[str, str]
    status: str
    seeds: list[int]
    best: list[float]
    """Best test accuracy over the run; 0, or NaN of older ones, where it diverged at once."""
    last: list[float]
    """Test accuracy after the last round; NaN where the run had diverged."""
    success: list[float]
    """Of the backdoor after the last round; empty without one."""
    honest_selected: float
    """It, and the next, are NaN where nobody is selected or an older jaxfl kept a cell that
    diverged."""
    malicious_selected: float
    seconds: float
    run: int = 0
    """Which of the environments."""
    planted: float = math.nan
    """Share of the seeds in which the backdoor succeeded when its attackers left."""
    lifespan: float = math.nan
    """Rounds that it lasted then, mean over seeds."""
    outlived: float = math.nan
    """Share of the seeds in which it was there after the last round."""
    running: float = math.nan
    """The part of the seconds in which rounds ran."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Test loss after the last round. It, and all below, is empty where an older jaxfl kept the
    cell."""
    candidate: int = 0
    """Which of those of ``tune`` was chosen."""
    clients: dict[str, float] = dataclasses.field(default_factory=dict)
    """Each of ``FAIRNESS`` that was measured, mean over seeds."""
    epsilon: list[float] = dataclasses.field(default_factory=list)
    """One number, NaN where nothing bounds it; empty without a mechanism."""

    @property
    def finals(self) -> np.ndarray:
        """Test accuracy after the last round, 0 where the run had diverged."""
        return np.nan_to_num(self.last)

    @property
    def final(self) -> float:
        """Mean of ``finals``; NaN where nothing ran."""
        return float(np.mean(self.finals)) if self.last else math.nan


@dataclasses.dataclass(frozen=True)
class Kept:
    """A run as it is kept."""

    table: dict[str, Any]
    """The experiment."""
    environments: list[dict[str, Any]]
    cells: list[Cell]
    damaged: tuple[str, ...] = ()
    """Of each line of cells that could not be read which, and why."""

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What was asked for; of it the cells here are a part."""
        return parse("kept", self.table)

    @property
    def outcomes(self) -> list[Outcome]:
        """What cells that ran are compared by over honest sets."""
        return [Outcome.of(c.labels, c.last, c.losses) for c in self.cells if c.last]

    @property
    def whole(self) -> bool:
        """Whether all cells are here."""
        return len(self.cells) == len(self.experiment.cells)

    @property
    def was_whole(self) -> bool:
        """Whether all cells are here, or would be if no line were damaged."""
        return len(self.cells) + len(self.damaged) >= len(self.experiment.cells)

    @property
    def rounds(self) -> int:
        """How many were asked for, of all cells and seeds together."""
        return sum(cell.rounds * len(cell.draws) for cell in self.experiment.cells)

    def done(self, experiment: Experiment) -> set[int]:
        """Numbers of the experiment's cells that are here, with all that ``tune`` chose them by."""
        here = {_key(cell.labels) for cell in self.cells}
        cells = experiment.cells
        return settled(cells, [i for i, cell in enumerate(cells) if _key(cell.labels) in here])

    def check_same(self, table: Mapping[str, Any], where: Path) -> None:
        """Refuses to mix the cells of two experiments.

        Raises:
          ValueError: with the first thing in which the other one differs.
        """
        for name, here, there in differences(self.table, table):
            if name in SAID:
                continue
            raise ValueError(
                f"{where} keeps another experiment: {name} is {here} there, {there} here; "
                "--results or --as chooses another folder"
            )


def is_kept(folder: Path) -> bool:
    """Whether anything is kept there."""
    return (folder / "cells.jsonl").is_file()


def keep(folder: Path, into: Path) -> None:
    """Keeps the cells that are done of the run in a folder, beside those that were kept before.

    Nothing is written where none is done. Of cells that share a choice of ``tune``, all are kept
    or none: over some of them it could be another one.

    Raises:
      ValueError: the folder holds no run, or is damaged; another experiment is kept already.
      OSError: it cannot be written.
    """
    experiment, results = read_done(folder)
    environment = _without_places(json.loads((folder / "environment.json").read_bytes()))
    ran = [i for i, result in results.items() if result.reason != ELSEWHERE]
    fresh = conclude([results[i] for i in sorted(settled(experiment.cells, ran))])
    if not fresh:
        return
    kept = read_kept(into) if is_kept(into) else Kept(experiment.table, [], [])
    kept.check_same(experiment.table, into)
    cells = {_key(cell.labels): cell for cell in kept.cells}
    begun = list(map(_begun, kept.environments))
    run = begun.index(_begun(environment)) if _begun(environment) in begun else len(begun)
    environments = [*kept.environments[:run], environment, *kept.environments[run + 1 :]]
    for result in fresh:
        cells[_key(result.cell.labels)] = dataclasses.replace(cell_of(result), run=run)
    ordered = [
        dataclasses.replace(cells[key], labels=dict(cell.labels))
        for cell in experiment.cells
        if (key := _key(cell.labels)) in cells
    ]
    lines = [json.dumps(_plain(dataclasses.asdict(cell))) for cell in ordered]
    into.mkdir(parents=True, exist_ok=True)
    write_aside(into / "experiment.toml", (folder / "experiment.toml").read_bytes())
    write_aside(into / "environment.json", json.dumps(environments, indent=1).encode() + b"\n")
    write_aside(into / "cells.jsonl", "".join(f"{line}\n" for line in lines).encode())


def read_kept(path: Path) -> Kept:
    """What is kept in a folder; lines of cells that are damaged are left out, and named.

    Raises:
      ValueError: something is missing or damaged, and no cell can be read without it.
    """
    cells, damaged = [], []
    try:
        table = read(path / "experiment.toml")
        lines = (path / "cells.jsonl").read_bytes().splitlines()
        environments = json.loads((path / "environment.json").read_bytes())
        if not isinstance(environments, list) or not all(isinstance(e, dict) for e in environments):
            raise ValueError("environment.json is no list of tables")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no results that were kept: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            cells.append(_cell(json.loads(line), len(environments)))
        except (ValueError, RecursionError) as error:
            damaged.append(f"{path / 'cells.jsonl'}, line {number} is damaged: {error}")
    if not cells:
        raise ValueError(damaged[0] if damaged else f"{path / 'cells.jsonl'} is empty")
    return Kept(table, environments, cells, tuple(damaged))


def _cell(line: Any, runs: int) -> Cell:
    """A cell from its line; refuses what is not of the right kind, or of none of so many runs."""
    if not isinstance(line, dict):
        raise ValueError("it is no table")
    hints, given = get_type_hints(Cell), _numbers(line)
    needed = {
        f.name
        for f in dataclasses.fields(Cell)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    for name in [*given, *sorted(needed.difference(given))]:
        if name not in hints or name not in given:
            raise ValueError(f"{name} is {'missing' if name in hints else 'not known'}")
        if not _is(given[name], hints[name]):
            raise ValueError(f"{name} is {given[name]!r}")
    cell = Cell(**given)
    if cell.run not in range(runs):
        raise ValueError(f"environment.json has no run {cell.run}")
    if not cell.last:
        return cell
    lost = diverged(cell.last, cell.losses)
    if cell.status == DIVERGED and not lost.any():
        lost[:] = True  # an older jaxfl knew by losses that it did not keep
    last = [math.nan if gone else share for gone, share in zip(lost, cell.last, strict=True)]
    status, cell = status_of(lost), dataclasses.replace(cell, last=last)
    if cell.losses or not lost.any():
        return dataclasses.replace(cell, status=status)
    # By their losses others may have diverged; shares were also of the rounds after that.
    status = status if lost.all() else f"at least {status}"
    return dataclasses.replace(
        cell, status=status, honest_selected=math.nan, malicious_selected=math.nan
    )


def _is(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the kind of a cell's field."""
    of = get_args(hint)
    if isinstance(value, dict):
        return get_origin(hint) is dict and all(_is(v, of[1]) for v in value.values())
    if isinstance(value, list):
        return get_origin(hint) is list and all(_is(v, of[0]) for v in value)
    return not of and isinstance(value, int | float if hint is float else hint)


def cell_of(result: Result) -> Cell:
    """What is kept of a result."""
    ran = bool(result.accuracy.size)
    success, lost = result.success, result.lost[result.chosen]
    return Cell(
        labels=dict(result.cell.labels),
        status=result.status,
        seeds=list(result.cell.seeds),
        best=_rounded(result.bests) if ran else [],
        last=_rounded(np.where(lost, np.nan, result.finals)) if ran else [],
        success=_rounded(success[result.chosen][:, -1]) if ran and success is not None else [],
        honest_selected=round(result.honest_selected, 6),
        malicious_selected=round(result.malicious_selected, 6),
        seconds=round(result.seconds, 2),
        running=round(result.running, 3),
        planted=result.planted,
        lifespan=result.lifespan,
        outlived=result.outlived,
        losses=_rounded(result.losses[result.chosen]) if ran else [],
        candidate=result.chosen,
        clients={name: round(result.of_clients(name), 6) for name in result.clients},
        epsilon=[] if result.epsilons is None else _rounded([result.epsilon]),
    )


def _key(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """The same in any order of the axes."""
    return frozenset(labels.items())


def _begun(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run was begun, wherever it went on."""
    return {name: value for name, value in environment.items() if name != "resumed"}


def _without_places(environment: Mapping[str, Any]) -> dict[str, Any]:
    """An environment as others may read it: without the folders of the machine."""
    kept = {name: value for name, value in environment.items() if name != "modules"}
    if "resumed" in kept:
        kept["resumed"] = list(map(_without_places, kept["resumed"]))
    return kept | {"command": _command(environment.get("command", []))}


def _command(words: Sequence[str]) -> list[str]:
    """A command without its folders; what was set stays as it is."""
    kept, before = ["jaxfl"], ""
    for word in words[1:]:
        option = word.partition("=")[0]
        if before == "--set" or option == "--set":
            kept.append(word)
        elif before not in PLACES and option not in PLACES:
            kept.append(Path(word).name if os.sep in word else word)
        before = word
    return kept


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

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: number(inner) for key, inner in value.items()}
        return [number(inner) for inner in value] if isinstance(value, list) else number(value)

    return {key: numbers(value) for key, value in line.items()}
