"""What a run reveals about whom its mechanism protects, and the epsilon that follows."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfl.attacks.base import NOTHING, OWN
from jaxfl.component import promises
from jaxfl.federation import Federation
from jaxfl.privacy.deployment import GAUSSIAN, LAPLACE, STEP, Deployment, Release

RDP, PLD = "rdp", "pld"
LARGE = 30.0
"""Beyond this epsilon, which protects nobody, privacy loss distributions are not computed."""


def deployment(
    federation: Federation,
    rounds: int,
    sizes: Sequence[int] | np.ndarray = (),
    participations: int | None = None,
) -> Deployment:
    """The run as its mechanism sees it.

    Args:
      federation: the parts.
      rounds: rounds in all.
      sizes: samples of each client of the population; none where only words are asked for.
      participations: in how many the most frequent client took part; as many as the
        participation allows unless given.
    """
    rule, attack = federation.aggregator, federation.attack
    taken = -(-rounds // federation.participation.separation)
    return Deployment(
        algorithm=federation.algorithm,
        participation=federation.participation,
        aggregator=repr(rule),
        averages=promises(rule, "averages"),
        noise_order=federation.noise_order,
        fairness=federation.fairness is not None,
        overheard=federation.byzantine > 0 and attack.crafts and attack.knows not in (NOTHING, OWN),
        byzantine=federation.byzantine,
        byzantine_per_round=federation.byzantine_per_round,
        rounds=rounds,
        population=len(sizes),
        sizes=tuple(int(size) for size in np.unique(sizes)),
        taken=taken if participations is None else participations,
    )


def worst(
    releases: Sequence[Release], delta: float, accountant: str = PLD, step: float = STEP
) -> float:
    """The largest epsilon of several kinds of client; infinite where there is none at all."""
    if not releases:
        return math.inf
    bounds = sorted(((epsilon(r, delta, RDP), i) for i, r in enumerate(releases)), reverse=True)
    if accountant == RDP:
        return bounds[0][0]
    largest = 0.0
    for bound, i in bounds:
        if bound <= largest:  # the tight epsilon is not above Renyi's
            break
        largest = max(largest, epsilon(releases[i], delta, accountant, step))
    return largest


def epsilon(release: Release, delta: float, accountant: str = PLD, step: float = STEP) -> float:
    """Epsilon at delta; infinite where there is none.

    A run without truncation has (epsilon, delta'); truncation changes either neighbour's outputs
    with probability ``overflow``, so delta is delta' + (1 + e^epsilon) overflow.
    """
    if release.event is None and release.multiplier <= 0:
        return math.inf
    if release.count == 0:
        return 0.0
    left, bound = delta, 0.0
    for _ in range(50 if release.overflow else 1):
        price = (1 + math.exp(min(bound, 700.0))) * release.overflow
        left, before = delta - price, bound
        if left <= 0:
            return math.inf
        # Renyi's epsilon is never below the tight one: it bounds the price for both.
        bound = _epsilon(release, left, RDP) if release.overflow else 0.0
        if bound - before <= 1e-9 * bound:
            break
    return _epsilon(release, left, accountant, step)


def exact(release: Release) -> bool:
    """Whether epsilon has a formula, which takes no time."""
    return release.event is None and release.kind == GAUSSIAN and release.rate >= 1


@functools.lru_cache(maxsize=4096)
def _epsilon(release: Release, delta: float, accountant: str, step: float = STEP) -> float:
    from absl import logging
    from dp_accounting import gaussian_mechanism, pld

    if exact(release) and accountant == PLD:
        sigma = release.multiplier / math.sqrt(release.count)
        return float(gaussian_mechanism.get_epsilon_gaussian(sigma, delta))
    logging.set_verbosity(logging.ERROR)  # it warns of every order that it leaves out
    renyi = _renyi(release).get_epsilon(delta)
    if release.event is None and release.kind == LAPLACE:
        renyi = min(renyi, release.count / release.multiplier)  # plain composition, delta = 0
    if accountant == RDP or renyi > LARGE:
        return float(renyi)
    losses = pld.PLDAccountant(value_discretization_interval=step)
    tight = losses.compose(_event(release), release.count).get_epsilon(delta)
    return float(min(tight, renyi))  # both are bounds, and a coarse step can be the worse one


@functools.lru_cache(maxsize=4096)
def _renyi(release: Release) -> Any:
    """Renyi's accountant of all releases: its orders are dear, and epsilon at a delta is not."""
    from dp_accounting import rdp

    return rdp.RdpAccountant().compose(_event(release), release.count)


def _event(release: Release) -> Any:
    """One release, as dp-accounting knows it."""
    import dp_accounting

    if release.event is not None:
        return release.event
    if release.kind == LAPLACE:
        return dp_accounting.LaplaceDpEvent(release.multiplier)
    event = dp_accounting.GaussianDpEvent(release.multiplier)
    if release.rate < 1:
        return dp_accounting.PoissonSampledDpEvent(release.rate, event)
    return event
