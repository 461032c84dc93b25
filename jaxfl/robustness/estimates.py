"""Estimates over drawn honest sets, with their uncertainty: ratios of means, pairs, tails."""

import dataclasses

import numpy as np

from jaxfl.arguments import share
from jaxfl.robustness.law import Numbers

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number, its standard error, and a 95 % interval.

    >>> Estimate(value=1.0, error=0.1, low=0.8, high=1.2)
    Estimate(value=1.0, error=0.1, low=0.8, high=1.2)
    """

    value: float
    error: float
    low: float
    high: float


def ratio_of_means(numerators: Numbers, denominators: Numbers) -> Estimate:
    """``E num / E den`` from pairs, never the mean of ratios, which single sets would rule.

    The standard error is that of the delta method, ``sd(num - ratio den) / (sqrt R mean den)``;
    the interval is Student's.

    Raises:
      ValueError: fewer than two pairs.

    >>> ratio_of_means(np.array([1.0, 3.0]), np.array([2.0, 2.0])).value
    1.0
    """
    above, below = (np.asarray(part, np.float64) for part in (numerators, denominators))
    value = float(above.mean() / below.mean())
    return _of_mean(above - value * below, float(below.mean()), value)


def mean(values: Numbers) -> Estimate:
    """The mean of one number for each honest set, with Student's interval.

    >>> mean(np.array([1.0, 3.0])).value
    2.0
    """
    return ratio_of_means(values, np.ones(1))


def paired_difference(one: Numbers, other: Numbers, denominators: Numbers) -> Estimate:
    """``(E one - E other) / E den`` of two rules on the same sets, gradients and attack noise.

    >>> paired_difference(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.ones(2)).value
    -1.0
    """
    apart = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return ratio_of_means(apart, denominators)


def p_value(one: Numbers, other: Numbers) -> float:
    """Of a two-sided paired t-test that two rules do the same.

    >>> p_value(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    1.0
    """
    from scipy.stats import t

    apart = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    error = apart.std(ddof=1) / np.sqrt(len(apart))
    if error == 0:
        return 1.0 if apart.mean() == 0 else 0.0
    return float(2 * t.sf(abs(apart.mean()) / error, len(apart) - 1))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values of several comparisons, adjusted so that any false finding has their level.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def quantile(values: Numbers, level: float) -> Estimate:
    """An order statistic, and an interval between two of them by the binomial distribution.

    Raises:
      ValueError: the level is no number from 0 to 1.

    >>> quantile(np.arange(1.0, 101.0), 0.5).value
    50.0
    """
    from scipy.stats import binom

    level = share(level, "quantile: level")
    ordered, n = np.sort(np.asarray(values)), len(values)
    low, high = binom.ppf([0.025, 0.975], n, level).astype(int)
    place = min(max(int(np.ceil(level * n)) - 1, 0), n - 1)
    inside = ordered[max(low - 1, 0)], ordered[min(high, n - 1)]
    return Estimate(float(ordered[place]), float(np.ptp(inside) / 3.92), *map(float, inside))


def tail(values: Numbers, alpha: float, seed: int = 0) -> Estimate:
    """The mean of the worst 1 - alpha of the values, with an interval by 1000 resamples.

    >>> round(tail(np.arange(1.0, 101.0), 0.9).value, 6)
    95.5
    """
    n = len(values)
    taken = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    count = max(n * (1 - alpha), 1e-9)
    mass = np.clip(count - np.arange(n), 0, 1)[::-1]
    mass /= mass.sum()
    value = float(np.sort(np.asarray(values, np.float64)) @ mass)
    drawn = np.sort(np.asarray(values, np.float64)[taken], axis=1) @ mass
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(drawn.std(ddof=1)), float(low), float(high))


def _of_mean(values: np.ndarray, unit: float, centre: float) -> Estimate:
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise ValueError(f"a standard error needs at least two values; got {n}")
    error = float(np.std(values, ddof=1) / np.sqrt(n) / unit)
    reach = float(t.ppf(0.975, n - 1)) * error
    return Estimate(centre, error, centre - reach, centre + reach)
