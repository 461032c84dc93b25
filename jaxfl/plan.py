"""Sizes and choices that shape the program, found before anything is traced."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxfl.arguments import integer
from jaxfl.data.federated import FederatedData
from jaxfl.devices import Device, choose_chunk, device_of, memory_of_device
from jaxfl.federation import Federation
from jaxfl.memory import client_bytes, fitting
from jaxfl.models.layers import segments
from jaxfl.models.objective import Factory, Loss, Objective
from jaxfl.models.words import next_word_entropy
from jaxfl.models.zoo import Model
from jaxfl.state import BFLOAT16, MATRIX, STORAGES, STREAM, Plan
from jaxfl.types import Spec

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
    turns: bool = False,
    client_accuracy: bool = False,
) -> Plan:
    """Sizes and choices that shape the program, after checking that the parts fit together.

    ``runs`` is how many runs are vmapped together: they share the memory there is. Where the
    chunk that suits the device does not fit, a smaller one is taken; and where none does, and they
    may take ``turns``, as those of a ``Simulation`` do, the plan says how many are together.
    ``storage`` is where a round has its updates, one of ``STORAGES``. ``"auto"`` streams those
    that take more than an eighth of the device's memory, and those above 256 MiB that are read
    once only, where rule and attack allow it; else it holds the matrix. ``client_accuracy`` counts
    an evaluation that asks for every client's.

    Raises:
      ValueError: more Byzantine clients than clients, a rule that is not defined for the cohort,
        cannot leave out absent clients or lacks the server's own samples, a chunk below 1, privacy
        that is not calibrated or a model it cannot cover, a run that does not fit the memory.
    """
    if federation.byzantine == data.clients > 0:
        warnings.warn(
            f"all {data.clients} clients are Byzantine: no update is honest, and measures of "
            "honest clients are NaN",
            stacklevel=3,
        )
    plan = suitable_plan(
        federation,
        data,
        model,
        loss=loss,
        client_chunk=client_chunk,
        runs=runs,
        storage=storage,
    )
    return fitting(
        federation,
        plan,
        data,
        runs=runs,
        devices=len(data.inputs.devices()) if isinstance(data.inputs, jax.Array) else 1,
        chosen=client_chunk is not None,
        turns=turns,
        client_accuracy=client_accuracy,
    )


def suitable_plan(
    federation: Federation,
    data: FederatedData,
    model: Model | nnx.Module | Factory,
    *,
    loss: Loss | None = None,
    client_chunk: int | None = None,
    runs: int = 1,
    storage: str = AUTOMATIC,
) -> Plan:
    """As ``make_plan``, whether or not it fits the memory; ``data`` may be shapes."""
    population = data.clients
    federation.check(population, data.root, data.rare)
    federation.attack.check(data.sample_shape, data.classes)
    cohort = federation.participation.cohort(population)
    if client_chunk is not None:
        client_chunk = integer(client_chunk, "client_chunk", 1)
    places = data.labels.shape[1:]
    if loss is None and places:
        loss = next_word_entropy
    extra = {} if loss is None else {"loss": loss}
    if isinstance(model, Model):
        model.check_public(data.public)
    objective = Objective.of(model, data.sample_shape, data.classes, **extra)
    seen = jax.ShapeDtypeStruct((2, *data.sample_shape), data.sample.dtype)
    objective.check(seen, data.classes, places)
    _check_words(objective, data)
    federation.attack.check_model(objective)
    spec = Spec(
        population=population,
        cohort=cohort,
        dim=objective.dim,
        dtype=objective.dtype,
        max_byzantine=_most_byzantine(federation, cohort),
        segments=segments(objective, seen),
        sample_shape=data.sample_shape,
    )
    federation.aggregator.check_segments(spec.segments)
    if not federation.privacy.calibrated:
        raise ValueError(
            f"{type(federation.privacy).__name__}: epsilon is a target; "
            "jaxfl.accounting.calibrate finds the noise"
        )
    federation.privacy.check_model(objective)
    storage = _storage_of(storage, federation, spec, runs, device_of(data))
    chunk = client_chunk
    if chunk is None:
        needed = client_bytes(federation, objective, data, spec)
        # A streamed chunk's rows are read while they are in the cache.
        needed += _row_bytes(federation, spec) if storage == STREAM else 0
        chunk = choose_chunk(cohort, runs * needed, device_of(data))
    return Plan(objective=objective, spec=spec, chunk=chunk, storage=storage)


def _check_words(objective: Objective, data: FederatedData) -> None:
    """Raises ValueError for words that the model does not know.

    The model would look up NaN. Of shapes alone, the largest id among training texts is known.
    """
    words = objective.words
    if words is None or not jnp.issubdtype(data.inputs.dtype, jnp.signedinteger):
        return
    others = (data.test_inputs, data.validation_inputs, data.rare_inputs, data.rare_test_inputs)
    seen = [x for x in others if isinstance(x, jax.Array | np.ndarray)]
    largest = int(max([*data.peak, *(x.max() for x in seen)]))
    if largest >= words:
        raise ValueError(
            f"model: its vocabulary is too small: it knows the ids of words below {words}, and "
            f"{data.name} has {largest}; both need the same vocabulary"
        )


def _storage_of(asked: str, federation: Federation, spec: Spec, runs: int, device: Device) -> str:
    """The storage of the updates that was asked for, or the best one."""
    check_storage(asked)
    reason = federation.why_held()
    bounded = federation.privacy.bounds
    if asked == STREAM and reason:
        raise ValueError(f'storage = "stream": {reason}; use storage = "matrix"')
    if asked == BFLOAT16 and bounded:
        # An aggregate rounded before its noise moves by more than what one client sends.
        name = type(federation.privacy).__name__
        raise ValueError(f'storage = "bfloat16" breaks the guarantee of {name}; use "matrix"')
    if asked != AUTOMATIC:
        return asked
    size = runs * spec.cohort * _row_bytes(federation, spec)
    memory = memory_of_device(device)
    large = memory is not None and size > memory / 8
    attacked = federation.byzantine and federation.attack.crafts
    once = federation.aggregator.reads_once and not (attacked or bounded or federation.fairness)
    worth = large or (once and size > WORTH_STREAMING)
    return STREAM if worth and reason is None else MATRIX


def _row_bytes(federation: Federation, spec: Spec) -> int:
    return spec.dim * federation.algorithm.width * np.dtype(spec.dtype).itemsize


def check_storage(storage: str) -> None:
    """Raises ValueError for an unknown storage of the updates."""
    known = (AUTOMATIC, *STORAGES)
    if storage not in known:
        raise ValueError(f"storage must be one of {', '.join(known)}; got {storage!r}")


def _most_byzantine(federation: Federation, cohort: int) -> int:
    if federation.byzantine_per_round is not None:
        return federation.byzantine_per_round
    return min(federation.byzantine, cohort)
