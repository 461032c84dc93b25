"""The noise that an epsilon takes."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxfl.accounting.guarantee import caveats
from jaxfl.accounting.releases import PLD, RDP, deployment, worst
from jaxfl.federation import Federation
from jaxfl.privacy.base import Privacy

MOST = 1e6
"""The largest noise multiplier that is tried."""


def calibrate(
    federation: Federation,
    sizes: Sequence[int] | np.ndarray,
    rounds: int,
    *,
    accountant: str = PLD,
) -> Federation:
    """The federation with the least noise that keeps ``rounds`` rounds within its ``epsilon``.

    Itself where the noise is already given. To a thousandth of the noise multiplier, by loss
    distributions of the step that the mechanism's ``discretisation`` says.

    Raises:
      ValueError: no noise reaches that epsilon, or what it takes does not go with the clip.
    """
    privacy = federation.privacy
    if privacy.calibrated:
        return federation
    privacy.check_declared()
    target = privacy.epsilon
    assert target is not None
    run = deployment(federation, rounds, sizes)

    def with_noise(multiplier: float) -> Privacy:
        return privacy.replace(noise_multiplier=multiplier, epsilon=None)

    def epsilon(multiplier: float, kind: str, *own: int) -> float:
        """Of the client worst off; of clients of these sizes, where any are given."""
        part = dataclasses.replace(run, sizes=own or run.sizes)
        found = with_noise(multiplier).declared(part)
        return worst(found, privacy.delta, kind, privacy.discretisation)

    if epsilon(MOST, RDP) > target and epsilon(MOST, accountant) > target:
        because = "; ".join(caveats(federation, rounds))
        because = because or f"delta = {privacy.delta} is too small for {rounds} rounds"
        name = type(privacy).__name__
        raise ValueError(f"{name}: epsilon = {target} cannot be reached: {because}")

    def search(*own: int) -> float:
        # The tight accountant is dear, and needs less noise than Renyi's, seldom less than half.
        near = 1e-3 if accountant == RDP else 0.1
        least = _least(lambda m: epsilon(m, RDP, *own), target, 1.0, MOST, near)
        if accountant == RDP:
            return least
        return _least(lambda m: epsilon(m, accountant, *own), target, least / 2, least, 1e-3)

    # Most often the client with the fewest samples, whose own are drawn most often, is worst off:
    # the search looks at one size, and at one more where that is not enough for all.
    kept, left = [], list(run.sizes[::-1])
    while True:
        kept += left[-1:]
        left = left[:-1]
        least = search(*kept)
        if not left or epsilon(least, accountant) <= target:
            break
        left.sort(key=lambda n: epsilon(least, RDP, n))
    calibrated = federation.replace(privacy=with_noise(least))
    calibrated.check_privacy(len(sizes))
    return calibrated


def _least(
    epsilon: Callable[[float], float], target: float, low: float, high: float, near: float
) -> float:
    """The least multiplier that reaches the target, to a relative precision of ``near``.

    ``high`` must reach it. Epsilon falls about as a power of the multiplier, so the search is in
    the logarithms of both.
    """
    from scipy.optimize import brentq

    while low > 1e-4 and epsilon(low) <= target:
        low, high = low / 2, low

    def excess(log_multiplier: float) -> float:
        found = epsilon(math.exp(log_multiplier))
        return math.log(min(max(found, 1e-9), 1e9) / target)

    bounds = math.log(low), math.log(high)
    if excess(bounds[0]) <= 0:
        return low
    if excess(bounds[1]) >= 0:  # by rounding only: ``high`` reaches it
        return high
    root: Any = brentq(excess, *bounds, xtol=near / 2)
    return min(math.exp(root + near / 2), high)
