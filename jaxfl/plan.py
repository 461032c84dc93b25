"""Sizes and choices that shape the program, found before anything is traced."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfl.clients import Broadcast, Samples
from jaxfl.component import integer
from jaxfl.data.dataset import FederatedData
from jaxfl.devices import Device, choose_chunk, device_of, memory_of_device, working_set
from jaxfl.federation import Federation
from jaxfl.local_work import train
from jaxfl.models.objective import Factory, Loss, Objective
from jaxfl.models.zoo import Model
from jaxfl.state import MATRIX, STORAGES, STREAM, Plan
from jaxfl.types import Batch, PyTree, Spec

AUTOMATIC = "auto"
WORTH_STREAMING = 2**28
"""Bytes of updates above which reading new memory takes longer than the round's other work."""


def make_plan(
    federation: Federation,
    data: FederatedData,
    model: Model | nnx.Module | Factory,
    *,
    loss: Loss | None = None,
    client_chunk: int | None = None,
    runs: int = 1,
    storage: str = AUTOMATIC,
) -> Plan:
    """Sizes and choices that shape the program, after checking that the parts fit together.

    ``runs`` is how many runs are vmapped together: they share the memory that a chunk may take.
    ``storage`` is where a round has its updates, one of ``STORAGES``. ``"auto"`` streams those
    that take more than an eighth of the device's memory, and those above 256 MiB that are read
    once only, where rule and attack allow it; else it holds the matrix.

    Raises:
      ValueError: more Byzantine clients than clients, a rule that is not defined for the cohort,
        cannot leave out absent clients or lacks the server's own samples, a chunk below 1, privacy
        that is not calibrated or a model it cannot cover, memory of clients that does not fit.
    """
    population = data.clients
    federation.check(population, data.root)
    federation.attack.check(data.sample_shape, data.classes)
    cohort = federation.participation.cohort(population)
    if client_chunk is not None:
        client_chunk = integer(client_chunk, "client_chunk", 1)
    if federation.byzantine == population > 0:
        warnings.warn(
            f"all {population} clients are Byzantine: no update is honest, and measures of honest "
            "clients are NaN",
            stacklevel=3,
        )
    extra = {} if loss is None else {"loss": loss}
    objective = Objective.of(model, data.sample_shape, data.classes, **extra)
    inputs = jax.ShapeDtypeStruct((2, *data.sample_shape), data.inputs.dtype)
    objective.check(jax.eval_shape(data.normalise, inputs), data.classes)
    spec = Spec(
        population=population,
        cohort=cohort,
        dim=objective.dim,
        dtype=objective.dtype,
        max_byzantine=_most_byzantine(federation, cohort),
    )
    if not federation.privacy.calibrated:
        raise ValueError(
            f"{type(federation.privacy).__name__}: epsilon is a target; "
            "jaxfl.accounting.calibrate finds the noise"
        )
    federation.privacy.check_model(objective)
    _check_memory(federation, spec, runs, device_of(data))
    chunk = client_chunk or _automatic_chunk(federation, objective, data, spec, runs)
    storage = _storage_of(storage, federation, spec, runs, device_of(data))
    return Plan(objective=objective, spec=spec, chunk=chunk, storage=storage)


def _storage_of(asked: str, federation: Federation, spec: Spec, runs: int, device: Device) -> str:
    """The storage of the updates that was asked for, or the best one."""
    check_storage(asked)
    reason = _not_streamed(federation)
    if asked == STREAM and reason:
        raise ValueError(f'storage = "stream": {reason}; use storage = "matrix"')
    if asked != AUTOMATIC:
        return asked
    row = spec.dim * federation.algorithm.width * np.dtype(spec.dtype).itemsize
    size = runs * spec.cohort * row
    memory = memory_of_device(device)
    large = memory is not None and size > memory / 8
    attacked = federation.byzantine and federation.attack.crafts
    once = getattr(federation.aggregator, "needs", None) == frozenset() and not attacked
    worth = large or (once and size > WORTH_STREAMING)
    return STREAM if worth and reason is None else MATRIX


def check_storage(storage: str) -> None:
    """Raises ValueError for an unknown storage of the updates."""
    known = (AUTOMATIC, *STORAGES)
    if storage not in known:
        raise ValueError(f"storage must be one of {', '.join(known)}; got {storage!r}")


def _not_streamed(federation: Federation) -> str | None:
    """Why the updates cannot be streamed, or None."""
    attacked = federation.byzantine and federation.attack.crafts
    parts = (federation.aggregator, *((federation.attack,) if attacked else ()))
    for part in parts:
        if not part.streams:
            return f"{type(part).__name__} needs all updates at once"
    if not federation.algorithm.post_processes:
        return f"{type(federation.algorithm).__name__} reads every message again at the server"
    return None


def _check_memory(federation: Federation, spec: Spec, runs: int, device: Device) -> None:
    """Refuses memories of clients that would not fit the device."""
    one = jax.tree.leaves(jax.eval_shape(lambda: federation.algorithm.init(spec)))
    needed = runs * spec.population * sum(x.size * x.dtype.itemsize for x in one)
    available = memory_of_device(device)
    if available is not None and needed > available / 2:
        raise ValueError(
            f"{type(federation.algorithm).__name__} keeps memory for every client: "
            f"{spec.population} clients times {runs} need {needed / 2**30:.1f} GiB, more than "
            f"half of the device's {available / 2**30:.1f} GiB"
        )


def _most_byzantine(federation: Federation, cohort: int) -> int:
    if federation.byzantine_per_round is not None:
        return federation.byzantine_per_round
    return min(federation.byzantine, cohort)


def _automatic_chunk(
    federation: Federation, objective: Objective, data: FederatedData, spec: Spec, runs: int
) -> int:
    def one_client(params: Array, model_state: PyTree, key: Array) -> PyTree:
        def load(place: Array, mask: Array, key: Array) -> Batch:
            return Batch(*data.samples(place), mask)

        samples = Samples(jnp.int32(1), load, data.capacity)
        server = federation.algorithm.init_server(spec)
        received = Broadcast(objective.unravel(params), model_state, jnp.int32(0), server)
        memory = federation.algorithm.init(spec)
        return train(federation, objective, received, samples, memory, key)

    key = jax.random.key(0)
    params, model_state = jax.eval_shape(objective.init, key)
    needed = runs * working_set(one_client, params, model_state, key)
    return choose_chunk(spec.cohort, needed, device_of(data))
