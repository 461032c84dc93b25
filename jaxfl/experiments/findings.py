"""What a paper states, beside what came out.

    [[findings]]
    claim = "TNBS is above NBS"
    better = { aggregator = "TNBS" }
    than = { aggregator = "NBS" }
    why = "why it need not come out so"

compares every two cells whose labels are those, and that differ in nothing else. Axes that only
``than`` names make one cell the measure of many: ``than = { aggregator = "Mean", attack = "No
attack" }`` is compared with TNBS under every attack, if ``better`` names the aggregator alone.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxfl.experiments.results import FAIRNESS, Result
from jaxfl.experiments.schema import Experiment
from jaxfl.registry import unknown

KEYS = ("claim", "better", "than", "metric", "where", "by", "why")
MANY = 8
"""With more comparisons than these, a verdict gives their average only."""
TYPES = {"claim": str, "better": dict, "than": dict, "where": dict, "why": str}
NAMES = {str: "a string", dict: "a table of labels"}
UNITS = {
    "client_variance": (1e4, "client_variance in squared %"),
    "client_entropy": (100.0, "client_entropy times 100"),
    "client_gini": (100.0, "client_gini times 100"),
    "client_jain": (100.0, "client_jain times 100"),
    "lifespan": (1.0, "lifespan in rounds"),
}
"""By what the numbers of a verdict are multiplied and how they are called; else percent."""
METRICS = (
    "accuracy",
    "best_accuracy",
    "attack_success",
    "lifespan",
    *(f"client_{name}" for name in FAIRNESS),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One claim: cells labelled ``better`` have more of ``metric`` than those labelled ``than``."""

    claim: str
    better: dict[str, str]
    than: dict[str, str]
    """Of the same axes, or of more."""
    metric: str = "accuracy"
    where: dict[str, str] = dataclasses.field(default_factory=dict)
    """Labels that both cells have."""
    by: float = 0.0
    """How much more: in percentage points, for lifespan in rounds."""
    why: str = ""
    """What explains it if it does not come out."""


def findings(experiment: Experiment) -> list[Finding]:
    """The claims of an experiment's file.

    Raises:
      ValueError: a claim that is not written as it should be.
    """
    found, tables = [], experiment.table.get("findings", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"findings must be a list of tables, [[findings]]; got {tables!r}")
    for number, table in enumerate(tables):
        place = f"findings[{number}]"
        for key in table:
            if key not in KEYS:
                raise ValueError(f"{place}.{key}: {unknown(key, KEYS)}")
        for key in ("claim", "better", "than"):
            if key not in table:
                raise ValueError(f"{place}.{key} is missing")
        for key, kind in TYPES.items():
            if not isinstance(table.get(key, kind()), kind):
                raise ValueError(f"{place}.{key} must be {NAMES[kind]}; got {table[key]!r}")
        if unnamed := [axis for axis in table["better"] if axis not in table["than"]]:
            raise ValueError(f"{place}.than must name {unnamed[0]}, as better does")
        by = table.get("by", 0.0)
        if isinstance(by, bool) or not isinstance(by, int | float):
            raise ValueError(f"{place}.by must be a number; got {by!r}")
        if table.get("metric", "accuracy") not in METRICS:
            raise ValueError(f"{place}.metric: {unknown(table['metric'], METRICS)}")
        found.append(Finding(**table | {"by": float(by)}))
    return found


def pairs(
    finding: Finding, results: Sequence[Result], metric: str
) -> list[tuple[str, float, float]]:
    """What the compared cells have in common, and the metric of the better and of the other."""

    def labelled(labels: dict[str, str]) -> list[Result]:
        wanted = finding.where | labels
        return [r for r in results if all(r.cell.labels.get(k) == v for k, v in wanted.items())]

    def rest(result: Result, named: dict[str, str]) -> tuple[str, ...]:
        return tuple(v for k, v in result.cell.labels.items() if k not in named)

    than = {rest(r, finding.than): value_of(r, metric) for r in labelled(finding.than)}
    return [
        (", ".join(rest(r, finding.better)) or "the run", value_of(r, metric), than[key])
        for r in labelled(finding.better)
        if (key := rest(r, finding.than)) in than
    ]


SPREADS = ("client_variance", "client_gini")
"""Metrics that are best at 0."""


def value_of(result: Result, metric: str) -> float:
    """The metric of a cell. A diverged cell counts 0, or NaN where 0 would be the best value.

    A backdoor's lifespan is 0 where it was not planted, a lower bound where it outlived the run.
    """
    if metric in ("attack_success", "lifespan"):
        return getattr(result, metric)
    known = {"accuracy": result.final, "best_accuracy": result.best}
    value = known[metric] if metric in known else result.of_clients(metric[len("client_") :])
    lost = result.status == "diverged" and math.isnan(value)
    return 0.0 if lost and metric not in SPREADS else value


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
        compared = pairs(finding, results, finding.metric)
        compared = [p for p in compared if not (math.isnan(p[1]) or math.isnan(p[2]))]
        unit, name = UNITS.get(finding.metric, (100.0, f"{finding.metric} in %"))
        holds = [unit * (more - less) > finding.by for _, more, less in compared]
        if not holds:
            found.append(Verdict(finding.claim, "not compared, the sweep has no such cells."))
            continue
        word = "reproduced" if all(holds) else "not reproduced"
        if any(holds) and not all(holds):
            word = f"reproduced in {sum(holds)} of {len(holds)} settings"
        shown = compared
        if len(compared) > MANY:
            _, more, less = zip(*compared, strict=True)
            shown = [("on average", sum(more) / len(more), sum(less) / len(less))]
        numbers = "; ".join(f"{n}: {unit * a:.3g} against {unit * b:.3g}" for n, a, b in shown)
        explained = f" {finding.why}" if finding.why and not all(holds) else ""
        found.append(Verdict(finding.claim, word, f" ({name}; {numbers}).{explained}"))
    return found
