"""Tables of README and documents that quote kept results and measurements.

Between ``<!-- results: NAME [ACROSS] [OPTIONS] -->`` and ``<!-- /results -->`` stands the table of
``results/NAME``: one axis of its grid across, ``attack`` unless another is named, the others that
vary down. ``deviation`` adds that over seeds, ``worst`` a last column, ``kept`` the share of
attackers' messages that were taken; ``backdoor`` gives its success, and how long it lasted, in
place of the accuracy. Between ``<!-- measured: NAME TITLE -->`` and ``<!-- /measured -->`` stands
the table whose title begins so in ``docs/measurements/NAME.json``, which ``benchmarks.NAME`` wrote.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfl.experiments.kept import Cell, read_kept
from jaxfl.experiments.labels import place
from jaxfl.experiments.reported import METRICS
from jaxfl.report.backdoors import in_words
from jaxfl.report.grid import in_percent, lines_of, worst
from jaxfl.report.markdown import as_markdown

DOCUMENTS = (
    "README.md",
    "docs/studies.md",
    "docs/language_models.md",
    "docs/expected_robustness.md",
)
MEASURED_IN = ("docs/performance.md", "docs/profiling.md")
METRIC = "test accuracy"
OPTIONS = ("deviation", "worst", "kept", "backdoor")
BLOCK = re.compile(r"(<!-- results: ([^>]+?) -->\n).*?(<!-- /results -->)", re.DOTALL)
MEASURED = re.compile(r"(<!-- measured: (\S+) ([^>]+?) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def with_results(text: str, results: Path) -> str:
    """A document with all its tables of kept results as they are kept now.

    Raises:
      ValueError: a table of what is not kept, or with an axis that the grid does not have.
    """
    return BLOCK.sub(
        lambda block: f"{block[1]}{_table(block[2].split(), results)}\n{block[3]}", text
    )


def with_measured(text: str, measurements: Path) -> str:
    """A document with all its tables of measurements as the benchmarks wrote them.

    Raises:
      ValueError: a table that no benchmark wrote.
    """
    return MEASURED.sub(
        lambda block: f"{block[1]}{_measured(block[2], block[3], measurements)}\n{block[4]}", text
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
    varying = {
        axis for axis in kept.cells[0].labels if len({c.labels[axis] for c in kept.cells}) > 1
    }
    shown = varying | {across}
    cells = [
        ({axis: label for axis, label in cell.labels.items() if axis in shown}, cell)
        for cell in kept.cells
    ]
    lines = lines_of(((labels, _entry(cell, options)) for labels, cell in cells), METRIC, across)
    return as_markdown(_with_worst(lines, cells, across) if "worst" in options else lines)


def _with_worst(
    lines: list[list[str]], cells: Sequence[tuple[dict[str, str], Cell]], across: str
) -> list[list[str]]:
    """The lines with the lowest accuracy of each, and where that is."""
    means: dict[str, list[tuple[str, str, float]]] = {}
    for labels, cell in cells:
        row, column = place(labels, METRIC, across)
        means.setdefault(row, []).append((column, cell.status, cell.final))
    header, *rest = lines
    return [[*header, "worst"], *([*line, worst(means[line[0]])] for line in rest)]


def _entry(cell: Cell, options: Sequence[str]) -> str:
    if "backdoor" in options:
        success = METRICS["success"][1](cell)
        mean = float(np.mean(success)) if len(success) else math.nan
        return in_words(mean, cell.planted, cell.lifespan, cell.outlived)
    several = "deviation" in options and len(cell.last) > 1
    deviation = float(np.std(cell.finals, ddof=1)) if several else math.nan
    text = in_percent(cell.status, cell.final, deviation)
    if "kept" in options and np.isfinite(cell.malicious_selected):
        text += f" ({100 * cell.malicious_selected:.1f} kept)"
    return text
