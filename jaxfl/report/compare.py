"""Runs side by side."""

from collections.abc import Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxfl.experiments.cells import Cell
from jaxfl.experiments.difference import differences
from jaxfl.experiments.results import Result, half_interval
from jaxfl.experiments.schema import Experiment
from jaxfl.report.grid import in_percent

Run = tuple[Experiment, Sequence[Result]]
UNPAIRED = "not paired, as its data differ"


def comparison(names: Sequence[str], runs: Sequence[Run]) -> tuple[Table, list[str]]:
    """Final test accuracy of the cells that all runs have, and differences to the first run.

    Where the data of a run are divided as the first one's, differences are paired by seed, with
    their 95 % confidence interval (Student's t); else they are of independent means (Welch's t).

    Args:
      names: what the runs are called.
      runs: what ``read_results`` gives.

    Returns:
      The table; what differs between the experiments and what was left out, a line each.

    Raises:
      ValueError: the runs have no cell or, where they are paired, no seed in common.
    """
    by_label = [{_label(r): r for r in results} for _, results in runs]
    common = [label for label in by_label[0] if all(label in cells for cells in by_label)]
    if not common:
        raise ValueError(f"{' and '.join(names)} have no cell in common")
    paired = [all(_data(by_label[0][k]) == _data(cells[k]) for k in common) for cells in by_label]
    apart = [name for name, same in zip(names, paired, strict=True) if not same]
    how = "paired by seed" if len(apart) < len(names) - 1 else "of independent means"
    text = f"Differences to the first, {how}, with 95 % confidence intervals"
    text += f"; {', '.join(apart)}: {UNPAIRED}" if apart else ""
    table = Table(title="Final test accuracy in %", caption=escape(f"{text}."))
    table.add_column("cell")
    table.add_column(escape(names[0]), justify="right")
    for name in names[1:]:
        table.add_column(escape(name), justify="right")
        table.add_column("difference", justify="right")
    for label in common:
        first = by_label[0][label]
        row = [escape(label), _final(first)]
        for cells, same in zip(by_label[1:], paired[1:], strict=True):
            row += [_final(cells[label]), _difference(first, cells[label], paired=same)]
        table.add_row(*row)
    return table, [*_differing(names, runs), *_left_out(names, by_label, paired)]


def _data(result: Result) -> tuple:
    """What decides which sample is whose under a seed."""
    cell: Cell = result.cell
    apart, shares = (cell.root, cell.rare), (cell.client_test, cell.validation)
    return repr(cell.data), cell.clients, cell.partition, apart, shares


def _differing(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    first, first_name = runs[0][0].table, names[0]
    return [
        f"Differs: {path}: {mine} in {first_name}, {theirs} in {name}"
        for name, (experiment, _) in zip(names[1:], runs[1:], strict=True)
        for path, mine, theirs in differences(first, experiment.table)
    ]


def _left_out(
    names: Sequence[str], by_label: Sequence[dict[str, Result]], paired: Sequence[bool]
) -> list[str]:
    """Cells that not all runs have; seeds that a paired difference does not use."""
    lines = []
    for label in dict.fromkeys(label for cells in by_label for label in cells):
        lacking = [n for n, cells in zip(names, by_label, strict=True) if label not in cells]
        if lacking:
            lines.append(f"Left out: {label}: not in {', '.join(lacking)}")
    mine = {seed for result in by_label[0].values() for seed in result.cell.seeds}
    for name, cells, same in zip(names[1:], by_label[1:], paired[1:], strict=True):
        theirs = {seed for result in cells.values() for seed in result.cell.seeds}
        for place, seeds in ((names[0], mine - theirs), (name, theirs - mine)):
            if same and seeds:
                shown = ", ".join(map(str, sorted(seeds)))
                lines.append(f"Left out of the difference: seed {shown} of {place}")
    return lines


def _label(result: Result) -> str:
    return " / ".join(result.cell.labels.values()) or "run"


def _final(result: Result) -> str:
    return in_percent(result.status, result.final)


def _difference(first: Result, other: Result, *, paired: bool) -> str:
    if not first.status == other.status == "done":
        return "-"
    if not paired:
        a, b = other.finals * 100, first.finals * 100
        half = np.nan
        if min(len(a), len(b)) > 1:
            from scipy import stats  # slow to import

            interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
            half = (interval.high - interval.low) / 2
        return _signed(a.mean() - b.mean(), half)
    mine = dict(zip(first.cell.draws, first.finals, strict=True))
    theirs = dict(zip(other.cell.draws, other.finals, strict=True))
    shared = [seed for seed in mine if seed in theirs]
    if not shared:
        raise ValueError(f"{_label(first)}: the runs have no seed in common")
    values = np.array([theirs[s] - mine[s] for s in shared]) * 100
    return _signed(values.mean(), half_interval(values))


def _signed(mean: float, half: float) -> str:
    return f"{mean:+.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}")
