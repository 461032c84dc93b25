"""Pictures of a run."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfl.experiments.results import Result
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report.tables import pivot


def accuracy_plot(path: Path, experiment: Experiment, results: Sequence[Result]) -> None:
    """Test accuracy over rounds: a panel per attack, a line per defence, a band over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns, cells = pivot(experiment, results)
    across = min(len(columns), 2)
    down = -(-len(columns) // across)
    figure = Figure(figsize=(5 * across, 3.2 * down + 0.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(down, across, sharex=True, sharey=True)).ravel()
    for panel, (axis, column) in enumerate(zip(axes, columns, strict=False)):
        for number, row in enumerate(rows):
            result = cells.get((row, column))
            if result is None or not result.accuracy.size:
                continue
            mean = result.accuracy.mean(axis=0) * 100
            low, high = result.accuracy.min(axis=0) * 100, result.accuracy.max(axis=0) * 100
            axis.plot(result.rounds, mean, label=row, color=f"C{number}", linewidth=1.8)
            axis.fill_between(result.rounds, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
        axis.set_title(column)
        axis.set_xlabel("round" if panel >= len(columns) - across else "")
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    figure.supylabel("test accuracy (%)")
    figure.suptitle(experiment.title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(rows), 3))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_aside(path, buffer.getvalue())
