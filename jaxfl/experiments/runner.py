"""Runs the cells of an experiment, group after group, into a folder, from wherever it stands."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import jax
import numpy as np

from jaxfl.accounting import calibrate
from jaxfl.contracts import while_running
from jaxfl.data import Dataset
from jaxfl.experiments.ahead import Ahead
from jaxfl.experiments.cells import Cell, Datasets
from jaxfl.experiments.cluster import Cluster
from jaxfl.experiments.commit import ELSEWHERE
from jaxfl.experiments.findings import findings
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.from_log import not_run, result_of
from jaxfl.experiments.groups import Group, grouped, sharing
from jaxfl.experiments.limits import Shapes, check_data, check_memory, small
from jaxfl.experiments.results import Result
from jaxfl.experiments.running import (
    Job,
    Ready,
    Watch,
    gather,
    made_ready,
    run_group,
    run_job,
)
from jaxfl.experiments.schema import Experiment
from jaxfl.programs import keeping, make_room

LOCAL, RAY = LAUNCHERS = ("local", "ray")
"""Where groups of cells run: here, one after the other, or on a Ray cluster's workers."""


def not_applicable(cell: Cell) -> str | None:
    """Why the parts of this cell do not fit together, or None."""
    try:
        root, rare = (0 if part is None else part.size for part in (cell.root, cell.rare))
        cell.federation.check(cell.clients, root, rare)
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
    watch: Watch,
    stop: Callable[[], bool] = lambda: False,
    launcher: str = LOCAL,
) -> Iterator[Result]:
    """The result of every cell, run or taken from the folder's log.

    Args:
      folder: open; says what to run and what is done.
      watch: told of the groups of cells, which of them runs now and from which round on; gives
        what follows its progress.
      stop: asked after every block; True saves a checkpoint and ends the run.
      launcher: ``local``, or ``ray``: groups run on a cluster's workers, and are taken into the
        folder whole, in their order. What is under way when it stops is lost.

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
    # A worker of a cluster compiles what it runs.
    shared = launcher == LOCAL and folder.experiment.table.get("attacks_share_program", False)
    run = sharing(cells, apply) if shared else cells
    still = [run[index] for index in sorted(apply - folder.progress.done)]
    _check_sizes(still, load, here=launcher == LOCAL)
    order = folder.arrange(grouped(run, apply, load))
    groups = [Group(tuple(g), tuple(run[i] for i in g)) for g in order if apply.issuperset(g)]

    def make_ready(at: int) -> Ready:
        return made_ready(groups[at].cell, load(groups[at].cell))

    done = folder.progress.done
    left = [at for at, group in enumerate(groups) if not done.issuperset(group.indices)]
    # A group that is under way goes on here, from its checkpoint.
    away = left[1 if folder.progress.round else 0 :] if launcher == RAY else []
    jobs = {at: Job(folder.experiment, groups[at].indices) for at in away}
    early = [] if away else _worth_preparing(groups, left, load)
    with (
        Ahead(early, make_ready, lambda at: groups[at].program) as ahead,
        Cluster(run_job, jobs) if jobs else nullcontext() as far,
    ):
        for index, (cell, reason) in enumerate(zip(cells, reasons, strict=True)):
            if reason is not None:
                if index not in folder.progress.done:
                    folder.commit([index], 0)
                yield not_run(cell, reason)
                continue
            while index not in folder.progress.done:
                at = left.pop(0)
                make_room()
                started = time.perf_counter()
                with while_running(f"cell {groups[at].name}", groups[at].cell.federation):
                    if far is not None and at in jobs:
                        gather(folder, groups, at, far, watch, stop)
                    else:
                        ready = ahead.take(at) or make_ready(at)
                        run_group(folder, groups, at, ready, started, watch, stop)
            if index not in folder.lines:
                raise ValueError(
                    f"{folder.path} is damaged: cell {index + 1} is done, but not logged"
                )
            yield result_of(cell, folder.lines.pop(index), *folder.progress.time_of(index))


def _worth_preparing(
    groups: Sequence[Group], left: Sequence[int], load: Callable[[Cell], Dataset]
) -> list[int]:
    """The groups that may be made ready while others run: small ones on one device.

    Only where programs are kept, since others cannot be compiled ahead.
    """
    cells = {at: groups[at].cell for at in left if keeping()}
    return [at for at, cell in cells.items() if cell.placed is None and small(cell, load(cell))]


def _reasons(folder: RunFolder, load: Callable[[Cell], Dataset]) -> list[str | None]:
    """Why each cell does not apply, or None."""
    cells = folder.experiment.cells
    reasons = [not_applicable(cell) for cell in cells]
    for index in folder.progress.elsewhere:
        reasons[index] = ELSEWHERE
    for index, cell in enumerate(cells):
        if reasons[index] is None and index not in folder.progress.done:
            check_data(cell)
    return [reason or unreachable(cell, load) for reason, cell in zip(reasons, cells, strict=True)]


def _check_sizes(cells: Sequence[Cell], load: Callable[[Cell], Dataset], *, here: bool) -> None:
    """Refuses triggers that do not fit the data and, of cells that run here, what cannot fit.

    What fits a worker of a cluster it finds itself.
    """
    shapes, checked = Shapes(), set()
    for cell in cells:
        data = load(cell)
        size = (
            repr(cell.data),
            cell.partition,
            cell.federation.byzantine,
            jax.tree.structure(cell.federation),
            cell.model,
            cell.clients,
            len(cell.runs),
            cell.devices,
            cell.client_chunk,
            cell.storage,
        )
        if here and size not in checked:
            check_memory(cell, shapes.of(cell, data))
            checked.add(size)
        if cell.federation.attack.backdoor is not None:
            cell.federation.attack.check(data.inputs.shape[1:], data.answers)
