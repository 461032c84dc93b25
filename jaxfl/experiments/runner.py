"""Runs the cells of an experiment one after another, into a folder, from wherever it stands.

All seeds and candidates of a cell are one program. After every block of rounds its lines are
appended to the log; a commit makes them permanent.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxfl.accounting import Meter, calibrate
from jaxfl.data import Dataset, FederatedData
from jaxfl.evaluation import Evaluation
from jaxfl.experiments.ahead import Ahead
from jaxfl.experiments.cells import Cell, Datasets
from jaxfl.experiments.findings import findings
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.limits import Shapes, check_data, check_memory, small
from jaxfl.experiments.results import (
    Result,
    add_end,
    add_guarantee,
    add_privacy,
    lines_of,
    not_run,
    result_of,
)
from jaxfl.experiments.schema import Experiment
from jaxfl.federation import Federation
from jaxfl.programs import keeping
from jaxfl.simulation import Simulation

Tick = Callable[[int, Evaluation], None]
"""Called after every block with the number of rounds done and the evaluation."""


class Interrupted(Exception):  # noqa: N818 - no error: the user asked
    """The run was asked to stop, and has saved where it stands."""


def not_applicable(cell: Cell) -> str | None:
    """Why the parts of this cell do not fit together, or None."""
    try:
        cell.federation.check(cell.clients, 0 if cell.root is None else cell.root.size)
    except ValueError as error:
        return str(error)
    return None


def unreachable(cell: Cell, load: Callable[[Cell], Dataset]) -> str | None:
    """Why no noise reaches the epsilon that the cell asks for, or None."""
    if all(f.privacy.calibrated for f in cell.federations):
        return None
    try:
        for data in cell.divide(load(cell)):
            for federation in cell.federations:
                calibrate(federation, np.asarray(data.count), cell.rounds)
    except ValueError as error:
        return str(error)
    return None


def check(experiment: Experiment) -> None:
    """Refuses an experiment none of whose cells can run, or one for more devices than there are.

    Raises:
      ValueError: with the first cell's reason.
    """
    findings(experiment)
    for cell in experiment.cells:
        _ = cell.placed
    reasons = [not_applicable(cell) for cell in experiment.cells]
    if all(reasons):
        raise ValueError(reasons[0])


def run_experiment(
    folder: RunFolder,
    watch: Callable[[int, Cell, int], Tick],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """The result of every cell, run or taken from the folder's log.

    Args:
      folder: open; says what to run and what is done.
      watch: told of each cell that runs (its index, itself, the rounds it starts from), gives
        what follows its progress.
      stop: asked after every block; True saves a checkpoint and ends the run.

    Raises:
      ValueError: data are missing or damaged, or parts do not fit together.
      OSError: the folder cannot be written any more.
      Interrupted: after ``stop``.
    """
    experiment = folder.experiment
    check(experiment)
    load = Datasets().of

    def prepare(index: int) -> Ready:
        return prepared(experiment.cells[index], load(experiment.cells[index]))

    reasons = _reasons(folder, load)
    with Ahead(_worth_preparing(folder, reasons, load), prepare) as ahead:
        yield from _results(folder, reasons, ahead, prepare, watch, stop)


def _worth_preparing(
    folder: RunFolder, reasons: Sequence[str | None], load: Callable[[Cell], Dataset]
) -> list[int]:
    """The cells that may be made ready while others run: small ones on one device.

    Only where programs are kept, since others cannot be compiled ahead.
    """
    return [
        index
        for index, cell in enumerate(folder.experiment.cells)
        if keeping()
        and reasons[index] is None
        and index >= folder.progress.cell
        and cell.placed is None
        and small(cell, load(cell))
    ]


def _results(
    folder: RunFolder,
    reasons: Sequence[str | None],
    ahead: "Ahead[Ready]",
    prepare: "Callable[[int], Ready]",
    watch: Callable[[int, Cell, int], Tick],
    stop: Callable[[], bool],
) -> Iterator[Result]:
    """The result of every cell, run unless the log has it."""
    for index, cell in enumerate(folder.experiment.cells):
        reason = reasons[index]
        if reason is None and index >= folder.progress.cell:
            started, ready = time.perf_counter(), ahead.take(index)
            tick = watch(index, cell, folder.progress.round)
            _run_cell(folder, index, ready or prepare(index), started, tick, watch, stop)
        elif reason is not None and index >= folder.progress.cell:
            folder.commit(index + 1, 0)
        if reason is not None:
            yield not_run(cell, reason)
        elif index not in folder.lines:
            raise ValueError(f"{folder.path} is damaged: cell {index + 1} is done, but not logged")
        else:
            seconds = folder.progress.seconds.get(str(index), 0.0)
            yield result_of(cell, folder.lines[index], seconds)


def _reasons(folder: RunFolder, load: Callable[[Cell], Dataset]) -> list[str | None]:
    """Why each cell does not apply, or None; refuses those to be run that cannot fit."""
    cells = folder.experiment.cells
    reasons = [not_applicable(cell) for cell in cells]
    left = [
        cell
        for index, cell in enumerate(cells)
        if reasons[index] is None and index >= folder.progress.cell
    ]
    _check_sizes(left, load)
    return [reason or unreachable(cell, load) for reason, cell in zip(reasons, cells, strict=True)]


def _check_sizes(cells: Sequence[Cell], load: Callable[[Cell], Dataset]) -> None:
    """Refuses what cannot fit the device, and triggers that do not fit the data."""
    for cell in cells:
        check_data(cell)
    shapes, checked = Shapes(), set()
    for cell in cells:
        data = load(cell)
        size = (
            repr((cell.data, cell.partition)),
            cell.federation,
            cell.model,
            cell.clients,
            len(cell.runs),
            cell.devices,
            cell.client_chunk,
            cell.storage,
        )
        if size not in checked:
            check_memory(cell, shapes.of(cell, data))
            checked.add(size)
        if cell.federation.attack.backdoor is not None:
            cell.federation.attack.check(data.inputs.shape[1:], data.classes)


def _simulation(
    cell: Cell, federations: list[Federation], parts: dict[int, FederatedData]
) -> Simulation:
    """All runs of a cell: a federation for each of them, and the data divided for each seed."""
    return Simulation(
        federations,
        [parts[seed] for _, seed in cell.runs],
        cell.model,
        seeds=[seed for _, seed in cell.runs],
        evaluate_every=cell.evaluate_every,
        client_chunk=cell.client_chunk,
        client_accuracy=cell.client_accuracy,
        devices=cell.placed,
        way=cell.way,
        storage=cell.storage,
    )


@dataclasses.dataclass(frozen=True)
class Ready:
    """A cell that can run at once."""

    simulation: Simulation
    federations: list[Federation]
    sizes: list[np.ndarray]
    """Samples of every client, by run."""


def prepared(cell: Cell, dataset: Dataset) -> Ready:
    """All runs of a cell, its data divided, its noise found, its program ready where it is kept."""
    parts = dict(zip(cell.seeds, cell.divide(dataset), strict=True))
    sizes = [np.asarray(parts[seed].count) for _, seed in cell.runs]
    federations = [
        calibrate(cell.federations[candidate], own, cell.rounds)
        for (candidate, _), own in zip(cell.runs, sizes, strict=True)
    ]
    simulation = _simulation(cell, federations, parts)
    simulation.prepare(min(cell.evaluate_every, cell.rounds))
    return Ready(simulation, federations, sizes)


def _run_cell(
    folder: RunFolder,
    index: int,
    ready: Ready,
    started: float,
    tick: Tick,
    watch: Callable[[int, Cell, int], Tick],
    stop: Callable[[], bool],
) -> None:
    cell, before = folder.experiment.cells[index], folder.progress.seconds.get(str(index), 0.0)
    done = folder.progress.round
    simulation, federations, sizes = ready.simulation, ready.federations, ready.sizes
    private = cell.federation.private
    meters = [Meter(f, s, cell.rounds) for f, s in zip(federations, sizes, strict=True) if private]
    if done:
        try:
            simulation.state = folder.restore(simulation.state)
        except ValueError as damaged:
            warnings.warn(f"{damaged}: cell {index + 1} is run again from round 0", stacklevel=2)
            folder.redo()
            done, before = 0, 0.0
            tick = watch(index, cell, done)
    saved = done
    while done < cell.rounds:
        length = min(cell.evaluate_every, cell.rounds - done)
        record, evaluation = simulation.advance(length)
        last = done + length >= cell.rounds
        lines = lines_of(index, cell, done, record, evaluation)
        add_privacy(lines, meters)
        if last:
            add_end(lines, np.asarray(simulation.state.params))
            add_guarantee(lines, federations, sizes)
        folder.append(index, lines)
        done += length
        tick(done, evaluation)
        folder.progress.seconds[str(index)] = before + time.perf_counter() - started
        stopping = stop()
        if last:
            folder.commit(index + 1, 0)
        elif stopping or done - saved >= cell.checkpoint_every:
            folder.commit(index, done, simulation.state)
            saved = done
        if stopping and not folder.finished:
            raise Interrupted
