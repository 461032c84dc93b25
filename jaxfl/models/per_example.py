"""Sums of clipped per-example gradients, at nearly the price of one plain gradient."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxfl.component import Scalar
from jaxfl.models.objective import ModelState, Objective, reseed
from jaxfl.models.taps import Tap, ghost_shapes, tapped_layers
from jaxfl.numerics.rows import accumulator
from jaxfl.types import Batch, PyTree


def clipped_sum(
    objective: Objective,
    params: PyTree,
    model_state: ModelState,
    batch: Batch,
    key: Key[Array, ""],
    clip: Scalar,
    microbatch: int | None = None,
) -> tuple[Float[Array, ""], ModelState, PyTree]:
    """The batch's mean loss, the new model state, and ``sum_i g_i min(1, clip / |g_i|)``.

    ``g_i`` is the gradient of example i's own loss: the model, in training mode, sees that
    example alone and draws its own dropout. Its norm is over all parameters, in float32 or
    better. An example that is masked, or whose gradient or squared norm is not finite, adds
    nothing: one example more or less changes the sum by at most ``clip``.

    Statistics change as in ``Objective.loss``, from the whole batch.

    Where ``uses_ghost_norms`` holds, this takes one forward and one backward pass over the
    batch; memory is that of a plain gradient and, for convolutions and other layers applied at
    several positions, one gradient of that layer per example. Elsewhere whole gradients are made.
    Either way ``microbatch`` examples at a time bound the memory; None: all, or 16 of whole
    gradients.
    Abadi et al., "Deep learning with differential privacy", CCS 2016.
    """
    # By position: what an example draws must not depend on which others there are.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch.mask.shape[0]))
    sample = jax.ShapeDtypeStruct(batch.inputs.shape[1:], batch.inputs.dtype)
    shapes = ghost_shapes(objective, sample)

    loss_of_one = functools.partial(_loss_of_one, objective, model_state)
    if shapes is None:

        def work(batch: Batch, keys: Array) -> tuple[Array, PyTree]:
            return _materialised(loss_of_one, params, batch, keys, clip)

        microbatch = microbatch or 16
    else:

        def work(batch: Batch, keys: Array) -> tuple[Array, PyTree]:
            module = objective.merge(objective.train_graph, params, model_state)
            return _ghost(loss_of_one, module, shapes, params, batch, keys, clip)

    losses, gradient = _in_microbatches(work, params, batch, keys, microbatch)
    loss = jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.maximum(jnp.sum(batch.mask), 1)
    gradient = jax.tree.map(lambda g, param: g.astype(param.dtype), gradient, params)
    # Where only counters of random streams change, the compiler drops this forward pass.
    _, model_state = objective.loss(params, model_state, batch, key)
    return loss, model_state, gradient


def _loss_of_one(
    objective: Objective,
    model_state: ModelState,
    params: PyTree,
    inputs: Array,
    labels: Array,
    key: Array,
    zeros: Sequence[Array] = (),
) -> tuple[Array, list[Array]]:
    """One example's loss and, for each of ``zeros``, the inputs of that layer.

    The zeros are added to the outputs of the layers, so that gradients with respect to them are
    the layers' back-propagated errors.
    """
    module = objective.merge(objective.train_graph, params, reseed(model_state, key))
    taps = [Tap(layer, zero) for layer, zero in zip(tapped_layers(module), zeros, strict=False)]
    value = objective.loss_function(module(inputs[None]), labels[None])[0]
    return value, [tap.inputs for tap in taps]


def uses_ghost_norms(objective: Objective, sample: jax.ShapeDtypeStruct | None = None) -> bool:
    """Whether ``clipped_sum`` never makes the examples' whole gradients.

    It does not if every parameter is the kernel or bias of an ``nnx.Linear`` or an undilated,
    ungrouped ``nnx.Conv`` that is called once, and is used nowhere else.

    Args:
      objective: whose model is traced, without computing anything.
      sample: shape and type of one input; None: what a ``jaxfl.models`` configuration is for.
    """
    if sample is None:
        shape = getattr(objective.factory, "sample_shape", None)
        if shape is None:
            raise ValueError("for a module of your own, give the shape and type of one sample")
        sample = jax.ShapeDtypeStruct(shape, jnp.float32)
    return ghost_shapes(objective, sample) is not None


def check_per_example(objective: Objective) -> None:
    """Raises ``ValueError`` for a model that travels with more than trained parameters."""
    _, rest = objective._template
    if jax.tree.leaves(nnx.filter_state(rest, nnx.BatchStat)):
        raise ValueError(
            "a model with batch normalisation cannot be private: its model_state mix the examples "
            "of a batch, and travel as they are; use nnx.GroupNorm instead"
        )
    others = nnx.to_flat_state(nnx.filter_state(rest, nnx.Not(nnx.RngState)))
    if kept := sorted({type(variable).__name__ for _, variable in others}):
        raise ValueError(
            f"a model with variables that are not trained ({', '.join(kept)}) cannot be private: "
            "what it writes in them of the examples travels as it is; what never changes is "
            "jaxfl.models.Frozen"
        )
    if objective.dtype.itemsize < 4:
        raise ValueError(
            f"a model with parameters in {objective.dtype} cannot be private: sums rounded before "
            "their noise move by more than the clip of what one client or example adds; use float32"
        )


class _Gradients(NamedTuple):
    """One parameter's gradients of all examples."""

    factors: tuple[Array, ...]
    """``[b, ...]``; or ``[b, k]`` and ``[b, o]``, whose outer products they are."""
    precision: Any = None


