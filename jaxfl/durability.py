"""How long a backdoor outlives those who planted it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Durability(NamedTuple):
    """How long a backdoor lasts after its attackers have left, in rounds since then."""

    planted: bool
    """Whether it succeeded when they left; if not, the lifespan is 0."""
    lifespan: int
    """The last round in which its success was above the threshold."""
    first_crossing: int | None
    """The first round in which it was not; None if it never fell."""
    censored: bool
    """Whether it was still above at the end: it lives longer than was looked at."""
    area: float
    """The sum of its success over the evaluations."""


def durability(
    rounds: Int[np.ndarray, " t"],
    success: Float[np.ndarray, " t"],
    left: int,
    threshold: float = 0.5,
) -> Durability:
    """The durability of a backdoor, from its success after numbers of rounds.

    Args:
      rounds: after how many rounds it was measured, ascending; ``history.rounds``.
      success: its success then; ``history.evaluations.attack_success`` of one seed.
      left: after how many rounds the attackers left: the ``end`` of ``Onset``.
      threshold: what success counts.

    Raises:
      ValueError: nothing was measured when they left or later, or the threshold is no share.

    >>> durability(np.arange(4), np.array([0.9, 0.4, 0.6, 0.3]), left=0)
    Durability(planted=True, lifespan=2, first_crossing=1, censored=False, area=2.2)

    The lifespan: Zhang et al., "Neurotoxin: durable backdoors in federated learning", ICML 2022.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1; got {threshold}")
    after = np.asarray(rounds) >= left
    if not after.any():
        raise ValueError(f"no evaluation after round left = {left}; the last is {rounds[-1]}")
    time, measured = np.asarray(rounds)[after] - left, np.asarray(success)[after]
    above = measured > threshold
    planted = bool(above[0])
    fallen = time[~above]
    return Durability(
        planted=planted,
        lifespan=int(time[above][-1]) if planted else 0,
        first_crossing=int(fallen[0]) if len(fallen) else None,
        censored=bool(planted and above[-1]),
        area=round(float(measured.sum()), 9),
    )
