"""Runs side by side."""

from collections.abc import Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxfl.experiments.results import Result, half_interval


def comparison(names: Sequence[str], runs: Sequence[Sequence[Result]]) -> Table:
    """Final test accuracy of the cells that all runs have, and differences to the first run.

    Differences are paired by seed, with their 95 % confidence interval (Student's t).

    Raises:
      ValueError: the runs have no cell or no seed in common.
    """
    table = Table(
        title="Final test accuracy in %",
        caption="Differences to the first, paired by seed, with 95 % confidence intervals.",
    )
    table.add_column("cell")
    table.add_column(names[0], justify="right")
    for name in names[1:]:
        table.add_column(name, justify="right")
        table.add_column("difference", justify="right")
    by_label = [{_label(r): r for r in results} for results in runs]
    common = [label for label in by_label[0] if all(label in cells for cells in by_label)]
    if not common:
        raise ValueError(f"{' and '.join(names)} have no cell in common")
    for label in common:
        first = by_label[0][label]
        row = [escape(label), _final(first)]
        for cells in by_label[1:]:
            row += [_final(cells[label]), _difference(first, cells[label])]
        table.add_row(*row)
    return table


def _label(result: Result) -> str:
    return " / ".join(result.cell.labels.values()) or "run"


def _final(result: Result) -> str:
    if result.status != "done":
        return result.status if result.status == "diverged" else "n/a"
    return f"{result.final * 100:.1f}"


def _difference(first: Result, other: Result) -> str:
    if first.reason is not None or other.reason is not None:
        return "-"
    mine = dict(zip(first.cell.seeds, first.finals, strict=True))
    theirs = dict(zip(other.cell.seeds, other.finals, strict=True))
    shared = [seed for seed in mine if seed in theirs]
    if not shared:
        raise ValueError(f"{_label(first)}: the runs have no seed in common")
    differences = np.array([theirs[s] - mine[s] for s in shared]) * 100
    half = half_interval(differences)
    return f"{differences.mean():+.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}")
