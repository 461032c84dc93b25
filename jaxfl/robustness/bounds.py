"""What is proved of robustness under a law: floors below which no rule is, and ceilings of some."""

import math

import numpy as np

from jaxfl.robustness.law import Moments


def oblivious_floor(moments: Moments) -> float:
    """The least ``sup_x E_S |F(x) - mean_S|^2 / E_S Var_S`` of any rule F: of the expected mean.

    The largest eigenvalue of ``(M - w w^T, diag(w) - M)`` on vectors orthogonal to 1, with w and M
    the weights and overlaps. Clients of weight 0 do not count.

    >>> from jaxfl.robustness import UniformSets
    >>> round(oblivious_floor(UniformSets(n=7, byzantine=2).moments()) * 14, 6)
    1.0
    """
    from scipy.linalg import eigh, null_space

    counted = moments.weights > 0
    w = moments.weights[counted]
    overlaps = moments.overlaps[np.ix_(counted, counted)]
    if len(w) < 2:
        return 0.0
    basis = null_space(np.ones((1, len(w))))
    numerator = basis.T @ (overlaps - np.outer(w, w)) @ basis
    denominator = basis.T @ (np.diag(w) - overlaps) @ basis
    return float(eigh(numerator, denominator, eigvals_only=True)[-1])


def uniform_floor(n: int, f: int) -> float:
    """``f / (n - f)``: no rule has a smaller adaptive ratio under the uniform law of f Byzantine.

    >>> uniform_floor(20, 4)
    0.25
    """
    return f / (n - f)


def worst_floor(n: int, f: int) -> float:
    """``f / (n - 2f)``: no rule has a smaller worst ratio over all sets of n - f.

    >>> round(worst_floor(7, 2), 3)
    0.667
    """
    return f / (n - 2 * f)


def set_floors(sets: np.ndarray) -> np.ndarray:
    """``max over S' of |S| / |S and S'| - 1`` for each set S [k, n]: no rule has a smaller ratio.

    Infinite where a set is disjoint from S: then no rule is robust at all.

    >>> set_floors(~np.eye(4, dtype=bool)).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    rows = np.asarray(sets, np.float32)
    common = np.concatenate([(block @ rows.T).min(axis=1) for block in _blocks(rows)])
    with np.errstate(divide="ignore"):
        return rows.sum(axis=1, dtype=np.float64) / common - 1


def overlap_ceiling(sets: np.ndarray) -> float:
    """``r = max |S| / |S and S'| - 1`` over pairs, the larger size counting.

    The minimum variance set among ``sets`` has a ratio of at most 4 r, and ``GibbsMean`` at
    temperature T of at most ``2 r (2 + T log 1 / mu_S)``.

    >>> overlap_ceiling(~np.eye(4, dtype=bool))
    0.5
    """
    rows = np.asarray(sets, np.float32)
    sizes = rows.sum(axis=1)
    worst = 0.0
    with np.errstate(divide="ignore"):
        for block in _blocks(rows):
            larger = np.maximum(block.sum(axis=1)[:, None], sizes[None])
            worst = max(worst, float((larger.astype(float) / (block @ rows.T)).max() - 1))
    return worst


def gibbs_ceilings(sets: np.ndarray, masses: np.ndarray, temperature: float) -> np.ndarray:
    """``2 r (2 + temperature log 1 / mu_S)`` for each set: no ratio of ``GibbsMean`` is larger.

    >>> gibbs_ceilings(~np.eye(4, dtype=bool), np.full(4, 0.25), 0.0).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    surprise = -np.log(np.asarray(masses) / np.sum(masses))
    return 2 * overlap_ceiling(sets) * (2 + temperature * surprise)


def median_ceiling(n: int, honest: int) -> float:
    """``(2h / (2h - n))^2``: no ratio of the geometric median of n rows, h honest, is larger.

    Raises:
      ValueError: no honest majority.

    >>> median_ceiling(4, 3)
    9.0
    """
    if 2 * honest <= n:
        raise ValueError(f"the median's bound needs an honest majority; got {honest} of {n}")
    return (2 * honest / (2 * honest - n)) ** 2


