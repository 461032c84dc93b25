"""What came out of an experiment: from the lines of its log to one result per cell."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxfl.accounting import caveats
from jaxfl.attacks import Onset
from jaxfl.durability import Durability, durability
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.log import Line
from jaxfl.metrics import FairnessMetrics

FAIRNESS = tuple(f.name for f in dataclasses.fields(FairnessMetrics))  # pyright: ignore
"""What is measured of clients' accuracies at every evaluation."""
SELECTED = ("honest_selected", "malicious_selected")
SIGNS = ("honest_positive", "honest_negative", "byzantine_positive", "byzantine_negative")
"""Shares of coordinates, counted where an experiment says ``signs``."""
HISTOGRAM = "client_histogram"
"""Key of a line: honest clients by accuracy."""
MOST_STRETCHES = 60
"""Of the rounds, in which rates of selection are averaged."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One cell's outcome. Arrays have axes candidate (of ``tune``), seed, evaluation.

    Where honest sets are drawn, an entry of the second axis is a seed and a set (``Cell.draws``).
    """

    cell: Cell
    reason: str | None
    """Why the cell does not apply, or None."""
    rounds: np.ndarray
    """Rounds after which the model was evaluated, [e]."""
    test: np.ndarray
    """Test accuracy, [c, s, e]; NaN where the model had diverged."""
    validation: np.ndarray | None
    """Accuracy on the samples held out, [c, s, e]."""
    losses: np.ndarray
    """Test loss after the last round, [c, s]; NaN where the model had diverged."""
    honest_selected: float
    """Share of the honest clients that the rule selected, mean over seeds and rounds."""
    malicious_selected: float
    seconds: float
    success: np.ndarray | None = None
    """Share of triggered test samples taken for the backdoor's target, [c, s, e]; None without."""
    epsilons: np.ndarray | None = None
    """Of the noised releases after the last round, the largest of the seeds, [c]; infinite where
    nothing bounds it, None without a mechanism."""
    clients: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Each of ``FAIRNESS`` of the clients' accuracies, [c, s, e]; empty where not measured."""
    rates: np.ndarray | None = None
    """Share of the honest and of the malicious clients that the rule selected, [c, 2, r]: means
    over seeds and over r stretches of the rounds; NaN of a rule that selects nobody."""
    signs: np.ndarray | None = None
    """Shares of ``SIGNS`` over the same stretches, [c, 4, r]; None where not counted."""
    histograms: np.ndarray | None = None
    """Honest clients of all seeds by accuracy after the last round, [c, bins]; None where not
    measured."""
    minority_selected: float = float("nan")
    reference: float = float("nan")
    """``final`` of the same cell with no attack and the plain mean; NaN if the grid has none."""
    chosen: int = 0
    """The candidate that validation chose for this defence; see ``conclusions.choose``."""

    @property
    def lost(self) -> np.ndarray:
        """Whether the test loss was not finite at the end, [c, s]."""
        return ~np.isfinite(self.losses)

    @property
    def status(self) -> str:
        """Either "done", "diverged", or why the cell does not apply."""
        if self.reason is not None:
            return self.reason
        return "diverged" if self.lost[self.chosen].any() else "done"

    @property
    def accuracy(self) -> np.ndarray:
        """Test accuracy of the chosen candidate, [s, e]."""
        return self.test[self.chosen]

    @property
    def finals(self) -> np.ndarray:
        """Test accuracy after the last round, [s]."""
        return self.accuracy[:, -1] if self.accuracy.size else np.full(len(self.accuracy), np.nan)

    @property
    def final(self) -> float:
        """Mean of ``finals``."""
        return float(np.mean(self.finals))

    @property
    def impact(self) -> float:
        """Accuracy lost against no attack and no defence: Definition 3 of the SignGuard paper."""
        return self.reference - self.final

    @property
    def attack_success(self) -> float:
        """Success rate of the backdoor after the last round, mean over seeds; NaN without one."""
        if self.success is None or not self.success.size:
            return float("nan")
        return float(np.mean(self.success[self.chosen][:, -1]))

    @property
    def durabilities(self) -> list[Durability]:
        """How long the backdoor lasted with each seed; empty of an attack that does not end."""
        attack, last = self.cell.federation.attack, max(self.rounds, default=0)
        if self.success is None or not isinstance(attack, Onset):
            return []
        if attack.end is None or attack.end > last:
            return []
        return [durability(self.rounds, seed, attack.end) for seed in self.success[self.chosen]]

    @property
    def lifespan(self) -> float:
        """Mean over seeds of the rounds that the backdoor lasted; NaN of an attack without an end.

        Where it was still there at the end it is a lower bound: see ``outlived``.
        """
        lasted = [found.lifespan for found in self.durabilities]
        return float(np.mean(lasted)) if lasted else math.nan

    @property
    def planted(self) -> float:
        """Share of the seeds in which the backdoor succeeded when its attackers left."""
        found = [found.planted for found in self.durabilities]
        return float(np.mean(found)) if found else math.nan

    @property
    def outlived(self) -> float:
        """Share of the seeds in which the backdoor was still there after the last round."""
        found = [found.censored for found in self.durabilities]
        return float(np.mean(found)) if found else math.nan

    @property
    def selection(self) -> np.ndarray | None:
        """``rates`` of the chosen candidate, [2, r]."""
        return None if self.rates is None else self.rates[self.chosen]

    @property
    def selection_rounds(self) -> np.ndarray:
        """The last round of each stretch of ``selection``, [r]."""
        stretches = _stretches(self.cell)
        return -(-(np.arange(stretches) + 1) * self.cell.rounds // stretches)

    @property
    def histogram(self) -> np.ndarray | None:
        """``histograms`` of the chosen candidate, [bins]."""
        return None if self.histograms is None else self.histograms[self.chosen]

    @property
    def epsilon(self) -> float:
        """``epsilons`` of the chosen candidate; NaN without a mechanism."""
        return math.nan if self.epsilons is None else float(self.epsilons[self.chosen])

    @property
    def guaranteed(self) -> str:
        """``yes``, or ``no`` where the mechanism does not cover all; empty without one."""
        if self.epsilons is None:
            return ""
        found = caveats(self.cell.federation, self.cell.rounds)
        return "yes" if math.isfinite(self.epsilon) and not found else "no"

    def of_clients(self, name: str) -> float:
        """One of ``FAIRNESS`` after the last round, mean over seeds; NaN where not measured."""
        if name not in self.clients or not self.clients[name].size:
            return float("nan")
        return float(np.mean(self.clients[name][self.chosen][:, -1]))

    @property
    def best(self) -> float:
        """Best test accuracy over the run, before it diverged if it did; mean over seeds."""
        if not self.accuracy.size:
            return float("nan")
        return float(np.mean(np.fmax.reduce(self.accuracy, axis=1)))

    @property
    def selected(self) -> float:
        """Test accuracy at the round whose validation accuracy is best, mean over seeds."""
        if self.validation is None or not self.accuracy.size:
            return float("nan")
        at = np.argmax(np.nan_to_num(self.validation[self.chosen], nan=-1.0), axis=1)
        return float(np.mean(np.take_along_axis(self.accuracy, at[:, None], axis=1)))

    @property
    def spread(self) -> float:
        """Standard deviation of ``finals``; NaN for one seed, which says nothing of it."""
        return float(np.std(self.finals, ddof=1)) if len(self.finals) > 1 else math.nan

    @property
    def interval(self) -> float:
        """Half the width of the 95 % confidence interval of ``final`` (Student's t)."""
        return half_interval(self.finals)


def half_interval(values: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of a mean; NaN for fewer than two values."""
    n = len(values)
    if n < 2:
        return float("nan")
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))


def result_of(cell: Cell, lines: Sequence[Line], seconds: float) -> Result:
    """The result that a finished cell's lines amount to."""
    ends = [line for line in lines if "test_accuracy" in line]
    rounds = sorted({line["round"] for line in ends})
    draws = {draw: place for place, draw in enumerate(cell.draws)}
    shape = (len(cell.federations), len(draws), len(rounds))
    last = [line for line in ends if "guaranteed_epsilon" in line]

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
        honest_selected=_mean(lines, "honest_selected"),
        malicious_selected=_mean(lines, "malicious_selected"),
        seconds=seconds,
        success=table("attack_success") if "attack_success" in ends[-1] else None,
        epsilons=_largest(last, len(cell.federations)) if last else None,
        clients={
            name: table(f"client_{name}") for name in FAIRNESS if f"client_{name}" in ends[-1]
        },
        rates=_in_stretches(cell, lines, SELECTED),
        signs=_in_stretches(cell, lines, SIGNS) if SIGNS[0] in lines[0] else None,
        histograms=_histograms(cell, lines),
        minority_selected=_mean(lines, "minority_selected"),
    )


def not_run(cell: Cell, reason: str) -> Result:
    """The result of a cell that does not apply, or was left out."""
    runs, nan = (len(cell.federations), len(cell.draws)), float("nan")
    nothing = np.zeros((*runs, 0))
    return Result(cell, reason, np.zeros(0), nothing, None, np.zeros(runs), nan, nan, 0.0)


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


def _stretches(cell: Cell) -> int:
    return min(cell.rounds, MOST_STRETCHES)


def _in_stretches(cell: Cell, lines: Sequence[Line], names: Sequence[str]) -> np.ndarray:
    """Means over seeds and over stretches of the rounds, [c, name, r]; NaN of what is unknown."""
    stretches = _stretches(cell)
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


def _mean(lines: Sequence[Line], name: str) -> float:
    values = np.array([_number(line.get(name)) for line in lines])
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