def _ghost(
    loss_of_one: Callable[..., tuple[Array, list[Array]]],
    module: Any,
    shapes: Sequence[tuple[int, int]],
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    clip: Scalar,
) -> tuple[Float[Array, " b"], PyTree]:
    """Losses and the clipped sum, from each layer's inputs and back-propagated errors.

    A dense layer with input a and error e has the gradient ``a eᵀ``, of norm ``|a| |e|``, and
    the sum of gradients weighted by c is ``Aᵀ diag(c) E``: no gradient need exist. Goodfellow,
    "Efficient per-example gradient computations", arXiv:1510.01799, 2015. Both are kept from one
    backward pass: Bu et al., "Differentially private optimization on large model at small cost",
    ICML 2023.
    """
    dtype = accumulator(jnp.result_type(*jax.tree.leaves(params)))
    zeros = [jnp.zeros(shape, dtype) for shape in shapes]
    # Parameters are constants here: the only backward pass is the errors'. Mapping over single
    # examples, rather than handing the model the batch, keeps them apart whatever it does.
    errors_of_one = jax.value_and_grad(loss_of_one, argnums=4, has_aux=True)
    (losses, inputs), errors = jax.vmap(errors_of_one, (None, 0, 0, 0, None))(
        params, batch.inputs, batch.labels, keys, zeros
    )
    own: list[nnx.Param] = []
    gradients: list[_Gradients] = []
    for layer, a, e in zip(tapped_layers(module), inputs, errors, strict=True):
        own.append(layer.kernel)
        gradients.append(_of_kernel(a.astype(dtype), e, layer.precision))
        if layer.bias is not None:
            own.append(layer.bias)
            gradients.append(_Gradients((jnp.sum(e, axis=1),)))
    for param, total in zip(own, _clip_and_add(gradients, batch.mask, clip), strict=True):
        param.set_raw_value(total.reshape(param.shape))
    return losses, nnx.split(module, nnx.Param, ...)[1]


def _of_kernel(a: Float[Array, "b p k"], e: Float[Array, "b p o"], precision: Any) -> _Gradients:
    """Of every example the sum over positions of ``a eᵀ``, left unmade for one position.

    For more, norms from inner products of positions (Bu et al.) would not need it either, but
    take p² (k + o) operations, and their rounding error can hide a norm above ``clip``.
    """
    if a.shape[1] == 1:
        return _Gradients((a[:, 0], e[:, 0]), precision)
    return _Gradients((jnp.einsum("bpk,bpo->bko", a, e, precision=precision),))


def _materialised(
    loss_of_one: Callable[..., tuple[Array, list[Array]]],
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    clip: Scalar,
) -> tuple[Float[Array, " b"], PyTree]:
    """Losses and the clipped sum, from whole gradients."""
    leaves, treedef = jax.tree.flatten(params)
    dtype = accumulator(jnp.result_type(*leaves))
    gradient_of_one = jax.vmap(jax.value_and_grad(loss_of_one, has_aux=True), (None, 0, 0, 0))
    (losses, _), gradients = gradient_of_one(params, batch.inputs, batch.labels, keys)
    rows = [_Gradients((g.astype(dtype),)) for g in jax.tree.leaves(gradients)]
    totals = _clip_and_add(rows, batch.mask, clip)
    shaped = [t.reshape(p.shape) for t, p in zip(totals, leaves, strict=True)]
    return losses, jax.tree.unflatten(treedef, shaped)


def _in_microbatches(
    work: Callable[[Batch, Array], tuple[Array, PyTree]],
    params: PyTree,
    batch: Batch,
    keys: Key[Array, " b"],
    microbatch: int | None,
) -> tuple[Float[Array, " b"], PyTree]:
    """``work`` on so many examples at a time, its gradients added up."""
    size = batch.mask.shape[0]
    if microbatch is None or microbatch >= size:
        return work(batch, keys)
    place = jnp.arange(-(-size // microbatch) * microbatch).reshape(-1, microbatch)
    parts = jax.tree.map(lambda x: x[place % size], (batch, keys))
    parts = (parts[0].replace(mask=parts[0].mask & (place < size)), parts[1])

    def add(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, Array]:
        losses, gradient = work(*part)
        return jax.tree.map(jnp.add, total, gradient), losses

    dtype = accumulator(jnp.result_type(*jax.tree.leaves(params)))
    nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)
    total, losses = jax.lax.scan(add, nothing, parts)
    return losses.reshape(-1)[:size], total


def _clip_and_add(
    gradients: Sequence[_Gradients], mask: Bool[Array, " b"], clip: Scalar
) -> list[Array]:
    """The weighted sum over examples of each parameter's gradients."""
    squares = sum(math.prod(map(_squares, g.factors)) for g in gradients)
    norms = jnp.sqrt(squares)
    kept = mask & jnp.isfinite(squares)
    weights = jnp.where(kept, jnp.where(norms <= clip, 1, clip / norms), 0).astype(norms.dtype)

    def total(factors: Sequence[Array], precision: Any) -> Array:
        # What is not kept may be NaN: a weight of zero would not remove it.
        x, *rest = (jnp.where(kept[:, None], x.reshape(x.shape[0], -1), 0) for x in factors[::-1])
        x = weights[:, None] * x
        if not rest:
            return jnp.sum(x, axis=0)
        return jnp.einsum("bk,bo->ko", *rest, x, precision=precision)

    return [total(*g) for g in gradients]


def _squares(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Squared norms. Squares too small to represent vanish, so they get an upper bound."""
    rows = x.reshape(x.shape[0], -1)
    return jnp.sum(jnp.square(rows), axis=1) + rows.shape[1] * jnp.finfo(x.dtype).tiny
