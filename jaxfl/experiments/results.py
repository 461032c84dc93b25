"""What came out of a cell of an experiment."""

import dataclasses
import math

import numpy as np

from jaxfl.accounting import caveats
from jaxfl.attacks import Onset
from jaxfl.durability import Durability, durability
from jaxfl.experiments.cells import Cell
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
        stretches = stretches_of(self.cell)
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


def stretches_of(cell: Cell) -> int:
    """Into how many stretches its rounds are divided for rates of selection."""
    return min(cell.rounds, MOST_STRETCHES)
