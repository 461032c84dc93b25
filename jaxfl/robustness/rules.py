"""Rules made for a law: what they learn of it is computed once and given to them as arrays."""

import functools

import jax
import numpy as np

from jaxfl.aggregators import (
    Anchored,
    BarrierClipping,
    ExpectedMean,
    GibbsMean,
    LogOddsMedian,
    Pipeline,
    WeightedTrimmedMean,
)
from jaxfl.aggregators.reputation import DOUBTED_SHARE
from jaxfl.arguments import share
from jaxfl.fairness import TailRisk
from jaxfl.preaggregators import WeightedNNM
from jaxfl.robustness.allocation import barrier_portfolio
from jaxfl.robustness.law import Law, Moments
from jaxfl.robustness.uniform import UniformSets

SAMPLES = 4096
DOUBTED_CAP = 1.25
"""Times 1 / n: no client weighs more where the law may be wrong."""
SAFE_BETA = 0.49


def scenarios(law: Law, samples: int = SAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Honest sets [k, n] and their probabilities [k]: all where they are few, else drawn ones.

    >>> sets, masses = scenarios(UniformSets(n=5, byzantine=1))
    >>> sets.shape, masses.tolist()
    ((5, 5), [0.2, 0.2, 0.2, 0.2, 0.2])
    """
    sets, masses = _scenarios(law, samples, seed)
    return sets.copy(), masses.copy()


# Several rules learn of one law, which can take seconds to go through.
@functools.lru_cache(maxsize=32)
def _scenarios(law: Law, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if law.listable:
        return law.support()
    drawn = np.asarray(law.sample(jax.random.key(seed), samples))
    return drawn, np.full(samples, 1 / samples)


@functools.lru_cache(maxsize=32)
def _moments(law: Law) -> Moments:
    return law.moments()


def expected_mean(law: Law) -> ExpectedMean:
    """``ExpectedMean`` with the weights of the law.

    >>> expected_mean(UniformSets(n=4, byzantine=1)).weights.tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return ExpectedMean(weights=_moments(law).weights)


def log_odds_median(law: Law) -> LogOddsMedian:
    """``LogOddsMedian`` with the law's probabilities of honesty.

    >>> log_odds_median(UniformSets(n=4, byzantine=1)).honesty.tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    return LogOddsMedian(honesty=_moments(law).honesty)


def portfolio(
    law: Law, *, penalty: float = 0.5, cap: float | None = None, doubt: float = 0.0, seed: int = 0
) -> np.ndarray:
    """The barrier portfolio of a law, or of what is left of it with some ``doubt``.

    Args:
      law: of honest sets.
      penalty: as in ``barrier_portfolio``.
      cap: the largest weight; with doubt 1.25 / n where None is given.
      doubt: the share of a uniform law, of 0.3 n Byzantine clients, that is mixed in.
      seed: of scenarios that are drawn.

    Raises:
      ValueError: a doubt outside [0, 1], a cap below 1 / n.

    >>> portfolio(UniformSets(n=4, byzantine=1)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    doubt = share(doubt, "doubt")
    n, weights = law.clients, _moments(law).weights
    sets, masses = scenarios(law, seed=seed)
    if doubt > 0:
        other = UniformSets(n=n, byzantine=min(int(np.ceil(DOUBTED_SHARE * n)), (n - 1) // 2))
        more, shares = scenarios(other, seed=seed + 1)
        sets = np.concatenate([sets, more])
        masses = np.concatenate([(1 - doubt) * masses, doubt * shares])
        weights = (1 - doubt) * weights + doubt / n
        cap = DOUBTED_CAP / n if cap is None else cap
    return barrier_portfolio(
        sets,
        masses,
        weights,
        penalty=penalty,
        cap=cap,
        orbits=np.unique(law.orbits(), return_inverse=True)[1],
    )


def barrier_clipping(
    law: Law,
    *,
    penalty: float = 0.5,
    cap: float | None = None,
    doubt: float = 0.0,
    hard: bool = False,
    seed: int = 0,
) -> BarrierClipping:
    """``BarrierClipping`` with the barrier portfolio of a law.

    With ``doubt`` 0.3 it is the robust variant: whoever is Byzantine, f clients hold at most
    1.25 f / n of the weight. ``hard``: the law's budget is a fact, so that the radius may be taken
    from all mass but the 0.999 quantile of what is Byzantine, rather than from half.

    Raises: as ``portfolio``.

    >>> barrier_clipping(UniformSets(n=4, byzantine=1)).beta.item()
    0.49
    """
    omega = portfolio(law, penalty=penalty, cap=cap, doubt=doubt, seed=seed)
    beta = SAFE_BETA
    if hard:
        beta = min(SAFE_BETA, mass_quantile(law, omega, 0.999, seed))
    return BarrierClipping(weights=omega, beta=beta, budget=_budget(law))


def weighted_trimming(law: Law, *, quantile: float = 0.95, seed: int = 0) -> Anchored:
    """``WeightedNNM`` and ``WeightedTrimmedMean`` with the barrier portfolio, anchored.

    What is cut off is the ``quantile`` of the Byzantine mass, below 1/2. Under a law that does not
    tell clients apart this is NNM and the trimmed mean with the quantile of the number of
    Byzantine clients.

    Raises: as ``mass_quantile``.

    >>> weighted_trimming(UniformSets(n=4, byzantine=1)).rule.rule.trim.item()
    0.25
    """
    omega = portfolio(law, seed=seed)
    trim = min(SAFE_BETA, mass_quantile(law, omega, quantile, seed))
    rule = Pipeline(
        pre=(WeightedNNM(trim=trim, weights=omega),),
        rule=WeightedTrimmedMean(trim=trim, weights=omega),
    )
    return Anchored(rule=rule, budget=_budget(law))


def gibbs_mean(law: Law, *, temperature: float = 0.1) -> GibbsMean:
    """``GibbsMean`` over all sets of a law that can be listed.

    Raises:
      ValueError: more than 20 clients, or a law without a formula.

    >>> gibbs_mean(UniformSets(n=4, byzantine=1)).sets.shape
    (4, 4)
    """
    sets, masses = law.support()
    return GibbsMean(
        f=int((~sets).sum(axis=1).max()), sets=sets, probabilities=masses, temperature=temperature
    )


def tail_risk(law: Law, *, alpha: float = 0.9, seed: int = 0) -> TailRisk:
    """``TailRisk`` over the sets of a law: all where they are few, else drawn ones.

    Args:
      law: of honest sets.
      alpha: from 0, the expected objective, to below 1, the worst set.
      seed: of sets that are drawn.

    Raises:
      ValueError: alpha is out of its range.

    >>> tail_risk(UniformSets(n=4, byzantine=1), alpha=0.5).sets.shape
    (4, 4)
    """
    sets, masses = scenarios(law, seed=seed)
    return TailRisk(alpha=alpha, sets=sets, probabilities=masses)


def mass_quantile(law: Law, omega: np.ndarray, quantile: float, seed: int = 0) -> float:
    """The least m for which the Byzantine mass ``omega(B)`` is at most m with this probability.

    Raises:
      ValueError: the quantile is no number from 0 to 1.

    >>> mass_quantile(UniformSets(n=4, byzantine=1), np.full(4, 1.0), 0.95)
    1.0
    """
    quantile = share(quantile, "quantile")
    sets, masses = scenarios(law, seed=seed)
    held = np.matmul(~sets, omega)
    order = np.argsort(held, kind="stable")
    reached = np.cumsum(masses[order])
    place = np.searchsorted(reached, quantile * reached[-1] - 1e-12)
    return float(held[order][min(place, len(held) - 1)])


def _budget(law: Law) -> int:
    """What the anchor may rely on: less than half."""
    return min(law.most_byzantine, (law.clients - 1) // 2)