def anchored_ceiling(n: int, honest: int, budget: int) -> float:
    """Of any answer that is anchored with this budget, whatever the rule believes.

    ``2 k + 2 (1 + k) h / (h - n + budget + 1)`` with k the ceiling of the geometric median.

    >>> anchored_ceiling(4, 3, 1)
    78.0
    """
    k = median_ceiling(n, honest)
    return 2 * k + 2 * (1 + k) * honest / (honest - n + budget + 1)


def breakdown_floor(sets: np.ndarray, masses: np.ndarray) -> float:
    """``(1 - TV(law of S, law of its complement)) / 2``: the least probability of a breakdown.

    With this probability at least, in one of two worlds that differ by an arbitrary v, attackers
    move any rule by half of v.

    >>> breakdown_floor(np.array([[True, False], [False, True]]), np.array([0.7, 0.3]))
    0.3
    """
    known = dict(zip((row.tobytes() for row in np.asarray(sets, bool)), masses, strict=True))
    others = [known.get(row.tobytes(), 0.0) for row in ~np.asarray(sets, bool)]
    return float(np.minimum(masses, others).sum() / 2)


def breakdown_probability(weights: np.ndarray, sets: np.ndarray, masses: np.ndarray) -> float:
    """The probability that honest clients do not hold more than half of the weight.

    >>> breakdown_probability(np.ones(3), ~np.eye(3, dtype=bool), np.full(3, 1 / 3))
    0.0
    """
    honest = np.asarray(sets, np.float64) @ weights
    lost = 2 * honest <= np.sum(weights) * (1 + 1e-12)
    return float(np.sum(np.asarray(masses)[lost]))


def dissimilarity(dispersions: np.ndarray, squared_norms: np.ndarray) -> tuple[float, float]:
    """(G, B) of ``dispersion <= G^2 + B^2 |mean|^2`` along a trajectory.

    Of all lines on or above every point, with slope and intercept at least 0, that with the least
    sum of squared distances. Where ``B^2 >= (n - 2f) / f`` no rule can guarantee anything.

    Args:
      dispersions: mean squared distance of the honest gradients from their mean, per round.
      squared_norms: of that mean.

    Raises:
      ValueError: the two are not of one length, or hold a number below 0.

    >>> dissimilarity(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0]))
    (1.0, 1.0)
    """
    d, s = np.asarray(dispersions, np.float64), np.asarray(squared_norms, np.float64)
    if d.shape != s.shape or d.ndim != 1 or not len(d) or not (d >= 0).all() or not (s >= 0).all():
        raise ValueError(
            "dissimilarity needs as many dispersions as squared norms, none below 0; got shapes "
            f"{d.shape} and {s.shape}"
        )
    slopes = [0.0]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (d[:, None] - d[None, :]) / (s[:, None] - s[None, :])
    slopes.extend(between[np.isfinite(between) & (between > 0)])
    # Through one point only, the slope of least squares given that the line passes there.
    for di, si in zip(d, s, strict=True):
        away = s - si
        if away @ away > 0:
            slopes.append(max(0.0, float(away @ (d - di) / (away @ away))))
    if (s[d > 0] > 0).all() and (d > 0).any():
        slopes.append(float((d[d > 0] / s[d > 0]).max()))
    candidates = np.unique(slopes)
    intercepts = np.maximum((d[None] - candidates[:, None] * s[None]).max(axis=1), 0)
    costs = np.square(intercepts[:, None] + candidates[:, None] * s[None] - d[None]).sum(axis=1)
    best = int(np.argmin(costs))
    return math.sqrt(intercepts[best]), math.sqrt(candidates[best])


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """So few rows at once that their products with all rows fit anywhere."""
    return np.array_split(rows, max(1, len(rows) ** 2 // 2**24))
