"""From the lines of a log to one result per cell."""

import math
from collections.abc import Sequence

import numpy as np

from jaxfl.experiments.cells import Cell
from jaxfl.experiments.log import Line
from jaxfl.experiments.results import (
    FAIRNESS,
    HISTOGRAM,
    SELECTED,
    SHARES,
    SIGNS,
    Result,
    stretches_of,
)


def result_of(
    cell: Cell, lines: Sequence[Line], seconds: float, running: float = math.nan
) -> Result:
    """The result that a finished cell's lines amount to."""
    ends = [line for line in lines if "test_accuracy" in line]
    rounds = sorted({line["round"] for line in ends})
    draws = {draw: place for place, draw in enumerate(cell.draws)}
    shape = (len(cell.federations), len(draws), len(rounds))
    last = [line for line in ends if "guaranteed_epsilon" in line]
    trained, stretches = _trained(lines), stretches_of(cell)

    def table(name: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        for line in ends:
            place = draws[line["seed"], line.get("set", 0)]
            at = (line["candidate"], place, rounds.index(line["round"]))
            values[at] = _number(line[name])
        return values

    return Result(
        cell=cell,
        reason=None,
        rounds=np.asarray(rounds),
        test=table("test_accuracy"),
        validation=table("validation_accuracy") if cell.validation else None,
        losses=table("test_loss")[..., -1],
        shares=_in_stretches(cell, trained, SHARES, 1)[..., 0],
        seconds=seconds,
        running=running,
        success=table("attack_success") if "attack_success" in ends[-1] else None,
        epsilons=_largest(last, len(cell.federations)) if last else None,
        clients={
            name: table(f"client_{name}") for name in FAIRNESS if f"client_{name}" in ends[-1]
        },
        rates=_in_stretches(cell, trained, SELECTED, stretches),
        signs=_in_stretches(cell, lines, SIGNS, stretches) if SIGNS[0] in lines[0] else None,
        histograms=_histograms(cell, lines),
    )


def not_run(cell: Cell, reason: str) -> Result:
    """The result of a cell that does not apply, or was left out."""
    runs = (len(cell.federations), len(cell.draws))
    nothing, shares = np.zeros((*runs, 0)), np.full((len(cell.federations), len(SHARES)), np.nan)
    return Result(cell, reason, np.zeros(0), nothing, None, np.zeros(runs), shares, 0.0)


def _trained(lines: Sequence[Line]) -> list[Line]:
    """Lines of every run up to its last round with a finite training loss: until it diverged."""

    def run(line: Line) -> tuple[int, int, int]:
        return line["candidate"], line["seed"], line.get("set", 0)

    last: dict[tuple[int, int, int], int] = {}
    for line in lines:
        if math.isfinite(_number(line.get("loss", 0.0))):
            last[run(line)] = max(last.get(run(line), 0), line["round"])
    return [line for line in lines if line["round"] <= last.get(run(line), 0)]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _largest(lines: Sequence[Line], candidates: int) -> np.ndarray:
    """The largest epsilon of each candidate. JSON has no infinity: null is no epsilon."""
    largest = np.zeros(candidates)
    for line in lines:
        value = line["guaranteed_epsilon"]
        largest[line["candidate"]] = max(
            largest[line["candidate"]], math.inf if value is None else value
        )
    return largest


def _in_stretches(
    cell: Cell, lines: Sequence[Line], names: Sequence[str], stretches: int
) -> np.ndarray:
    """Means over seeds and over stretches of the rounds, [c, name, r]; NaN of what is unknown."""
    candidates = np.array([line["candidate"] for line in lines])
    places = np.array([(line["round"] - 1) * stretches // cell.rounds for line in lines])
    rates = np.full((len(cell.federations), len(names), stretches), np.nan)
    for which, name in enumerate(names):
        values = np.array([_number(line.get(name)) for line in lines])
        known = np.isfinite(values)
        total, count = np.zeros((2, len(cell.federations), stretches))
        np.add.at(total, (candidates[known], places[known]), values[known])
        np.add.at(count, (candidates[known], places[known]), 1)
        np.divide(total, count, out=rates[:, which], where=count > 0)
    return rates


def _histograms(cell: Cell, lines: Sequence[Line]) -> np.ndarray | None:
    known = [line for line in lines if HISTOGRAM in line]
    if not known:
        return None
    total = np.zeros((len(cell.federations), len(known[0][HISTOGRAM])), int)
    for line in known:
        total[line["candidate"]] += line[HISTOGRAM]
    return total
