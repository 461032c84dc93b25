"""Tables of README and documents that quote kept results: written from ``results/``.

Between ``<!-- results: NAME [ACROSS] [OPTIONS] -->`` and ``<!-- /results -->`` stands the table of
``results/NAME``: one axis of its grid across, ``attack`` unless another is named, all else down.
``deviation`` adds that over seeds, ``worst`` a last column, ``kept`` the share of attackers'
messages that were taken.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfl.experiments.kept import Cell, Kept, read_kept
from jaxfl.experiments.labels import named
from jaxfl.report.grid import in_percent, worst
from jaxfl.report.markdown import as_markdown

DOCUMENTS = ("README.md", "docs/studies.md")
OPTIONS = ("deviation", "worst", "kept")
BLOCK = re.compile(r"(<!-- results: ([^>]+?) -->\n).*?(\n<!-- /results -->)", re.DOTALL)


def with_results(text: str, results: Path) -> str:
    """A document with all its tables of kept results as they are kept now.

    Raises:
      ValueError: a table of what is not kept, or with an axis that the grid does not have.
    """
    return BLOCK.sub(lambda block: block[1] + _table(block[2].split(), results) + block[3], text)


def write_quoted(root: Path, results: Path) -> None:
    """Writes the tables into the documents of a clone."""
    for name in DOCUMENTS:
        path = root / name
        path.write_text(with_results(path.read_text(), results))


def _table(words: Sequence[str], results: Path) -> str:
    name, *rest = words
    options = [word for word in rest if word in OPTIONS]
    across = next((word for word in rest if word not in OPTIONS), "attack")
    kept = read_kept(results / name)
    if any(across not in cell.labels for cell in kept.cells):
        raise ValueError(f"results {name}: the grid has no axis {across!r}")
    return as_markdown(_lines(kept, across, options))


def _lines(kept: Kept, across: str, options: Sequence[str]) -> list[list[str]]:
    columns = list(dict.fromkeys(cell.labels[across] for cell in kept.cells))
    rows: dict[str, dict[str, Cell]] = {}
    for cell in kept.cells:
        rows.setdefault(_row(cell, across), {})[cell.labels[across]] = cell
    last = ["worst"] if "worst" in options else []
    table = [["", *(named(across, column) for column in columns), *last]]
    for row, cells in rows.items():
        line = [_entry(cells[c], options) if c in cells else "-" for c in columns]
        means = ((column, cell.status, cell.final) for column, cell in cells.items())
        table.append([row, *line, *([worst(means)] if last else [])])
    return table


def _row(cell: Cell, across: str) -> str:
    rest = [named(axis, value) for axis, value in cell.labels.items() if axis != across]
    return " / ".join(rest) or "test accuracy"


def _entry(cell: Cell, options: Sequence[str]) -> str:
    several = "deviation" in options and len(cell.last) > 1
    deviation = float(np.std(cell.finals, ddof=1)) if several else math.nan
    text = in_percent(cell.status, cell.final, deviation)
    if "kept" in options and np.isfinite(cell.malicious_selected):
        text += f" ({100 * cell.malicious_selected:.1f} kept)"
    return text
