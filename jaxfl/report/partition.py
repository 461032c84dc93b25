"""The picture of a division among clients."""

import io
from pathlib import Path

import numpy as np

from jaxfl.data import FederatedData
from jaxfl.files import write_aside


def plot_partition(data: FederatedData, path: str | Path, title: str | None = None) -> None:
    """Draws clients x classes as a PNG: samples per class below, samples in all above.

    Args:
      data: one partition (not several, stacked).
      path: the file; its folder is made where it is missing.
      title: default: the data set's name and the number of clients.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = data.class_counts()
    clients, classes = counts.shape
    width = min(max(0.12 * clients, 5), 12)
    figure = Figure(figsize=(width, 2.2 + min(0.22 * classes, 6)), layout="constrained")
    heights = (1, max(0.22 * classes, 1.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    edges = np.arange(clients + 1) - 0.5
    above.stairs(counts.sum(axis=1), edges, fill=True, color="C0")
    above.set_ylim(0)
    above.set_ylabel("samples")
    above.spines[["top", "right"]].set_visible(False)
    image = below.pcolormesh(edges, np.arange(classes + 1) - 0.5, counts.T, cmap="Blues", vmin=0)
    below.invert_yaxis()
    below.set_xlabel("client")
    below.set_ylabel("class")
    below.set_xlim(edges[0], edges[-1])
    for axis in (below.xaxis, below.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=(above, below), label="samples of the class")
    figure.suptitle(title or f"{data.name}, {clients} clients")
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_aside(Path(path), buffer.getvalue())
