"""What a grid's results are over the honest sets of a law: as Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from jaxfl.experiments.labels import named
from jaxfl.experiments.over_sets import (
    LEVEL,
    Labels,
    Outcome,
    Pair,
    Standing,
    Summary,
    concordance,
    outcomes,
    pairs,
    standings,
)
from jaxfl.experiments.results import Result
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report.markdown import as_markdown
from jaxfl.robustness import Estimate

FILES = ("honest_sets.csv", "honest_pairs.csv", "honest_sets.md")
TAILS = (f"{LEVEL:g} quantile", "CVaR", "worst")
HEADER = ("rank", "defence", "expected", "under", *TAILS, "rank", "behind the first")
LOSSES = ("defence", "expected loss", "under", *TAILS)
CAPTION = (
    "Over honest sets, after the last round, ± half of the 95 % interval. Test accuracy in %, 0 "
    "where a run diverged: its mean under the attack that makes that least, the value that 95 % of "
    "the sets are above and the mean over the 5 % below, and the least over all sets and attacks, "
    "by which the second rank is. Behind the first: the mean of paired differences, and p of a "
    "paired t-test after Holm over all pairs. Test loss: under the same attack, without bound "
    "where a run diverged; the 0.95 quantile, the mean over the 5 % above it, the largest."
)
NUMBERS = ("value", "low", "high")


def has_sets(experiment: Experiment) -> bool:
    """Whether the experiment draws honest sets from a law, two or more."""
    return all(c.honesty is not None and len(c.draws) > 1 for c in experiment.cells)


def tables(experiment: Experiment, found: Sequence[Outcome]) -> list[tuple[str, list[list[str]]]]:
    """A heading and a table for each law, header first: the defences, by expected accuracy.

    After it one of their losses, where these are known.
    """
    pieces = []
    for labels, order in standings(found).items():
        where = " / ".join(named(axis, label) for axis, label in labels) or experiment.name
        behind = {pair.than: pair for pair in pairs(order) if pair.rule == order[0].rule}
        agreement = concordance(order) if len(order) > 1 else math.nan
        heading = where
        if math.isfinite(agreement):
            heading += f": Kendall's tau of the two rankings {agreement:.2f}"
        pieces.append((heading, [list(HEADER), *(_row(s, behind.get(s.rule)) for s in order)]))
        lost = [row for standing in order if (row := _loss_row(standing))]
        if lost:
            pieces.append((f"{where}: losses", [list(LOSSES), *lost]))
    return pieces


def markdown(experiment: Experiment, found: Sequence[Outcome]) -> str:
    """``tables`` as Markdown, and what their numbers are."""
    pieces = []
    for heading, lines in tables(experiment, found):
        pieces.append(f"#### {heading}\n\n{as_markdown(lines)}")
    return "\n\n".join([*pieces, CAPTION]) + "\n"


def as_csv(experiment: Experiment, results: Sequence[Result]) -> str:
    """One line for each cell: the four numbers of its accuracy, a share, and of its loss."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = ("expected", "quantile", "cvar")
    names = [f"{kind}_{number}" for kind in kinds for number in NUMBERS] + ["worst"]
    columns = [f"{what}_{name}" for what in ("accuracy", "loss") for name in names]
    writer.writerow([*experiment.axes, "status", "sets", *columns])
    for result in results:
        numbers: list[str] = []
        for found in outcomes([result]):
            for summary in (found.summary, found.loss):
                numbers += _summary(summary) if summary else []
        labels = [result.cell.labels[axis] for axis in experiment.axes]
        writer.writerow([*labels, result.status, len(result.cell.draws), *numbers])
    return text.getvalue()


def pairs_csv(outcomes: Sequence[Outcome]) -> str:
    """One line for each pair of defences of a law: the paired difference of expected accuracies."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    found = {labels: pairs(standing) for labels, standing in standings(outcomes).items()}
    axes = [axis for axis, _ in next(iter(found), ())]
    writer.writerow([*axes, "aggregator", "than", "difference", "low", "high", "p"])
    for labels, both in found.items():
        for pair in both:
            numbers = (*_numbers(pair.difference), _share(pair.p))
            writer.writerow([*_values(labels), pair.rule, pair.than, *numbers])
    return text.getvalue()


def write_over_sets(folder: Path, experiment: Experiment, results: Sequence[Result]) -> None:
    """``honest_sets.csv``, ``honest_pairs.csv`` and ``honest_sets.md``."""
    found = outcomes(results)
    text = f"### {experiment.title}: over honest sets\n\n{markdown(experiment, found)}"
    texts = (as_csv(experiment, results), pairs_csv(found), text)
    for name, text in zip(FILES, texts, strict=True):
        write_aside(folder / name, text.encode())


def _row(standing: Standing, behind: Pair | None) -> list[str]:
    summary = standing.hardest.summary
    shown = [_percent(e) for e in (summary.expected, summary.quantile, summary.tail)]
    apart = "-" if behind is None else f"{_percent(behind.difference)}, p {behind.p:.2g}"
    first = [str(standing.place), standing.rule, shown[0], standing.attack or "-"]
    return [*first, *shown[1:], f"{100 * standing.worst:.1f}", str(standing.worst_place), apart]


def _loss_row(standing: Standing) -> list[str]:
    summary = standing.hardest.loss
    if summary is None:
        return []
    parts = (summary.expected, summary.quantile, summary.tail)
    shown = [f"{e.value:.3g} ± {(e.high - e.low) / 2:.2g}" for e in parts]
    shown = [
        text if math.isfinite(e.value) else "inf" for e, text in zip(parts, shown, strict=True)
    ]
    return [standing.rule, shown[0], standing.attack or "-", *shown[1:], f"{summary.worst:.3g}"]


def _percent(estimate: Estimate) -> str:
    half = 50 * (estimate.high - estimate.low)
    return f"{100 * estimate.value:.1f} ± {half:.1f}"


def _summary(summary: Summary) -> list[str]:
    parts = (summary.expected, summary.quantile, summary.tail)
    return [text for part in parts for text in _numbers(part)] + [_share(summary.worst)]


def _numbers(estimate: Estimate) -> list[str]:
    return [_share(getattr(estimate, name)) for name in NUMBERS]


def _share(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _values(labels: Labels) -> list[str]:
    return [label for _, label in labels]
