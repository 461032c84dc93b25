"""Pictures of a run."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.experiments.labels import named
from jaxfl.experiments.results import SIGNS, Result
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report.grid import pivot

BEST, WORST = 8, 4
"""Of more rows than these together, so many are drawn in a picture of accuracies."""
MOST_PANELS = 12
"""Of more attacks, those that do most harm are drawn."""


def accuracy_plot(path: Path, experiment: Experiment, results: Sequence[Result]) -> None:
    """Test accuracy over rounds: a panel per attack, a line per defence, a band over seeds.

    Of more lines or panels than can be told apart some are drawn, and the picture says which.
    """
    from matplotlib.figure import Figure

    rows, columns, cells = pivot(experiment, results)
    rows, columns, said = _told_apart(rows, columns, cells)
    across = min(len(columns), 2)
    down = -(-len(columns) // across)
    figure = Figure(figsize=(5 * across, 3.2 * down + 0.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(down, across, sharex=True, sharey=True)).ravel()
    handles = {}
    for panel, (axis, column) in enumerate(zip(axes, columns, strict=False)):
        for number, row in enumerate(rows):
            result = cells.get((row, column))
            if result is None or not result.accuracy.size:
                continue
            mean = result.accuracy.mean(axis=0) * 100
            low, high = result.accuracy.min(axis=0) * 100, result.accuracy.max(axis=0) * 100
            cost = f", epsilon {result.epsilon:.3g}" if math.isfinite(result.epsilon) else ""
            style = _style(number)
            (line,) = axis.plot(result.rounds, mean, label=row + cost, linewidth=1.8, **style)
            handles.setdefault(row, line)
            color = style["color"]
            axis.fill_between(result.rounds, low, high, color=color, alpha=0.12, linewidth=0)
        axis.set_title(column)
        axis.set_xlabel("round" if panel >= len(columns) - across else "")
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    figure.supylabel("test accuracy (%)")
    figure.suptitle("\n".join([experiment.title, *said]))
    lines = [handles[row] for row in rows if row in handles]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(rows), 3))
    write_figure(path, figure)


def _told_apart(
    rows: list[str], columns: list[str], cells: dict[tuple[str, str], Result]
) -> tuple[list[str], list[str], list[str]]:
    """The rows and the columns that are drawn, in their order, and what is said of the others."""
    ends = {
        place: 0.0 if math.isnan(result.final) else result.final
        for place, result in cells.items()
        if result.accuracy.size
    }
    said, rows = [], [row for row in rows if any(r == row for r, _ in ends)] or rows
    if len(rows) > BEST + WORST:
        shared = [c for c in columns if all((row, c) in ends for row in rows)] or columns
        least = {row: min(ends.get((row, c), math.inf) for c in shared) for row in rows}
        order = sorted(rows, key=lambda row: -least[row])
        said.append(
            f"of {len(rows)} lines the {BEST} best and {WORST} worst by the worst panel that all "
            "are in"
        )
        rows = [row for row in rows if row in order[:BEST] + order[-WORST:]]
    if len(columns) > MOST_PANELS:
        harm = {c: np.mean([v for (_, at), v in ends.items() if at == c] or [1]) for c in columns}
        lowest = sorted(columns, key=lambda column: harm[column])[:MOST_PANELS]
        said.append(f"of {len(columns)} panels the {MOST_PANELS} of lowest mean accuracy")
        columns = [column for column in columns if column in lowest]
    return rows, columns, said


def _style(number: int) -> dict[str, str]:
    """Colour and dashes of a line: forty lines differ."""
    dashes = ("-", "--", ":", "-.")[number // 10 % 4]
    return {"color": f"C{number % 10}", "linestyle": dashes}


def sweep_plot(path: Path, experiment: Experiment, results: Sequence[Result]) -> bool:
    """What a swept number does at the end of the run; False where no number is swept.

    Panels: accuracy, where measured the accuracies of clients (their mean and worst tenth), and
    where noise is swept accuracy against epsilon.
    """
    from matplotlib.figure import Figure

    axis = next((a for a in reversed(experiment.axes) if _numbers(experiment, a)), None)
    done = [r for r in results if r.reason is None and axis is not None]
    if axis is None or not done:
        return False
    panels = [("test accuracy (%)", lambda r: 100 * r.final)]
    if any(math.isfinite(r.of_clients("worst_tenth")) for r in done):
        panels.append(("worst tenth of clients (%)", lambda r: 100 * r.of_clients("worst_tenth")))
        panels.append(
            ("deviation over clients (%)", lambda r: 100 * r.of_clients("variance") ** 0.5)
        )
    private = axis.startswith("privacy.") and any(math.isfinite(r.epsilon) for r in done)
    figure = Figure(figsize=(4.6 * (len(panels) + private), 3.8), layout="constrained")
    shown = figure.subplots(1, len(panels) + private, squeeze=False)[0]
    lines: dict[str, list[Result]] = {}
    for r in done:
        rest = " / ".join(named(k, v) for k, v in r.cell.labels.items() if k != axis)
        lines.setdefault(rest or experiment.name, []).append(r)
    for number, (label, line) in enumerate(lines.items()):
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.6}
        style |= _style(number)
        x = [float(r.cell.labels[axis]) for r in line]
        for panel, (name, value) in zip(shown, panels, strict=False):
            panel.plot(x, [value(r) for r in line], label=label, **style)
            panel.set(xlabel=axis, ylabel=name)
            if len(x) > 2 and max(x) > 20 * min((v for v in x if v > 0), default=math.inf):
                panel.set_xscale("symlog", linthresh=min(v for v in x if v > 0))
        if private:
            known = [r for r in line if math.isfinite(r.epsilon)]
            shown[-1].plot([r.epsilon for r in known], [100 * r.final for r in known], **style)
            shown[-1].set(xlabel="epsilon", ylabel="test accuracy (%)", xscale="log")
    for panel in shown:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(experiment.title)
    handles, labels = shown[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(lines), 3))
    write_figure(path, figure)
    return True


def signs_plot(path: Path, experiment: Experiment, results: Sequence[Result]) -> bool:
    """Shares of positive and negative coordinates over rounds, a panel per cell: those of honest
    messages drawn through, of Byzantine ones dashed. False where they were not counted.
    """
    from matplotlib.figure import Figure

    counted = [(r, r.signs[r.chosen]) for r in results if r.signs is not None]
    if not counted:
        return False
    across = min(len(counted), 3)
    down = -(-len(counted) // across)
    figure = Figure(figsize=(4.4 * across, 3 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (result, shares) in zip(axes, counted, strict=False):
        for number, (name, line) in enumerate(zip(SIGNS, shares, strict=True)):
            style = {"color": f"C{number % 2}", "linestyle": ("-", "--")[number // 2]}
            axis.plot(result.selection_rounds, 100 * line, label=name.replace("_", ", "), **style)
        axis.set_title(" / ".join(named(k, v) for k, v in result.cell.labels.items()))
        axis.set_xlabel("round")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(counted) :]:
        axis.set_visible(False)
    figure.supylabel("coordinates (%)")
    figure.suptitle(experiment.title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    write_figure(path, figure)
    return True


def _numbers(experiment: Experiment, axis: str) -> bool:
    """Whether an axis of the sweep goes over at least three numbers."""
    labels = {cell.labels[axis] for cell in experiment.cells if axis in cell.labels}
    try:
        return len({float(label) for label in labels}) > 2
    except ValueError:
        return False


def write_figure(path: Path, figure: Any) -> None:
    """Draws a figure into a PNG file and the SVG beside it, which are replaced whole.

    Equal figures are equal bytes; an SVG's words stay words.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        for kind, made in (("png", {}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=110, **made)
            write_aside(path.with_suffix(f".{kind}"), buffer.getvalue())
