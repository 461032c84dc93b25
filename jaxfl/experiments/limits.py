"""What cannot fit, found before anything runs, with the numbers."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxfl.data import SOURCES, Dataset
from jaxfl.devices import memory_of_device
from jaxfl.experiments.cells import Cell
from jaxfl.models.objective import Objective

MOST_CELLS = 10_000
"""Of one experiment; its table of results would have as many entries."""

SMALL = 32
"""A cell whose messages fit the device's memory so many times is small: its data, its states and
the compiler's memory are counted nowhere."""


def check_grid(sweep: Mapping[str, Sequence[Any]], tune: Mapping[str, Sequence[Any]]) -> None:
    """Refuses a grid that nobody waits for.

    Raises:
      ValueError: more than ``MOST_CELLS`` combinations.
    """
    for name, grid in (("sweep", sweep), ("tune", tune)):
        cells = math.prod(map(len, grid.values()))
        if cells > MOST_CELLS:
            sizes = " x ".join(f"{axis} {len(values):,}" for axis, values in grid.items())
            raise ValueError(
                f"{name} makes {cells:,} combinations ({sizes}), more than {MOST_CELLS:,}: "
                "split it into several experiments"
            )


def check_data(cell: Cell) -> None:
    """Refuses to make more samples than fit the device.

    Raises:
      ValueError: they need more than the device's memory.
    """
    name, arguments = cell.data
    parameters = inspect.signature(SOURCES[name]).parameters
    if "samples" not in parameters:
        return  # published data have the size that they have
    samples, features, classes = (
        arguments.get(key, parameters[key].default) for key in ("samples", "features", "classes")
    )
    needed, available = (
        4 * features * max(samples, classes),
        memory_of_device(jax.local_devices()[0]),
    )
    if available is not None and needed > available:
        raise ValueError(
            f"data: {samples:,} samples of {features:,} features in {classes:,} classes need "
            f"{needed / 2**30:,.1f} GiB, more than the device's {available / 2**30:,.1f} GiB"
        )


def small(cell: Cell, dataset: Dataset) -> bool:
    """Whether such cells may be made ready beside one that runs: all they hold is little."""
    available = memory_of_device(jax.local_devices()[0])
    objective = Objective.of(cell.model, dataset.inputs.shape[1:], dataset.classes)
    return available is not None and SMALL * _messages(cell, objective) <= available


def _messages(cell: Cell, objective: Objective) -> int:
    """Bytes of a round's messages, for all runs of a cell, and of two vectors beside them."""
    cohort = cell.federation.participation.cohort(cell.clients)
    return len(cell.runs) * (cohort + 2) * objective.dim * objective.dtype.itemsize


def check_memory(cell: Cell, dataset: Dataset) -> None:
    """Refuses a cell whose messages alone do not fit the device.

    The matrix of a round's messages exists whole, for every seed and candidate at once, beside
    two vectors of parameters; whatever else a round needs comes on top. Several accelerators
    share it; processors share one memory.

    Raises:
      ValueError: they need more than the device's memory.
    """
    available = memory_of_device(jax.local_devices()[0])
    if available is None:
        return
    if jax.default_backend() != "cpu":
        available *= len(cell.placed or [0])
    objective = Objective.of(cell.model, dataset.inputs.shape[1:], dataset.classes)
    cohort, runs = cell.federation.participation.cohort(cell.clients), len(cell.runs)
    needed = _messages(cell, objective)
    if needed > available:
        raise ValueError(
            f"model: {type(cell.model).__name__} has {objective.dim:,} parameters; messages of "
            f"{cohort:,} clients for {runs} run(s) at once need {needed / 2**30:,.1f} GiB, more "
            f"than the device's {available / 2**30:,.1f} GiB"
        )
