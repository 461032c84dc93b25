"""Runs the cells of an experiment, group after group, into a folder, from wherever it stands.

All seeds and candidates of a group are one program. After every block of rounds its lines are
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
from jaxfl.experiments.groups import Group, grouped
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
Watch = Callable[[Sequence[Group], int, int], Tick]
"""Called with all groups that run, the number of the one that does now, and its rounds done."""


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
    folder: RunFolder, watch: Watch, stop: Callable[[], bool] = lambda: False
) -> Iterator[Result]:
    """The result of every cell, run or taken from the folder's log.

    Args:
      folder: open; says what to run and what is done.
      watch: told of the groups of cells, which of them runs now and from which round on; gives
        what follows its progress.
      stop: asked after every block; True saves a checkpoint and ends the run.

    Raises:
      ValueError: data are missing or damaged, or parts do not fit together.
      OSError: the folder cannot be written any more.
      Interrupted: after ``stop``.
    """
    cells = folder.experiment.cells
    check(folder.experiment)
    load = Datasets().of
    reasons = _reasons(folder, load)
    apply = {index for index, reason in enumerate(reasons) if reason is None}
    order = folder.arrange(grouped(cells, apply, load))
    groups = [Group(tuple(g), tuple(cells[i] for i in g)) for g in order if apply.issuperset(g)]

    def prepare(at: int) -> Ready:
        return prepared(groups[at].cell, load(groups[at].cell))

    left = [at for at, group in enumerate(groups) if not folder.done.issuperset(group.indices)]
    with Ahead(_worth_preparing(groups, left, load), prepare) as ahead:
        for index, (cell, reason) in enumerate(zip(cells, reasons, strict=True)):
            if reason is not None:
                if index not in folder.done:
                    folder.commit([index], 0)
                yield not_run(cell, reason)
                continue
            while index not in folder.done:
                at = left.pop(0)
                started, ready = time.perf_counter(), ahead.take(at) or prepare(at)
                _run_group(folder, groups, at, ready, started, watch, stop)
            if index not in folder.lines:
                raise ValueError(
                    f"{folder.path} is damaged: cell {index + 1} is done, but not logged"
                )
            seconds = folder.progress.seconds.get(str(index), 0.0)
            yield result_of(cell, folder.lines[index], seconds)


def _worth_preparing(
    groups: Sequence[Group], left: Sequence[int], load: Callable[[Cell], Dataset]
) -> list[int]:
    """The groups that may be made ready while others run: small ones on one device.

    Only where programs are kept, since others cannot be compiled ahead.
    """
    cells = {at: groups[at].cell for at in left if keeping()}
    return [at for at, cell in cells.items() if cell.placed is None and small(cell, load(cell))]


def _reasons(folder: RunFolder, load: Callable[[Cell], Dataset]) -> list[str | None]:
    """Why each cell does not apply, or None; refuses those to be run that cannot fit."""
    cells = folder.experiment.cells
    reasons = [not_applicable(cell) for cell in cells]
    left = [
        cell
        for index, cell in enumerate(cells)
        if reasons[index] is None and index not in folder.done
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


def _run_group(
    folder: RunFolder,
    groups: Sequence[Group],
    at: int,
    ready: Ready,
    started: float,
    watch: Watch,
    stop: Callable[[], bool],
) -> None:
    group, cell = groups[at], groups[at].cell
    simulation, federations, sizes = ready.simulation, ready.federations, ready.sizes
    private = cell.federation.private
    meters = [Meter(f, s, cell.rounds) for f, s in zip(federations, sizes, strict=True) if private]
    done, before = folder.progress.round, folder.seconds(group.indices)
    if done:
        try:
            simulation.state = folder.restore(simulation.state)
        except ValueError as damaged:
            warnings.warn(f"{damaged}: {group.name} is run again from round 0", stacklevel=2)
            folder.redo(group.indices)
            done, before = 0, 0.0
    saved, tick = done, watch(groups, at, done)
    while done < cell.rounds:
        length = min(cell.evaluate_every, cell.rounds - done)
        record, evaluation = simulation.advance(length)
        last = done + length >= cell.rounds
        params = np.asarray(simulation.state.params) if last else None
        for place, (index, one) in enumerate(zip(group.indices, group.cells, strict=True)):
            own = slice(place * len(one.runs), (place + 1) * len(one.runs))
            answer = group.runs_of(place, (record, evaluation))
            lines = lines_of(index, one, done, *answer)
            add_privacy(lines, meters[own])
            if params is not None:
                add_end(lines, group.runs_of(place, params))
                add_guarantee(lines, federations[own], sizes[own])
            folder.append(index, lines)
        done += length
        tick(done, evaluation)
        folder.took(group.indices, before + time.perf_counter() - started)
        stopping = stop()
        if last:
            folder.commit(group.indices, 0)
        elif stopping or done - saved >= cell.checkpoint_every:
            folder.commit((), done, simulation.state)
            saved = done
        if stopping and not folder.finished:
            raise Interrupted
