"""Sizes and choices that shape the program, found before anything is traced."""

import warnings

import jax
from flax import nnx

from jaxfl.component import integer
from jaxfl.data.dataset import FederatedData
from jaxfl.devices import choose_chunk, device_of
from jaxfl.federation import Federation
from jaxfl.memory import client_bytes, fitting
from jaxfl.models.objective import Factory, Loss, Objective
from jaxfl.models.zoo import Model
from jaxfl.state import Plan
from jaxfl.types import Spec


def make_plan(
    federation: Federation,
    data: FederatedData,
    model: Model | nnx.Module | Factory,
    *,
    loss: Loss | None = None,
    client_chunk: int | None = None,
    runs: int = 1,
) -> Plan:
    """Sizes and choices that shape the program, after checking that the parts fit together.

    ``runs`` is how many runs are vmapped together: they share the memory there is. Where the
    chunk that suits the device does not fit, a smaller one is taken.

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
    plan = suitable_plan(federation, data, model, loss=loss, client_chunk=client_chunk, runs=runs)
    return fitting(
        federation,
        plan,
        data,
        runs=runs,
        devices=len(data.inputs.devices()) if isinstance(data.inputs, jax.Array) else 1,
        chosen=client_chunk is not None,
    )


def suitable_plan(
    federation: Federation,
    data: FederatedData,
    model: Model | nnx.Module | Factory,
    *,
    loss: Loss | None = None,
    client_chunk: int | None = None,
    runs: int = 1,
) -> Plan:
    """As ``make_plan``, whether or not it fits the memory; ``data`` may be shapes."""
    population = data.clients
    federation.check(population, data.root)
    federation.attack.check(data.sample_shape, data.classes)
    cohort = federation.participation.cohort(population)
    if client_chunk is not None:
        client_chunk = integer(client_chunk, "client_chunk", 1)
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
    chunk = client_chunk
    if chunk is None:
        needed = runs * client_bytes(federation, objective, data, spec)
        chunk = choose_chunk(cohort, needed, device_of(data))
    return Plan(objective=objective, spec=spec, chunk=chunk)


def _most_byzantine(federation: Federation, cohort: int) -> int:
    if federation.byzantine_per_round is not None:
        return federation.byzantine_per_round
    return min(federation.byzantine, cohort)
