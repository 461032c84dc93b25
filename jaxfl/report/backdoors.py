"""Success and durability of backdoors: for the terminal and as Markdown."""

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from jaxfl.experiments.results import Result
from jaxfl.experiments.schema import Experiment
from jaxfl.report.grid import pivot
from jaxfl.report.markdown import as_markdown

CAPTION = (
    "Success of the backdoor in % after the last round, mean over the seeds that did not diverge; "
    "then, where its attackers leave, the share of the seeds in which it had been planted by "
    "then, and for how many rounds it lasted (>: in some seed longer than the run)."
)
"""What ``in_words`` says."""


def in_words(success: float, planted: float, lifespan: float, outlived: float) -> str:
    """One cell's backdoor; "-" where there is none."""
    if not math.isfinite(success):
        return "-"
    if math.isnan(lifespan):
        return f"{100 * success:.1f}"
    lasted = f"{'> ' * (outlived > 0)}{lifespan:.0f}"
    return f"{100 * success:.1f}; {100 * planted:.1f}; {lasted}"


def of_result(result: Result | None) -> str:
    """``in_words`` of a result."""
    if result is None or result.success is None:
        return "-"
    return in_words(result.attack_success, result.planted, result.lifespan, result.outlived)


def entries(experiment: Experiment, results: Sequence[Result]) -> list[list[str]]:
    """The table as text: header, then one line per defence; nothing where nobody has a backdoor."""
    rows, columns, cells = pivot(experiment, results)
    told = {place: of_result(result) for place, result in cells.items()}
    columns = [name for name in columns if any(told.get((row, name), "-") != "-" for row in rows)]
    lines = [[row, *(told.get((row, column), "-") for column in columns)] for row in rows]
    return [["", *columns], *lines] if columns else []


def backdoor_table(experiment: Experiment, results: Sequence[Result]) -> Table | None:
    """``entries`` for the terminal; None where there are none."""
    lines = entries(experiment, results)
    if not lines:
        return None
    table = Table(title=escape(experiment.title), caption=CAPTION)
    for number, name in enumerate(lines[0]):
        table.add_column(escape(name), justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*map(escape, line))
    return table


def markdown(experiment: Experiment, results: Sequence[Result]) -> str:
    """``entries`` as a Markdown table; empty where there are none."""
    lines = entries(experiment, results)
    return f"\n{as_markdown(lines)}\n\n{CAPTION}\n" if lines else ""
