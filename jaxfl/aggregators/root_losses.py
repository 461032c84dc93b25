"""Losses on the server's own samples, for rules that judge an update by the model it leads to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.devices import map_clients
from jaxfl.models.objective import ModelState
from jaxfl.numerics import rows
from jaxfl.numerics.order import smallest
from jaxfl.types import Aggregated, Batch, Context, Info, PyTree, State, Struct, present_mask


def usable_rows(updates: Float[Array, "n d"], context: Context) -> Bool[Array, " n"]:
    """Rows that are present, finite and of finite norm."""
    return jnp.isfinite(rows.squared_norms(updates)) & present_mask(context, updates.shape[0])


class Worth(Struct):
    """How good a model is on the server's own samples."""

    losses: Float[Array, " b"]
    """Of each sample, 0 for padding."""
    error: Float[Array, ""]
    """Share of wrong answers."""


def evaluate(flat: Float[Array, " d"], batch: Batch, context: Context) -> Worth:
    """One model. Not differentiable: rules that evaluate models select by it."""
    model_state = {} if context.model_state is None else context.model_state
    return _worth(*jax.lax.stop_gradient((flat, model_state, batch)), context)


def evaluate_each(
    origin: Float[Array, " d"],
    scale: Float[Array, ""],
    updates: Float[Array, "n d"],
    batch: Batch,
    than: Worth,
    context: Context,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """For each model ``origin + scale * updates[i]``: its rise in mean loss, its error rate.

    The losses are compared sample by sample: the difference of two means would drown in the
    rounding of the means where one update matters little. Not differentiable.

    Args:
      origin: the model that the updates are added to.
      scale: what they are multiplied by.
      updates: one per client; the answer for a row that is not finite means nothing.
      batch: the samples.
      than: the model to compare the losses with.
      context: has the objective.

    Cost: n forward passes over the batch, ``context.client_chunk`` models at once; over several
    devices each evaluates its share.
    """

    def one(shared: PyTree, row: Array) -> tuple[Array, Array]:
        origin, scale, model_state, batch, than = shared
        worth = _worth(origin + scale * row.astype(origin.dtype), model_state, batch, context)
        return jnp.sum(worth.losses - than.losses) / _count(batch), worth.error

    model_state = {} if context.model_state is None else context.model_state
    shared = (origin, scale, model_state, batch, than)
    shared, updates = jax.lax.stop_gradient((shared, updates))
    return map_clients(one, shared, updates, chunk=context.client_chunk)


def _worth(
    flat: Float[Array, " d"], model_state: ModelState, batch: Batch, context: Context
) -> Worth:
    losses, correct = context.objective.evaluate(flat, model_state, batch.inputs, batch.labels)
    # A sample without a prediction (NaN) is wrong.
    wrong = jnp.sum(jnp.where(batch.mask, 1 - jnp.nan_to_num(correct), 0)).astype(flat.dtype)
    losses = jnp.where(batch.mask, losses, 0).astype(flat.dtype)
    return Worth(losses=losses, error=wrong / _count(batch))


def _count(batch: Batch) -> Int[Array, ""]:
    return jnp.maximum(jnp.sum(batch.mask), 1)


def rejected(
    values: Float[Array, " n"], usable: Bool[Array, " n"], context: Context, count: int
) -> Bool[Array, " n"]:
    """The clients with the ``count`` smallest values, after those whose row is not usable.

    Among equals the lowest index is rejected first. Absent clients are none.
    """
    present = present_mask(context, values.shape[0])
    order = jnp.where(usable, values, jnp.where(present, -jnp.inf, jnp.inf))
    return smallest(order[:, None], count)[:, 0]


def mean_of_kept(
    kept: Bool[Array, " n"],
    usable: Bool[Array, " n"],
    updates: Float[Array, "n d"],
    scores: Float[Array, " n"],
    state: State,
) -> Aggregated:
    """The mean of the kept rows, with the scores they were kept for."""
    weights = kept.astype(scores.dtype)
    weights = rows.safe_ratio(weights, jnp.sum(weights))
    none = jnp.zeros((0, updates.shape[1]), updates.dtype)
    update = rows.combine(weights, updates, none, jnp.all(usable))
    info = Info(selected=kept, weights=weights, scores=scores)
    return Aggregated(update=update, state=state, info=info)
