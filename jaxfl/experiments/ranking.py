"""Defences ranked over the attacks of a grid, in each of its settings."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfl.attacks import NoAttack
from jaxfl.experiments.commit import ELSEWHERE
from jaxfl.experiments.results import Result, half_interval
from jaxfl.experiments.schema import Experiment

Labels = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Worst:
    """The lowest accuracy over some attacks, a share; a run that diverged counts 0."""

    accuracy: float
    interval: float
    """Half the width of its 95 % confidence interval over seeds; NaN for one seed."""
    attack: str


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A defence over the attacks that all defences of its ranking have."""

    defence: str
    """Its label; empty where the grid goes over attacks alone."""
    worst: Worst
    mean: float
    """Over attacks and seeds."""
    interval: float
    """Half the width of its 95 % confidence interval over seeds; NaN for one seed."""
    knowing: Worst | None
    """Over all attacks, whoever else has them, that try this defence or are made for it; None
    where there are none."""
    cost: float
    """Milliseconds that a round of one run without an attack ran, its share of evaluations
    included; NaN where no cell is without, or its time was not kept apart."""
    chosen: int
    """Its candidate of ``tune``, which all its cells here share."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The defences of one setting, the best by ``worst`` first."""

    setting: Labels
    """What its cells have in common: all labels but those of attack and defence."""
    attacks: tuple[str, ...]
    """Those that all defences here were run against: ``worst`` and ``mean`` are over them."""
    left_out: tuple[str, ...]
    """Attacks that some defences here do not have."""
    defences: tuple[Ranked, ...]
    unfinished: tuple[str, ...]
    """Defences that are not ranked, since cells of theirs are still to be run."""


def place_of(labels: Mapping[str, str]) -> tuple[Labels, str]:
    """The setting of a cell, and its defence there."""
    rest = tuple((k, v) for k, v in labels.items() if k not in ("attack", "aggregator"))
    return rest, labels.get("aggregator", "")


def rankings(experiment: Experiment, results: Sequence[Result]) -> list[Ranking]:
    """One ranking for each setting of a grid: cells of equal labels but attack and aggregator.

    No attack is none. Left out are defences of which cells of the experiment are still to be run,
    and settings in which no attack is common to all.
    """
    wanted = Counter(place_of(cell.labels) for cell in experiment.cells)
    settings: dict[Labels, dict[str, list[Result]]] = {}
    for setting, defence in wanted:
        settings.setdefault(setting, {})[defence] = []
    for result in results:
        if result.reason != ELSEWHERE:
            setting, defence = place_of(result.cell.labels)
            settings[setting][defence].append(result)
    found = []
    for setting, defences in settings.items():
        left = [name for name, cells in defences.items() if len(cells) < wanted[setting, name]]
        whole = {name: cells for name, cells in defences.items() if name not in left}
        found.append(_ranking(setting, whole, tuple(left)))
    return [ranking for ranking in found if ranking.attacks]


def _ranking(
    setting: Labels, defences: dict[str, list[Result]], unfinished: tuple[str, ...]
) -> Ranking:
    ran = {name: [r for r in cells if r.reason is None] for name, cells in defences.items()}
    ran = {defence: cells for defence, cells in ran.items() if cells}
    against = [[_attack(r) for r in cells if _attacked(r)] for cells in ran.values()]
    every = dict.fromkeys(attack for attacks in against for attack in attacks)
    common = [attack for attack in every if all(attack in had for had in against)]
    order = [_ranked(defence, cells, common) for defence, cells in ran.items()] if common else []
    return Ranking(
        setting=setting,
        attacks=tuple(common),
        left_out=tuple(attack for attack in every if attack not in common),
        defences=tuple(sorted(order, key=lambda r: (-r.worst.accuracy, -r.mean))),
        unfinished=unfinished,
    )


def _ranked(defence: str, cells: Sequence[Result], common: Sequence[str]) -> Ranked:
    counted = [r for r in cells if _attacked(r) and _attack(r) in common]
    means = np.mean([result.finals for result in counted], axis=0)
    parts = [(r, r.cell.federation) for r in cells]
    knowing = [r for r, federation in parts if federation.attack.aims_at(federation.aggregator)]
    calm = [r for r in cells if not _attacked(r)]
    costs = [1e3 * r.running / (r.cell.rounds * len(r.cell.runs)) for r in calm]
    return Ranked(
        defence=defence,
        worst=_worst(counted),
        mean=float(np.mean(means)),
        interval=half_interval(means),
        knowing=_worst(knowing) if knowing else None,
        cost=costs[0] if costs else math.nan,
        chosen=cells[0].chosen,
    )


def _worst(cells: Sequence[Result]) -> Worst:
    least = min(cells, key=lambda result: result.final)
    return Worst(least.final, least.interval, _attack(least))


def _attack(result: Result) -> str:
    return result.cell.labels.get("attack", "")


def _attacked(result: Result) -> bool:
    return not isinstance(result.cell.federation.attack, NoAttack)
