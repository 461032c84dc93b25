"""Tables of README and documents that quote kept results and measurements.

Between ``<!-- results: NAME [ACROSS] [OPTIONS] -->`` and ``<!-- /results -->`` stands the table of
``results/NAME``: one axis of its grid across, ``attack`` unless another is named, all else down.
``deviation`` adds that over seeds, ``worst`` a last column, ``kept`` the share of attackers'
messages that were taken. Between ``<!-- measured: NAME TITLE -->`` and ``<!-- /measured -->``
stands the table whose title begins so in ``docs/measurements/NAME.json``, which
``benchmarks.NAME`` wrote.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfl.experiments.kept import Cell, Kept, read_kept
from jaxfl.experiments.labels import place
from jaxfl.report.grid import in_percent, lines_of, worst
from jaxfl.report.markdown import as_markdown

DOCUMENTS = (
    "README.md",
    "docs/studies.md",
    "docs/language_models.md",
    "docs/expected_robustness.md",
)
MEASURED_IN = ("docs/performance.md", "docs/profiling.md")
OPTIONS = ("deviation", "worst", "kept")
BLOCK = re.compile(r"(<!-- results: ([^>]+?) -->\n).*?(\n<!-- /results -->)", re.DOTALL)
MEASURED = re.compile(r"(<!-- measured: (\S+) ([^>]+?) -->\n).*?(\n<!-- /measured -->)", re.DOTALL)


def with_results(text: str, results: Path) -> str:
    """A document with all its tables of kept results as they are kept now.

    Raises:
      ValueError: a table of what is not kept, or with an axis that the grid does not have.
    """
    return BLOCK.sub(lambda block: block[1] + _table(block[2].split(), results) + block[3], text)


def with_measured(text: str, measurements: Path) -> str:
    """A document with all its tables of measurements as the benchmarks wrote them.

    Raises:
      ValueError: a table that no benchmark wrote.
    """
    return MEASURED.sub(
        lambda block: block[1] + _measured(block[2], block[3], measurements) + block[4], text
    )


def write_quoted(root: Path, results: Path) -> None:
    """Writes the tables into the documents of a clone."""
    for name in DOCUMENTS:
        path = root / name
        path.write_text(with_results(path.read_text(), results))
    for name in MEASURED_IN:
        path = root / name
        path.write_text(with_measured(path.read_text(), root / "docs" / "measurements"))


def _measured(name: str, title: str, measurements: Path) -> str:
    path = measurements / f"{name}.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else []
    for table in tables:
        if table["title"].startswith(title):
            return as_markdown([table["header"], *table["rows"]])
    raise ValueError(f"no table {title!r} was measured by benchmarks.{name}")


def _table(words: Sequence[str], results: Path) -> str:
    name, *rest = words
    options = [word for word in rest if word in OPTIONS]
    across = next((word for word in rest if word not in OPTIONS), "attack")
    kept = read_kept(results / name)
    if any(across not in cell.labels for cell in kept.cells):
        raise ValueError(f"results {name}: the grid has no axis {across!r}")
    lines = lines_of(
        ((cell.labels, _entry(cell, options)) for cell in kept.cells), "test accuracy", across
    )
    return as_markdown(_with_worst(lines, kept, across) if "worst" in options else lines)


def _with_worst(lines: list[list[str]], kept: Kept, across: str) -> list[list[str]]:
    """The lines with the lowest accuracy of each, and where that is."""
    means: dict[str, list[tuple[str, str, float]]] = {}
    for cell in kept.cells:
        row, column = place(cell.labels, "test accuracy", across)
        means.setdefault(row, []).append((column, cell.status, cell.final))
    header, *rest = lines
    return [[*header, "worst"], *([*line, worst(means[line[0]])] for line in rest)]


def _entry(cell: Cell, options: Sequence[str]) -> str:
    several = "deviation" in options and len(cell.last) > 1
    deviation = float(np.std(cell.finals, ddof=1)) if several else math.nan
    text = in_percent(cell.status, cell.final, deviation)
    if "kept" in options and np.isfinite(cell.malicious_selected):
        text += f" ({100 * cell.malicious_selected:.1f} kept)"
    return text
