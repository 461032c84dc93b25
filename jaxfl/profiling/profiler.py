"""Where the time of a round goes: ``profile``, and ``scaling`` over the number of clients."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxfl.accounting import calibrate
from jaxfl.arguments import integer
from jaxfl.data.federated import FederatedData
from jaxfl.federation import Federation
from jaxfl.models.objective import Factory
from jaxfl.models.zoo import Model
from jaxfl.profiling.measuring import Measured, compiled, measured, timed
from jaxfl.profiling.peaks import machine_peaks
from jaxfl.profiling.result import Peaks, Phase, Profile, Scaling
from jaxfl.profiling.trace import check_folder
from jaxfl.simulation import Simulation

ROUNDS = 3
"""Rounds in the block that is measured, unless told."""


def profile(
    simulation: Simulation | None = None,
    *,
    model: Model | nnx.Module | Factory | None = None,
    data: FederatedData | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    trace: str | os.PathLike[str] | None = None,
    peaks: Peaks | None = None,
    **settings: Any,
) -> Profile:
    """Measures where the time of a round goes, phase by phase.

    The compiled block of rounds is called several times, in turn with and without JAX's profiler.
    Its events say when each instruction ran, the instruction's scope to which phase it belongs;
    the compiled program's text how many operations and bytes one run of it takes. At every
    instant the time is divided among the instructions that run. The evaluation counts with its
    share of a round: one evaluation divided by ``evaluate_every``.

    Args:
      simulation: what is measured; its state stays as it is. Or, in its place, the keywords of
        ``simulate``:
      model: as for ``simulate``.
      data: as for ``simulate``; one partition.
      rounds: in the block that is called. Memory that is new to a call costs time once, so that
        a round of a longer block is shorter; ``rounds=evaluate_every`` is what a run does.
      seed: of the simulation.
      trace: a folder for the trace of one call: ``trace.json.gz`` opens in Perfetto.
      peaks: of the device; measured once and kept in the user's cache folder unless given.
      settings: the parts of ``Federation`` and the settings of ``Simulation``.

    Cost: compiles both programs anew, then some calls of each, of which those that are recorded
    take about 25 microseconds for every run of an instruction.

    Raises:
      ValueError: neither or both of a simulation and keywords, a simulation on several devices,
        parts that do not fit together, a folder that cannot be written.

    Example:
      >>> data = jaxfl.data.digits().split(jaxfl.data.IID(), clients=10)
      >>> found = profile(model=jaxfl.models.Softmax(), data=data, aggregator=jaxfl.Median())
      >>> found.phase("local work").flops > 2e5, found.total < 2 * found.seconds
      (True, True)
    """
    rounds = integer(rounds, "rounds", 1)
    folder = None if trace is None else Path(trace)
    if folder is not None:
        check_folder(folder, "trace")
    given = {"model": model, "data": data, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    if simulation is None:
        simulation = _simulation(given, rounds, seed)
    elif given:
        raise ValueError(
            f"profile: give a simulation or its parts; got both, {', '.join(sorted(given))}"
        )
    _check_devices(simulation)
    block, program = _block(simulation, rounds)
    of_round = measured(program, block, folder)
    seen = simulation.data, simulation.state
    evaluation = compiled(simulation._evaluation, *seen)
    of_evaluation = measured(evaluation, lambda: evaluation.compiled(*seen))
    every = simulation.evaluate_every
    return Profile(
        phases=_together(of_round, rounds, of_evaluation, every),
        seconds=of_round.seconds / rounds + of_evaluation.seconds / every,
        compile_seconds=program.seconds + evaluation.seconds,
        memory=program.memory,
        peaks=peaks or machine_peaks(),
        clients=simulation.plan.spec.cohort,
        parameters=simulation.plan.spec.dim,
        rounds=rounds,
        chunk=simulation.plan.chunk,
        spanning=of_round.spanning / rounds + of_evaluation.spanning / every,
        tracing=of_round.tracing / rounds + of_evaluation.tracing / every,
    )


def scaling(
    simulation_of: Callable[[int], Simulation], clients: Sequence[int], *, rounds: int = ROUNDS
) -> Scaling:
    """The time and the memory of a round over the number of clients.

    Args:
      simulation_of: makes the simulation with so many clients.
      clients: the numbers.
      rounds: in the block that is timed.

    Raises:
      ValueError: no number, one below 1, or a simulation that cannot be, with its number.
    """
    rounds = integer(rounds, "rounds", 1)
    sizes = check_clients(clients)
    seconds, memory = [], []
    for n in sizes:
        try:
            simulation = simulation_of(n)
            _check_devices(simulation)
        except ValueError as error:
            raise ValueError(f"clients: {n} clients cannot be profiled: {error}") from error
        block, program = _block(simulation, rounds)
        seconds.append(timed(block) / rounds)
        memory.append(program.memory)
    return Scaling(sizes, tuple(seconds), tuple(memory))


def check_clients(clients: Sequence[int]) -> tuple[int, ...]:
    """The numbers of clients; raises ValueError where there is none, or one below 1."""
    if not clients:
        raise ValueError("clients: needs at least one number of clients; got none")
    return tuple(integer(n, "clients", 1) for n in clients)


def _simulation(given: dict[str, Any], rounds: int, seed: int) -> Simulation:
    missing = [name for name in ("model", "data") if name not in given]
    if missing:
        raise ValueError(f"profile: needs a simulation, or {' and '.join(missing)}")
    parts = {name: given.pop(name) for name in list(given) if name in Federation._hints}
    model, data = given.pop("model"), given.pop("data")
    federation = calibrate(Federation(**parts), np.asarray(data.count), rounds)
    return Simulation(federation, data, model, seeds=(seed,), **given)


def _check_devices(simulation: Simulation) -> None:
    devices = len(simulation.data.start.sharding.device_set)
    if devices > 1:
        raise ValueError(f"profile: measures one device; this simulation is on {devices}")


def _block(simulation: Simulation, rounds: int) -> tuple[Callable[[], Any], Any]:
    """A call that runs the next block of rounds from where the last call stopped, and its program.

    The state is donated, as in a run; the simulation's own is copied before.
    """
    federation, data = simulation.federation, simulation.data
    state = jax.tree.map(jnp.copy, simulation.state)
    program = compiled(simulation.block(rounds), federation, data, state, donate=(2,))

    def call() -> Any:
        nonlocal state
        state, records = program.compiled(federation, data, state)
        return state, records

    return call, program


def _together(
    of_round: Measured, rounds: int, of_evaluation: Measured, every: int
) -> tuple[Phase, ...]:
    return tuple(
        Phase(
            a.name,
            a.seconds / rounds + b.seconds / every,
            a.flops / rounds + b.flops / every,
            a.bytes / rounds + b.bytes / every,
        )
        for a, b in zip(of_round.phases, of_evaluation.phases, strict=True)
    )
