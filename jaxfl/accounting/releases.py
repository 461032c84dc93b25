"""What a run releases about the one that its mechanism protects, and what that costs."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfl.aggregators.mean import Mean
from jaxfl.federation import Federation
from jaxfl.participation import Poisson, Uniform
from jaxfl.privacy.base import GAUSSIAN, LAPLACE
from jaxfl.privacy.central import CentralPrivacy
from jaxfl.privacy.example import FIXED, ExamplePrivacy
from jaxfl.privacy.message import MessagePrivacy

RDP, PLD = "rdp", "pld"
LARGE = 30.0
"""Beyond this epsilon, which protects nobody, privacy loss distributions are not computed."""


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Releases of noised data, as dp-accounting counts them."""

    multiplier: float
    """Noise in units of the sensitivity."""
    releases: int
    """How often."""
    rate: float = 1.0
    """Probability that a release has the protected data in it."""
    overflow: float = 0.0
    """Probability that some sample of the run was truncated."""
    kind: str = GAUSSIAN

    def epsilon(self, delta: float, accountant: str = PLD) -> float:
        """Epsilon at delta; infinite where there is none.

        A run without truncation has (epsilon, delta'); truncation changes either neighbour's
        outputs with probability ``overflow``, so delta is delta' + (1 + e^epsilon) overflow.
        """
        if self.multiplier <= 0:
            return math.inf
        if self.releases == 0:
            return 0.0
        left, bound = delta, 0.0
        for _ in range(50 if self.overflow else 1):
            price = (1 + math.exp(min(bound, 700.0))) * self.overflow
            left, before = delta - price, bound
            if left <= 0:
                return math.inf
            # Renyi's epsilon is never below the tight one: it bounds the price for both.
            bound = _epsilon(self, left, RDP) if self.overflow else 0.0
            if bound - before <= 1e-9 * bound:
                break
        return _epsilon(self, left, accountant)

    @property
    def exact(self) -> bool:
        """Whether epsilon has a formula, which takes no time."""
        return self.kind == GAUSSIAN and self.rate >= 1


def worst(found: Sequence[Mechanism], delta: float, accountant: str = PLD) -> float:
    """The largest epsilon of several; infinite where there is none at all."""
    if not found:
        return math.inf
    bounds = sorted(((m.epsilon(delta, RDP), i) for i, m in enumerate(found)), reverse=True)
    if accountant == RDP:
        return bounds[0][0]
    largest = 0.0
    for bound, i in bounds:
        if bound <= largest:  # the tight epsilon is not above Renyi's
            break
        largest = max(largest, found[i].epsilon(delta, accountant))
    return largest


def mechanisms(
    federation: Federation,
    sizes: Sequence[int] | np.ndarray,
    rounds: int,
    participations: int | None = None,
) -> list[Mechanism]:
    """The releases of a run about each kind of client; none where no epsilon exists."""
    privacy = federation.privacy
    if participations is None:
        participations = -(-rounds // federation.participation.separation)
    if isinstance(privacy, MessagePrivacy):
        if privacy.clip is None:
            return []
        return [Mechanism(_multiplier(privacy), participations, kind=privacy.mechanism)]
    if isinstance(privacy, ExamplePrivacy):
        found = (_of_example(federation, privacy, int(n), participations) for n in np.unique(sizes))
        return list(dict.fromkeys(found))
    assert isinstance(privacy, CentralPrivacy)
    if not averages(federation) or federation.fairness is not None:
        return []
    return _of_client(federation, privacy, len(sizes), rounds)


def averages(federation: Federation) -> bool:
    """Whether the aggregate moves by clip / cohort at most when a client's update does."""
    return isinstance(federation.aggregator, Mean) and not federation.aggregator.weighted


def replaces(federation: Federation) -> bool:
    """Whether neighbours differ by one replaced by another, at twice the sensitivity of one
    replaced by nothing: where a batch or a cohort has a fixed size, another takes the place.
    """
    if isinstance(federation.privacy, ExamplePrivacy):
        return federation.privacy.sampling == FIXED
    central = isinstance(federation.privacy, CentralPrivacy)
    return central and isinstance(federation.participation, Uniform)


def _multiplier(privacy: Any, *, replaced: bool = False) -> float:
    return float(np.min(privacy.multiplier())) / (2 if replaced else 1)


def _of_example(
    federation: Federation, privacy: ExamplePrivacy, count: int, taken: int
) -> Mechanism:
    """One example of a client with so many: few samples are sampled often."""
    algorithm = federation.algorithm
    size = min(algorithm.batch_size or count, count)
    steps, passes = algorithm.uses(-(-count // size))
    if privacy.sampling != FIXED:
        lost = steps * taken * privacy.overflow if size < count else 0.0
        return Mechanism(_multiplier(privacy), steps * taken, size / count, lost)
    multiplier = _multiplier(privacy, replaced=True)
    if algorithm.gradients:
        return Mechanism(multiplier, taken, size / count)
    # A pass has every example in one batch: no sampling, one release.
    return Mechanism(multiplier, passes * taken)


def _of_client(
    federation: Federation, privacy: CentralPrivacy, population: int, rounds: int
) -> list[Mechanism]:
    participation = federation.participation
    multiplier = _multiplier(privacy, replaced=replaces(federation))
    poisson = isinstance(participation, Poisson)
    lost = rounds * participation.overflow if poisson else 0.0
    if privacy.correlated is not None:
        whole = Mechanism(multiplier, 1, overflow=lost)
        return [whole] if rounds <= privacy.correlated.rounds else []
    if poisson:
        return [Mechanism(multiplier, rounds, participation.rate, lost)]
    if isinstance(participation, Uniform):
        rate = participation.cohort(population) / population
        fixed = federation.byzantine_per_round
        if fixed is not None and population > federation.byzantine:
            honest = participation.cohort(population) - fixed
            rate = max(rate, honest / (population - federation.byzantine))
        return [Mechanism(multiplier, rounds, rate)]
    return [Mechanism(multiplier, -(-rounds // participation.separation))]


@functools.lru_cache(maxsize=4096)
def _epsilon(found: Mechanism, delta: float, accountant: str) -> float:
    import dp_accounting
    from absl import logging
    from dp_accounting import gaussian_mechanism, pld, rdp

    if found.exact and accountant == PLD:
        sigma = found.multiplier / math.sqrt(found.releases)
        return float(gaussian_mechanism.get_epsilon_gaussian(sigma, delta))
    if found.kind == LAPLACE:
        event: Any = dp_accounting.LaplaceDpEvent(found.multiplier)
    else:
        event = dp_accounting.GaussianDpEvent(found.multiplier)
        if found.rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(found.rate, event)
    logging.set_verbosity(logging.ERROR)  # it warns of every order that it leaves out
    renyi = rdp.RdpAccountant().compose(event, found.releases).get_epsilon(delta)
    if found.kind == LAPLACE:
        renyi = min(renyi, found.releases / found.multiplier)  # plain composition, delta = 0
    if accountant == RDP or renyi > LARGE:
        return float(renyi)
    return float(pld.PLDAccountant().compose(event, found.releases).get_epsilon(delta))
