"""What a paper states, beside what came out.

    [[findings]]
    claim = "TNBS is above NBS"
    better = { aggregator = "TNBS" }
    than = { aggregator = "NBS" }
    why = "why it need not come out so"

compares every two cells whose labels are those, and that differ in nothing else. Axes that only
``than`` names make one cell the measure of many: ``than = { aggregator = "Mean", attack = "No
attack" }`` is compared with TNBS under every attack, if ``better`` names the aggregator alone.
``where = { attack = { not = "No attack" } }`` leaves out the cells without one. In place of either
table may stand a number that all cells of the other are compared with: ``than = 95.0``.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxfl.experiments.results import FAIRNESS, SELECTED, Result
from jaxfl.experiments.schema import Experiment
from jaxfl.registry import unknown

KEYS = ("claim", "better", "than", "metric", "where", "by", "why")
MANY = 8
"""With more comparisons than these, a verdict gives their average only."""
UNITS = {
    "client_variance": (1e4, "client_variance in squared %"),
    "client_entropy": (100.0, "client_entropy times 100"),
    "client_gini": (100.0, "client_gini times 100"),
    "client_jain": (100.0, "client_jain times 100"),
    "lifespan": (1.0, "lifespan in rounds"),
}
"""What ``unit_of`` says of metrics that are not in percent."""
METRICS = (
    "accuracy",
    "best_accuracy",
    "attack_success",
    "lifespan",
    *SELECTED,
    *(f"client_{name}" for name in FAIRNESS),
)


def unit_of(metric: str) -> tuple[float, str]:
    """By what a metric is multiplied in a verdict, and what it is called there."""
    return UNITS.get(metric, (100.0, f"{metric} in %"))


Side = dict[str, str] | float
"""Labels of cells, or a number in the unit that verdicts give the metric in."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One claim: cells labelled ``better`` have more of ``metric`` than those labelled ``than``."""

    claim: str
    better: Side
    than: Side
    """Of the same axes, or of more; or a number, as ``better`` may be in its place."""
    metric: str = "accuracy"
    where: dict[str, str | dict[str, str]] = dataclasses.field(default_factory=dict)
    """Labels that both cells have; ``{ not = LABEL }`` is any other label."""
    by: float = 0.0
    """How much more: in percentage points, for lifespan in rounds."""
    why: str = ""
    """What explains it if it does not come out."""


def findings(experiment: Experiment) -> list[Finding]:
    """The claims of an experiment's file.

    Raises:
      ValueError: a claim that is not written as it should be.
    """
    tables = experiment.table.get("findings", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"findings must be a list of tables, [[findings]]; got {tables!r}")
    return [_finding(table, f"findings[{number}]") for number, table in enumerate(tables)]


def _finding(table: dict[str, Any], place: str) -> Finding:
    for key in table:
        if key not in KEYS:
            raise ValueError(f"{place}.{key}: {unknown(key, KEYS)}")
    for key in ("claim", "better", "than"):
        if key not in table:
            raise ValueError(f"{place}.{key} is missing")
    for key in ("claim", "why"):
        if not isinstance(table.get(key, ""), str):
            raise ValueError(f"{place}.{key} must be a string; got {table[key]!r}")
    better, than = table["better"], table["than"]
    for key in ("better", "than"):
        if not _is_number(table[key]) and not _are_labels(table[key]):
            raise ValueError(
                f"{place}.{key} must be a table of labels, which are strings, or a number; "
                f"got {table[key]!r}"
            )
    if _is_number(better) and _is_number(than):
        raise ValueError(f"{place}.than must be a table of labels where better is a number")
    labels = isinstance(better, dict) and isinstance(than, dict)
    if unnamed := [axis for axis in better if axis not in than] if labels else []:
        raise ValueError(f"{place}.than must name {unnamed[0]}, as better does")
    if not isinstance(where := table.get("where", {}), dict):
        raise ValueError(f"{place}.where must be a table of labels; got {where!r}")
    for axis, label in where.items():
        if not isinstance(label, str) and not (_are_labels(label) and list(label) == ["not"]):
            raise ValueError(
                f"{place}.where.{axis} must be a label, which is a string, or {{ not = LABEL }}; "
                f"got {label!r}"
            )
    if not _is_number(table.get("by", 0.0)):
        raise ValueError(f"{place}.by must be a number; got {table['by']!r}")
    if table.get("metric", "accuracy") not in METRICS:
        raise ValueError(f"{place}.metric: {unknown(table['metric'], METRICS)}")
    numbers: dict[str, Any] = {
        key: float(value) for key, value in table.items() if _is_number(value)
    }
    return Finding(**table | numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(label, str) for label in value.values())


