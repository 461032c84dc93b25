"""What a law of honest sets makes of a grid's accuracies and losses: expected, worst, tails, pairs.

Runs of all cells meet the same sets, first models, batches and attack noise: differences are
paired, set by set. A run that diverged has accuracy 0 and an infinite loss.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxfl.experiments.results import Result, diverged
from jaxfl.robustness import Estimate, holm, p_value, paired_difference, quantile, tail
from jaxfl.robustness.estimates import mean

LEVEL = 0.95
"""Of the quantile, and of the mass that the tail leaves out."""
Labels = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A number over honest sets, from the best kind of it to the worst."""

    expected: Estimate
    quantile: Estimate
    """Of ``LEVEL``, on the side that is bad."""
    tail: Estimate
    """The conditional value at risk: the mean over the worst ``1 - LEVEL`` of the sets."""
    worst: float


def summary_of(values: np.ndarray, *, high_is_bad: bool) -> Summary:
    """The four numbers of one value for each honest set.

    Where a value is infinite, mean and tail have no bound; the quantile has one as long as fewer
    than ``1 - LEVEL`` of the values are.

    Args:
      values: at least two, [r]; infinite only where large ones are bad.
      high_is_bad: whether large values are the bad ones, as of losses.
    """
    if not np.isfinite(values).all():
        none = Estimate(np.inf, np.nan, np.nan, np.inf)
        with np.errstate(invalid="ignore"):  # between two infinite ends there is no width
            order = quantile(values, LEVEL)
        return Summary(none, order, none, np.inf)
    if high_is_bad:
        bad = quantile(values, LEVEL), tail(values, LEVEL)
        return Summary(mean(values), *bad, float(values.max()))
    turned = (_turned(quantile(-values, LEVEL)), _turned(tail(-values, LEVEL)))
    return Summary(mean(values), *turned, float(values.min()))


def _turned(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, estimate.error, -estimate.high, -estimate.low)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a cell that ran is compared by."""

    labels: dict[str, str]
    accuracies: np.ndarray
    """Test accuracy after the last round of every run, 0 where it had diverged, [r]."""
    losses: np.ndarray
    """Test loss, infinite where it had diverged, [r]; empty where it was not kept."""

    @classmethod
    def of(cls, labels: dict[str, str], accuracies: ArrayLike, losses: ArrayLike) -> "Outcome":
        """From numbers as they were measured, some of which may have diverged."""
        lost = diverged(accuracies, losses)
        return cls(
            labels,
            np.where(lost, 0.0, accuracies),
            np.where(lost, np.inf, losses) if np.size(losses) else np.zeros(0),
        )

    @functools.cached_property
    def summary(self) -> Summary:
        """Of the accuracies."""
        return summary_of(self.accuracies, high_is_bad=False)

    @functools.cached_property
    def loss(self) -> Summary | None:
        """Of the losses; None where they were not kept."""
        return summary_of(self.losses, high_is_bad=True) if self.losses.size else None


def outcomes(results: Sequence[Result]) -> list[Outcome]:
    """Those of the cells that ran."""
    return [
        Outcome.of(r.cell.labels, r.accuracy[:, -1], r.losses[r.chosen])
        for r in results
        if r.reason is None
    ]


@dataclasses.dataclass(frozen=True)
class Standing:
    """A defence under one law, against the attack that lowers its expected accuracy most."""

    rule: str
    hardest: Outcome
    """Under that attack; over the same sets as all others'."""
    place: int
    """By expected accuracy, from 1."""
    worst_place: int
    """By the accuracy of the worst set under the attack that is worst for that."""
    worst: float
    """That accuracy."""

    @property
    def attack(self) -> str:
        """That attack; empty where the grid has one alone."""
        return self.hardest.labels.get("attack", "")


def standings(found: Sequence[Outcome]) -> dict[Labels, list[Standing]]:
    """The defences under each law (and whatever else the grid goes over), the best first.

    Only defences that ran against every attack: others are not comparable.
    """
    groups: dict[Labels, dict[str, list[Outcome]]] = {}
    for outcome in found:
        labels = dict(outcome.labels)
        labels.pop("attack", "")
        rule = labels.pop("aggregator", "")
        groups.setdefault(tuple(labels.items()), {}).setdefault(rule, []).append(outcome)
    return {labels: _standings(rules) for labels, rules in groups.items()}


def _standings(rules: dict[str, list[Outcome]]) -> list[Standing]:
    most = max(map(len, rules.values()))
    whole = {rule: found for rule, found in rules.items() if len(found) == most}
    hardest = {rule: min(r, key=lambda x: x.accuracies.mean()) for rule, r in whole.items()}
    least = {rule: min(x.accuracies.min() for x in r) for rule, r in whole.items()}
    order = sorted(whole, key=lambda rule: -hardest[rule].accuracies.mean())
    by_worst = sorted(whole, key=lambda rule: -least[rule])
    return [
        Standing(
            rule=rule,
            hardest=hardest[rule],
            place=place,
            worst_place=by_worst.index(rule) + 1,
            worst=float(least[rule]),
        )
        for place, rule in enumerate(order, 1)
    ]


@dataclasses.dataclass(frozen=True)
class Pair:
    """How much more expected accuracy one defence has than another, each under its worst attack."""

    rule: str
    than: str
    difference: Estimate
    p: float
    """Of a paired t-test, after Holm over the pairs of its law."""


def pairs(standing: Sequence[Standing]) -> list[Pair]:
    """All pairs of the defences of a law, the better first."""
    both = list(itertools.combinations(standing, 2))
    if not both:
        return []
    values = [(a.hardest.accuracies, b.hardest.accuracies) for a, b in both]
    p = holm(np.array([p_value(*pair) for pair in values]))
    return [
        Pair(a.rule, b.rule, paired_difference(*pair, np.ones(1)), float(x))
        for (a, b), pair, x in zip(both, values, p, strict=True)
    ]


def concordance(standing: Sequence[Standing]) -> float:
    """Kendall's tau of the ranking by expected and by worst accuracy: 1 where they are the same."""
    from scipy.stats import kendalltau  # slow to import

    expected = [s.hardest.summary.expected.value for s in standing]
    tau: Any = kendalltau(expected, [s.worst for s in standing])
    return float(tau[0])
