"""What came out of a cell of an experiment."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from jaxfl.accounting import caveats
from jaxfl.attacks import Onset
from jaxfl.durability import Durability, durability
from jaxfl.experiments.cells import Cell
from jaxfl.metrics import FairnessMetrics

FAIRNESS = tuple(f.name for f in dataclasses.fields(FairnessMetrics))  # pyright: ignore
"""What is measured of clients' accuracies at every evaluation."""
SELECTED = ("honest_selected", "malicious_selected")
SHARES = (*SELECTED, "minority_selected")
"""Of these clients, how many the rule selected: keys of a line."""
SIGNS = ("honest_positive", "honest_negative", "byzantine_positive", "byzantine_negative")
"""Shares of coordinates, counted where an experiment says ``signs``."""
HISTOGRAM = "client_histogram"
"""Key of a line: honest clients by accuracy."""
MOST_STRETCHES = 60
"""Of the rounds, in which rates of selection are averaged."""
UNEVEN = ("variance", "gini")
"""Those of ``FAIRNESS`` that are best at 0: of them a run that diverged is left out."""
DIVERGED = "diverged"


def diverged(accuracies: ArrayLike, losses: ArrayLike) -> np.ndarray:
    """Which runs had diverged after the last round: those without accuracy or finite test loss.

    Args:
      accuracies: after the last round.
      losses: test losses then, of as many runs; empty where they are not known.
    """
    lost = np.isnan(np.asarray(accuracies, float))
    return lost | ~np.isfinite(losses) if np.size(losses) else lost


def status_of(lost: np.ndarray) -> str:
    """What to say of a cell that ran, some of whose runs may have diverged, [s]."""
    count = int(np.sum(lost))
    if not count:
        return "done"
    return DIVERGED if count == len(lost) else f"{count} of {len(lost)} {DIVERGED}"


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
    shares: np.ndarray
    """Each of ``SHARES``, mean over seeds and over the rounds until they diverged, [c, 3]; NaN of a
    rule that selects nobody."""
    seconds: float
    """That the cell took, compiling included."""
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
    running: float = float("nan")
    """The part of ``seconds`` in which rounds ran; NaN where it was not kept apart."""
    reference: float = float("nan")
    """``final`` of the same cell with no attack and the plain mean; NaN if the grid has none."""
    chosen: int = 0
    """The candidate that validation chose for this defence; see ``conclusions.choose``."""

    @property
    def lost(self) -> np.ndarray:
        """Which runs had ``diverged``, [c, s]; none of a cell that did not run."""
        if not self.test.size:
            return np.zeros(self.test.shape[:-1], bool)
        return diverged(self.test[..., -1], self.losses)

    @property
    def status(self) -> str:
        """Why the cell does not apply, or ``status_of`` its runs."""
        return self.reason if self.reason is not None else status_of(self.lost[self.chosen])

    @property
    def accuracy(self) -> np.ndarray:
        """Test accuracy of the chosen candidate, [s, e]."""
        return self.test[self.chosen]

    @property
    def finals(self) -> np.ndarray:
        """Test accuracy after the last round, 0 where the run had diverged, [s]."""
        if not self.accuracy.size:
            return np.full(len(self.accuracy), np.nan)
        return np.where(self.lost[self.chosen], 0.0, self.accuracy[:, -1])

    @property
    def final(self) -> float:
        """Mean of ``finals``: by this number cells are compared everywhere."""
        return float(np.mean(self.finals))

    @property
    def impact(self) -> float:
        """Accuracy lost against no attack and no defence: Definition 3 of the SignGuard paper."""
        return self.reference - self.final

    @property
    def attack_success(self) -> float:
        """Success rate of the backdoor after the last round; NaN without one.

        Mean over the seeds that did not diverge: that a model is lost speaks for no defence.
        """
        if self.success is None or not self.success.size:
            return float("nan")
        return self._of_the_others(self.success[self.chosen][:, -1])

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
    def honest_selected(self) -> float:
        """Share of the honest clients that the rule selected, see ``shares``."""
        return float(self.shares[self.chosen, 0])

    @property
    def malicious_selected(self) -> float:
        """Share of the Byzantine clients that the rule selected, see ``shares``."""
        return float(self.shares[self.chosen, 1])

    @property
    def minority_selected(self) -> float:
        """Share of the honest clients of the minority that the rule selected, see ``shares``."""
        return float(self.shares[self.chosen, 2])

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
        """One of ``FAIRNESS`` after the last round, mean over seeds; NaN where not measured.

        A run that diverged counts 0, or, of ``UNEVEN``, not at all.
        """
        if name not in self.clients or not self.clients[name].size:
            return float("nan")
        values = self.clients[name][self.chosen][:, -1]
        if name in UNEVEN:
            return self._of_the_others(values)
        return float(np.mean(np.where(self.lost[self.chosen], 0.0, values)))

    def _of_the_others(self, values: np.ndarray) -> float:
        """Mean of what is known of the seeds that did not diverge; NaN where all did."""
        left = values[~self.lost[self.chosen] & np.isfinite(values)]
        return float(np.mean(left)) if len(left) else math.nan

    @property
    def bests(self) -> np.ndarray:
        """Best test accuracy over the run, before it diverged if it did; 0 if that was at once,
        [s].
        """
        if not self.accuracy.size:
            return np.full(len(self.accuracy), np.nan)
        return np.nan_to_num(np.fmax.reduce(self.accuracy, axis=1))

    @property
    def best(self) -> float:
        """Mean of ``bests``."""
        return float(np.mean(self.bests))

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
