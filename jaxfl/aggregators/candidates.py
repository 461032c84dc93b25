"""What models that the server could make of the updates are worth on its own samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.devices import map_clients
from jaxfl.numerics import rows
from jaxfl.numerics.order import smallest
from jaxfl.types import Aggregated, Batch, Context, Info, PyTree, State, present_mask


def usable_rows(updates: Float[Array, "n d"], context: Context) -> Bool[Array, " n"]:
    """Rows that are present, finite and of finite norm."""
    return jnp.isfinite(rows.squared_norms(updates)) & present_mask(context, updates.shape[0])


def evaluate_models(
    origin: Float[Array, " d"],
    scale: Float[Array, ""],
    updates: Float[Array, "n d"],
    batch: Batch,
    context: Context,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean loss and share of wrong answers of the models ``origin + scale * updates[i]``.

    Not differentiable: rules that use it select.

    Cost: n forward passes over the batch, ``context.client_chunk`` models at once; over several
    devices each evaluates its share.
    """

    def one(shared: PyTree, row: Array) -> tuple[Array, Array]:
        origin, scale, statistics, batch = shared
        flat = origin + scale * row.astype(origin.dtype)
        losses, correct = context.objective.evaluate(flat, statistics, batch.inputs, batch.labels)
        count = jnp.maximum(jnp.sum(batch.mask), 1)

        def mean(values: Array) -> Array:
            return jnp.sum(jnp.where(batch.mask, values.astype(origin.dtype), 0)) / count

        return mean(losses), mean(1 - correct)

    statistics = {} if context.statistics is None else context.statistics
    shared = (origin, scale, statistics, batch)
    shared, updates = jax.lax.stop_gradient((shared, updates))
    return map_clients(one, shared, updates, chunk=context.client_chunk)


def evaluate_model(
    flat: Float[Array, " d"], batch: Batch, context: Context
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss and share of wrong answers of one model."""
    nothing = jnp.zeros((1, flat.shape[0]), flat.dtype)
    loss, error = evaluate_models(flat, jnp.zeros((), flat.dtype), nothing, batch, context)
    return loss[0], error[0]


def rejected(
    values: Float[Array, " n"], usable: Bool[Array, " n"], context: Context, count: int
) -> Bool[Array, " n"]:
    """The clients with the ``count`` smallest values, after those whose row is not usable.

    Among equals the lowest index is rejected first. Absent clients are none.
    """
    present = present_mask(context, values.shape[0])
    order = jnp.where(usable, values, jnp.where(present, -jnp.inf, jnp.inf))
    return smallest(order[:, None], count)[:, 0]


def mean_of(
    kept: Bool[Array, " n"],
    updates: Float[Array, "n d"],
    scores: Float[Array, " n"],
    state: State,
) -> Aggregated:
    """The mean of the kept rows, with the scores they were kept for."""
    weights = kept.astype(scores.dtype)
    weights = rows.safe_ratio(weights, jnp.sum(weights))
    update = rows.combine(weights, updates, jnp.zeros((0, updates.shape[1]), updates.dtype))
    info = Info(selected=kept, weights=weights, scores=scores)
    return Aggregated(update=update, state=state, info=info)
