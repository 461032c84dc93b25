"""What cannot fit, found before anything runs, with the numbers."""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxfl.data import SOURCES, Dataset, FederatedData
from jaxfl.devices import memory_of_device
from jaxfl.experiments.cells import Cell
from jaxfl.federation import Federation
from jaxfl.memory import fitting, shapes_of
from jaxfl.models.objective import Objective
from jaxfl.plan import suitable_plan
from jaxfl.state import Plan

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
    return available is not None and SMALL * messages_of(cell, dataset) <= available


def messages_of(cell: Cell, dataset: Dataset) -> int:
    """Bytes of a round's messages, for all runs of a cell, and of two vectors beside them."""
    objective = Objective.of(cell.model, dataset.inputs.shape[1:], dataset.answers)
    cohort = cell.federation.participation.cohort(cell.clients)
    return len(cell.runs) * (cohort + 2) * objective.dim * objective.dtype.itemsize


def check_memory(cell: Cell, data: FederatedData) -> None:
    """Refuses a cell that does not fit the device, with the numbers.

    Args:
      cell: what is to run.
      data: shapes of its data, from ``Shapes``.

    Raises:
      ValueError: it needs more than the device's memory.
    """
    federation, plan = suited(cell, data)
    fitting(
        federation,
        plan,
        data,
        runs=len(cell.runs),
        devices=len(cell.placed or [0]),
        chosen=cell.client_chunk is not None,
        turns=True,
        client_accuracy=cell.client_accuracy,
    )


def suited(cell: Cell, data: FederatedData) -> tuple[Federation, Plan]:
    """The parts of a cell, and the plan of its program whether or not it fits.

    Noise that is still to be found for an epsilon takes no memory: any stands for it.
    """
    federation, runs = cell.federation, len(cell.runs)
    if not federation.privacy.calibrated:
        known = federation.privacy.replace(epsilon=None, noise_multiplier=1.0)
        federation = federation.replace(privacy=known)
    chunk = cell.client_chunk
    plan = suitable_plan(
        federation, data, cell.model, client_chunk=chunk, runs=runs, storage=cell.storage
    )
    return federation, plan


class Shapes:
    """Of the data as cells divide them; each division is made once."""

    def __init__(self) -> None:
        self._known: dict[Any, FederatedData] = {}

    def of(self, cell: Cell, dataset: Dataset) -> FederatedData:
        """The shapes of the data of all runs of a cell."""
        how = (cell.partition, cell.clients, cell.root, cell.client_test, cell.seeds[0])
        key = (repr(cell.data), cell.rare, cell.validation, how)
        if key not in self._known:
            first = dataclasses.replace(cell, seeds=cell.seeds[:1])
            self._known[key] = shapes_of(first.divide(dataset)[0])
        one, runs = self._known[key], len(cell.runs)
        return one if runs == 1 else jax.eval_shape(lambda d: d.stack([d] * (runs - 1)), one)
