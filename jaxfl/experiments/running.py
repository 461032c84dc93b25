"""Runs one group of cells: here, or on a worker of a cluster.

All seeds and candidates of a group are one program. After every block of rounds its lines are
appended to the log; a commit makes them permanent.
"""

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jaxfl.accounting import Meter, calibrate
from jaxfl.data import Dataset, FederatedData
from jaxfl.evaluation import Evaluation
from jaxfl.experiments import hosts
from jaxfl.experiments.cells import Cell, Datasets
from jaxfl.experiments.cluster import Cluster
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.groups import Group
from jaxfl.experiments.lines import (
    add_clients,
    add_end,
    add_guarantee,
    add_privacy,
    lines_of,
)
from jaxfl.experiments.log import Line
from jaxfl.experiments.schema import Experiment, importable
from jaxfl.federation import Federation
from jaxfl.progress import CompileClock
from jaxfl.simulation import Simulation

Tick = Callable[[int, Evaluation], None]
"""Called after every block with the number of rounds done and the evaluation."""
Watch = Callable[[Sequence[Group], int, int], Tick]
"""Called with all groups that run, the number of the one that does now, and its rounds done."""


class Interrupted(Exception):  # noqa: N818 - no error: the user asked
    """The run was asked to stop, and has saved where it stands."""


def _simulation(
    cell: Cell, federations: list[Federation], parts: dict[int, FederatedData]
) -> Simulation:
    """All runs of a cell: a federation for each of them, and the data divided for each seed."""
    honesty, seeds, honest = cell.honesty, [seed for _, seed, _ in cell.runs], None
    if honesty is not None:
        masks = {seed: honesty.masks(seed) for seed in cell.seeds}
        honest = np.stack([masks[seed][number] for _, seed, number in cell.runs])
        seeds = [honesty.run_seed(seed, number) for _, seed, number in cell.runs]
    return Simulation(
        federations,
        [parts[seed] for _, seed, _ in cell.runs] if len(parts) > 1 else next(iter(parts.values())),
        cell.model,
        seeds=seeds,
        honest=honest,
        evaluate_every=cell.evaluate_every,
        client_chunk=cell.client_chunk,
        client_accuracy=cell.client_accuracy,
        devices=cell.placed,
        way=cell.way,
        storage=cell.storage,
        signs=cell.signs,
    )


@dataclasses.dataclass(frozen=True)
class Ready:
    """A cell that can run at once."""

    simulation: Simulation
    federations: list[Federation]
    sizes: list[np.ndarray]
    """Samples of every client, by run."""


def made_ready(cell: Cell, dataset: Dataset) -> Ready:
    """All runs of a cell, its data divided, its noise found, its program ready where it is kept."""
    parts = dict(zip(cell.seeds, cell.divide(dataset), strict=True))
    hosts.check_data(parts)
    sizes = [np.asarray(parts[seed].count) for _, seed, _ in cell.runs]
    federations = [
        calibrate(cell.federations[candidate], own, cell.rounds)
        for (candidate, *_), own in zip(cell.runs, sizes, strict=True)
    ]
    simulation = _simulation(cell, federations, parts)
    simulation.make_ready(min(cell.evaluate_every, cell.rounds))
    return Ready(simulation, federations, sizes)


def run_group(
    folder: RunFolder,
    groups: Sequence[Group],
    at: int,
    ready: Ready,
    started: float,
    watch: Watch,
    stop: Callable[[], bool],
) -> None:
    """Runs a group, from its checkpoint if it has one, to its end, and commits it.

    Raises:
      Interrupted: ``stop`` said so after a block; where it stands is saved.
    """
    group, cell = groups[at], groups[at].cell
    simulation, federations, sizes = ready.simulation, ready.federations, ready.sizes
    private = cell.federation.private
    meters = [Meter(f, s, cell.rounds) for f, s in zip(federations, sizes, strict=True) if private]
    done = folder.progress.round
    if done:
        try:
            simulation.state = folder.restore(simulation.state)
        except ValueError as damaged:
            warnings.warn(f"{damaged}: {group.name} is run again from round 0", stacklevel=2)
            folder.redo(group.indices)
            done = 0
    saved, tick = done, watch(groups, at, done)
    while done < cell.rounds:
        length = min(cell.evaluate_every, cell.rounds - done)
        with CompileClock() as clock:
            begun = time.perf_counter()
            record, evaluation = simulation.advance(length)
            ran = time.perf_counter() - begun - clock.seconds
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
                if answer[1].client_accuracy is not None:
                    byzantine = group.runs_of(place, np.asarray(simulation.state.byzantine))
                    add_clients(lines, answer[1].client_accuracy, byzantine)
            folder.append(index, lines)
        done += length
        tick(done, evaluation)
        now = time.perf_counter()
        folder.took(group.indices, now - started, ran)
        started, stopping = now, stop()
        if last:
            folder.commit(group.indices, 0)
        elif stopping or done - saved >= cell.checkpoint_every:
            folder.commit((), done, simulation.state)
            saved = done
        if stopping and not folder.finished:
            raise Interrupted


@dataclasses.dataclass(frozen=True)
class Job:
    """A group of cells, for a worker of a cluster."""

    experiment: Experiment
    indices: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Done:
    """What a worker answers."""

    lines: list[Line]
    evaluation: Evaluation
    """The last."""
    seconds: float
    running: float
    """The part in which rounds ran."""


def run_job(job: Job) -> Done:
    """Runs a group of cells into a folder of its own, and gives what was logged."""
    importable(job.experiment.modules)
    started, evaluations = time.perf_counter(), []
    group = Group(job.indices, tuple(job.experiment.cells[i] for i in job.indices))

    def watch(*_: Any) -> Tick:
        return lambda _, evaluation: evaluations.append(evaluation)

    with TemporaryDirectory() as path, RunFolder(Path(path), job.experiment) as folder:
        ready = made_ready(group.cell, Datasets().of(group.cell))
        run_group(folder, [group], 0, ready, started, watch, lambda: False)
        text = (folder.path / "rounds.jsonl").read_text()
        running = sum(folder.progress.running.values())
    lines = [json.loads(line) for line in text.splitlines()]
    return Done(lines, evaluations[-1], time.perf_counter() - started, running)


def gather(
    folder: RunFolder,
    groups: Sequence[Group],
    at: int,
    cluster: Cluster[Job, Done],
    watch: Watch,
    stop: Callable[[], bool],
) -> None:
    """Takes what a worker answered into the folder, as if it had run here."""
    group, tick = groups[at], watch(groups, at, 0)
    done = cluster.take(at, stop)
    if done is None:
        raise Interrupted
    for line in done.lines:
        folder.append(line["cell"], [line])
    folder.took(group.indices, done.seconds, done.running)
    folder.commit(group.indices, 0)
    tick(group.cells[0].rounds, done.evaluation)