def pairs(
    finding: Finding, results: Sequence[Result], metric: str
) -> list[tuple[str, float, float]]:
    """What the compared cells have in common, and the metric of the better and of the other."""
    unit, _ = unit_of(metric)

    def labelled(labels: dict[str, str]) -> list[Result]:
        wanted = finding.where | labels
        return [r for r in results if all(_has(r, *each) for each in wanted.items())]

    def rest(result: Result, named: dict[str, str]) -> tuple[str, ...]:
        return tuple(v for k, v in result.cell.labels.items() if k not in named)

    def words(result: Result, named: dict[str, str]) -> str:
        return ", ".join(rest(result, named)) or "the run"

    better, than = finding.better, finding.than
    if not isinstance(than, dict):
        assert isinstance(better, dict)
        return [(words(r, better), value_of(r, metric), than / unit) for r in labelled(better)]
    if not isinstance(better, dict):
        return [(words(r, than), better / unit, value_of(r, metric)) for r in labelled(than)]
    others = {rest(r, than): value_of(r, metric) for r in labelled(than)}
    return [
        (words(r, better), value_of(r, metric), others[key])
        for r in labelled(better)
        if (key := rest(r, than)) in others
    ]


def _has(result: Result, axis: str, wanted: str | dict[str, str]) -> bool:
    """Whether a cell has a label of an axis, or any but that one."""
    label = result.cell.labels.get(axis)
    if isinstance(wanted, dict):
        return label is not None and label != wanted["not"]
    return label == wanted


def value_of(result: Result, metric: str) -> float:
    """The metric of a cell. A diverged cell counts 0, or NaN where 0 would be the best value.

    A backdoor's lifespan is 0 where it was not planted, a lower bound where it outlived the run.
    """
    if metric in ("attack_success", "lifespan", *SELECTED):
        return getattr(result, metric)
    known = {"accuracy": result.final, "best_accuracy": result.best}
    return known[metric] if metric in known else result.of_clients(metric[len("client_") :])


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out of a claim. As text one line of plain words."""

    claim: str
    word: str
    """Whether it is reproduced."""
    numbers: str = ""
    """The numbers, and why where it is not."""

    def __str__(self) -> str:
        return f"{self.claim}: {self.word}{self.numbers}"

    @property
    def markdown(self) -> str:
        """The same line, with the word in bold where something was compared."""
        return f"{self.claim}: **{self.word}**{self.numbers}" if self.numbers else str(self)


def verdicts(experiment: Experiment, results: Sequence[Result]) -> list[Verdict]:
    """One for each claim of the experiment."""
    found = []
    for finding in findings(experiment):
        there = pairs(finding, results, finding.metric)
        compared = [p for p in there if not (math.isnan(p[1]) or math.isnan(p[2]))]
        left = len(there) - len(compared)
        left_out = f"{left} of {len(there)} left out, which did not run, diverged or have no number"
        unit, name = unit_of(finding.metric)
        holds = [unit * (more - less) > finding.by for _, more, less in compared]
        if not holds:
            why = left_out if there else "no such cells have run"
            found.append(Verdict(finding.claim, f"not compared, {why}."))
            continue
        word = "reproduced" if all(holds) else "not reproduced"
        if any(holds) and not all(holds):
            word = f"reproduced in {sum(holds)} of {len(holds)} settings"
        shown = compared
        if len(compared) > MANY:
            _, more, less = zip(*compared, strict=True)
            shown = [("on average", sum(more) / len(more), sum(less) / len(less))]
        numbers = "; ".join(f"{n}: {unit * a:.3g} against {unit * b:.3g}" for n, a, b in shown)
        numbers += f"; {left_out}" if left else ""
        explained = f" {finding.why}" if finding.why and not all(holds) else ""
        found.append(Verdict(finding.claim, word, f" ({name}; {numbers}).{explained}"))
    return found
