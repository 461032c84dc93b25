"""Weights of clients that keep little mass in Byzantine hands: the barrier portfolio."""

import numpy as np

from jaxfl.aggregators.portfolio import BORDER

PRECISION, MOST_STEPS = 1e-9, 20_000


def barrier(mass: np.ndarray) -> np.ndarray:
    """``(m / (1 - 2m))^2`` of Byzantine masses m up to 0.4, then its tangent: convex and smooth.

    >>> barrier(np.array([0.0, 0.25, 0.4, 0.5])).round(6).tolist()
    [0.0, 0.25, 4.0, 14.0]
    """
    inside = np.minimum(mass, BORDER)
    return (inside / (1 - 2 * inside)) ** 2 + barrier_slope(mass) * (mass - inside)


def barrier_slope(mass: np.ndarray) -> np.ndarray:
    """The derivative of ``barrier``."""
    inside = np.minimum(mass, BORDER)
    return 2 * inside / (1 - 2 * inside) ** 3


def barrier_portfolio(
    sets: np.ndarray,
    masses: np.ndarray,
    weights: np.ndarray,
    *,
    penalty: float = 0.5,
    cap: float | None = None,
    orbits: np.ndarray | None = None,
) -> np.ndarray:
    """The omega that minimises ``penalty E psi(omega(B)) + |omega - weights|^2`` on the simplex.

    psi is ``barrier``, omega(B) the mass of the Byzantine clients. The first term is what
    corruption costs a median of these weights, the second the bias where nobody attacks. Convex;
    solved by accelerated projected gradients, once and offline.

    Args:
      sets: masks of honest clients, [k, n].
      masses: their probabilities, [k].
      weights: of the expected objective, [n].
      penalty: of corruption; at 0 the answer is ``weights``.
      cap: the largest weight.
      orbits: labels of clients that the law does not tell apart, whose weights are then equal.

    Raises:
      ValueError: a cap below 1 / n, a penalty below 0, or shapes that do not fit.

    >>> sets = np.array([[True, True, True], [True, True, False]])
    >>> barrier_portfolio(sets, np.array([0.5, 0.5]), np.full(3, 1 / 3)).round(3).tolist()
    [0.403, 0.403, 0.193]
    """
    k, n = np.shape(sets)
    if np.shape(masses) != (k,) or np.shape(weights) != (n,):
        raise ValueError(
            f"the barrier portfolio needs masses [{k}] and weights [{n}] for sets [{k}, {n}]; got "
            f"shapes {np.shape(masses)} and {np.shape(weights)}"
        )
    if not penalty >= 0:
        raise ValueError(f"the barrier portfolio needs penalty >= 0; got {penalty}")
    if cap is not None and not cap * n >= 1:
        raise ValueError(
            f"the barrier portfolio needs cap >= 1 / n, or the weights cannot sum to 1; got cap = "
            f"{cap}, n = {n}"
        )
    outside = (~np.asarray(sets, bool)).astype(np.float64)

    def gradient(omega: np.ndarray) -> np.ndarray:
        slopes = masses * barrier_slope(outside @ omega)
        return penalty * slopes @ outside + 2 * (omega - weights)

    top = 1.0 if cap is None else cap
    omega = _minimise(gradient, lambda point: on_simplex(point, top), weights)
    if orbits is not None:
        sizes = np.bincount(orbits)
        omega = (np.bincount(orbits, weights=omega)[orbits]) / sizes[orbits]
    return omega / omega.sum()


def on_simplex(point: np.ndarray, top: float) -> np.ndarray:
    """The nearest vector of numbers from 0 to ``top`` that sum to 1."""
    low, high = point.min() - top - 1, point.max()
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(point - middle, 0, top).sum() > 1:
            low = middle
        else:
            high = middle
    return np.clip(point - (low + high) / 2, 0, top)


def _minimise(gradient, project, start: np.ndarray) -> np.ndarray:
    """Accelerated projected gradients with backtracking, begun anew where the value rises.

    A step is short enough where the slopes at its ends say that the convex function lies below
    its quadratic bound there. Differences of values would say so too, but near the least value
    they are all rounding, and steps would be halved for ever.
    """
    point = ahead = project(start)
    step, momentum = 1.0, 1.0
    for _ in range(MOST_STEPS):
        slope = gradient(ahead)
        while True:
            new = project(ahead - step * slope)
            moved, slope_there = new - ahead, gradient(new)
            if (slope_there - slope) @ moved <= moved @ moved / (2 * step):
                break
            step /= 2
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        if (ahead - new) @ (new - point) > 0:
            ahead, momentum = new, 1.0
        else:
            ahead, momentum = new + (momentum - 1) / following * (new - point), following
        point = new
        if np.abs(point - project(point - slope_there)).max() < PRECISION:
            break
        step *= 1.1
    return point
