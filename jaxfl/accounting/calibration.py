"""The noise that an epsilon takes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxfl.accounting.guarantee import caveats
from jaxfl.accounting.releases import PLD, RDP, deployment, worst
from jaxfl.federation import Federation

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

    def with_noise(multiplier: float) -> Federation:
        noisy = privacy.replace(noise_multiplier=multiplier, epsilon=None)
        return federation.replace(privacy=noisy)

    def epsilon(multiplier: float, kind: str) -> float:
        noisy = with_noise(multiplier)
        found = noisy.privacy.declared(deployment(noisy, rounds, sizes))
        return worst(found, privacy.delta, kind, privacy.discretisation)

    if epsilon(MOST, RDP) > target and epsilon(MOST, accountant) > target:
        because = "; ".join(caveats(federation, rounds))
        because = because or f"delta = {privacy.delta} is too small for {rounds} rounds"
        name = type(privacy).__name__
        raise ValueError(f"{name}: epsilon = {target} cannot be reached: {because}")
    # The tight accountant is dear, and needs less noise than Renyi's, seldom less than half of it.
    near = 1e-3 if accountant == RDP else 0.1
    least = _least(lambda m: epsilon(m, RDP), target, 1.0, MOST, near)
    if accountant != RDP:
        least = _least(lambda m: epsilon(m, accountant), target, least / 2, least, 1e-3)
    calibrated = with_noise(least)
    calibrated.check_privacy(len(sizes))
    return calibrated


def _least(
    epsilon: Callable[[float], float], target: float, low: float, high: float, near: float
) -> float:
    """The least multiplier, but for a share of ``near``, that reaches the target as ``high`` does.

    Epsilon falls about as a power of the multiplier: both are searched by their logarithms.
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
