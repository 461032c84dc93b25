"""The noise that an epsilon takes."""

import math
from collections.abc import Callable, Sequence

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

    Itself where the noise is already given. To a thousandth of the noise multiplier.

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

    def reached(multiplier: float, kind: str) -> bool:
        noisy = with_noise(multiplier)
        found = noisy.privacy.releases(deployment(noisy, rounds, sizes))
        return worst(found, privacy.delta, kind) <= target

    if not reached(MOST, RDP) and not reached(MOST, accountant):
        because = "; ".join(caveats(federation, rounds))
        because = because or f"delta = {privacy.delta} is too small for {rounds} rounds"
        name = type(privacy).__name__
        raise ValueError(f"{name}: epsilon = {target} cannot be reached: {because}")
    least = _least(lambda m: reached(m, RDP), 1.0, MOST)
    if accountant != RDP:
        # The tight accountant needs less noise than Renyi's, seldom less than half of it.
        least = _least(lambda m: reached(m, accountant), least / 2, least)
    calibrated = with_noise(least)
    calibrated.check_privacy(len(sizes))
    return calibrated


def _least(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The least multiplier, to a thousandth, that reaches the target, as ``high`` does."""
    while low > 1e-4 and reached(low):
        low, high = low / 2, low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
