"""Defences ranked over the attacks of a grid."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxfl.attacks import NoAttack
from jaxfl.experiments.results import Result, half_interval

Defence = tuple[tuple[str, str], ...]
"""The labels of a cell but its attack."""


@dataclasses.dataclass(frozen=True)
class Worst:
    """The lowest accuracy over some attacks, a share; that of a run that diverged is 0."""

    accuracy: float
    interval: float
    """Half the width of its 95 % confidence interval over seeds; NaN for one seed."""
    attack: str


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A defence over all attacks, no attack among them."""

    defence: Defence
    worst: Worst
    mean: float
    """Over attacks and seeds."""
    interval: float
    """Half the width of its 95 % confidence interval over seeds; NaN for one seed."""
    knowing: Worst | None
    """Over the attacks that try the defence at hand; None where there are none."""
    cost: float
    """Milliseconds of a round of one run without an attack, its share of compilation included;
    NaN where no cell is without."""
    attacks: int
    """How many it was run against: a defence that does not apply to all is not comparable."""


def ranked(results: Sequence[Result]) -> list[Ranked]:
    """The defences of a grid over its attacks, the best by ``worst`` first."""
    groups: dict[Defence, list[Result]] = {}
    for result in results:
        if result.reason is None:
            labels = result.cell.labels.items()
            groups.setdefault(tuple((k, v) for k, v in labels if k != "attack"), []).append(result)
    found = [_ranked(defence, group) for defence, group in groups.items()]
    return sorted(found, key=lambda r: (-r.worst.accuracy, -r.mean))


def _ranked(defence: Defence, group: Sequence[Result]) -> Ranked:
    means = np.mean([_finals(result) for result in group], axis=0)
    knowing = [r for r in group if r.cell.federation.attack.probes]
    calm = [r for r in group if isinstance(r.cell.federation.attack, NoAttack)]
    costs = [1e3 * r.seconds / (r.cell.rounds * len(r.cell.runs)) for r in calm]
    return Ranked(
        defence=defence,
        worst=_worst(group),
        mean=float(np.mean(means)),
        interval=half_interval(means),
        knowing=_worst(knowing) if knowing else None,
        cost=costs[0] if costs else math.nan,
        attacks=len(group),
    )


def _worst(group: Sequence[Result]) -> Worst:
    least = min(group, key=lambda result: float(np.mean(_finals(result))))
    finals = _finals(least)
    return Worst(float(np.mean(finals)), half_interval(finals), least.cell.labels["attack"])


def _finals(result: Result) -> np.ndarray:
    return np.nan_to_num(result.finals, nan=0.0)
