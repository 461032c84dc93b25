"""How each partition divides MNIST: clients across, classes down, one panel per partition.

``python -m benchmarks.partitions [--data-dir DIR] [--out FILE]``
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxfl.data import (
    IID,
    BiasGroups,
    Dirichlet,
    GammaSimilarity,
    Natural,
    QuantityDirichlet,
    QuantityLogNormal,
    SFraction,
    Shards,
    mnist,
)

CLIENTS = 30
PARTITIONS = (
    IID(),
    Dirichlet(alpha=1.0),
    Dirichlet(alpha=0.1),
    Shards(),
    SFraction(s=0.3),
    BiasGroups(q=0.5),
    GammaSimilarity(gamma=0.5),
    QuantityDirichlet(alpha=1.0),
    QuantityLogNormal(sigma=1.0),
    Natural(),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws how partitions divide MNIST.")
    parser.add_argument("--data-dir", help="holds mnist/; default: JAXFL_DATA_DIR")
    parser.add_argument("--out", type=Path, default=Path("docs/images/partitions.png"))
    arguments = parser.parse_args()
    dataset = mnist(arguments.data_dir)
    # MNIST names no writers; for the picture of Natural each client has the samples of one class.
    thirds = np.arange(len(dataset.labels)) % (CLIENTS // 10)
    dataset = dataclasses.replace(dataset, client_ids=dataset.labels * 3 + thirds)
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = np.ravel(figure.subplots(2, 5, sharex=True, sharey=True))
    for axis, partition in zip(axes, PARTITIONS, strict=True):
        counts = dataset.split(partition, CLIENTS).class_counts()
        axis.imshow(counts.T, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
        axis.set_title(repr(partition), fontsize=9)
    figure.supxlabel("client")
    figure.supylabel("class")
    FigureCanvasAgg(figure)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
