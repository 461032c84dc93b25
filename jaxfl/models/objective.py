"""A model and a loss as pure functions of a flat parameter vector."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.contracts import expect, has_own_code, name_of, own_code
from jaxfl.models.frozen import Frozen, Held
from jaxfl.models.words import mean_of_words
from jaxfl.models.zoo import Model
from jaxfl.types import Batch, PyTree

ModelState = PyTree
"""State of a model that is not trained, such as the running averages of batch normalisation."""
Loss = Callable[[Array, Array], Array]
Factory = Callable[[nnx.Rngs], nnx.Module]
AT_ONCE, IN_CACHE = 500, 50
"""Samples that a model answers at once; where a CPU convolves, patches of more leave its cache."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What clients minimise: the mean over samples of ``loss(model(x), y)``.

    Hashable: it is a static part of the compiled round. Built by ``Objective.of``.

    >>> objective = Objective.of(jaxfl.models.Softmax(), (8, 8, 1), 10)
    >>> objective.dim, objective.dtype
    (650, dtype('float32'))
    """

    factory: Factory
    loss_function: Loss
    train_graph: Any
    eval_graph: Any
    treedef: Any
    shapes: tuple[Any, ...]
    frozen: Held
    """What nobody trains."""

    @staticmethod
    def of(
        model: Model | nnx.Module | Factory,
        sample_shape: tuple[int, ...],
        classes: int,
        loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    ) -> "Objective":
        """An objective from a model configuration, an NNX module, or a function that builds one.

        ``loss`` maps logits and labels to one number per sample.
        """
        # Cells of a grid share what a model of ours is; one of the user's own may be anything.
        ours = isinstance(model, Model) and isinstance(model, Hashable) and not has_own_code(model)
        wide = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
        return (_made_once if ours else _made)(model, sample_shape, classes, loss, wide)

    def check(
        self, inputs: jax.ShapeDtypeStruct, classes: int, places: tuple[int, ...] = ()
    ) -> None:
        """Tries model and loss on inputs ``[b, ...]`` of this shape and type, computing nothing.

        ``places`` is the shape of one sample's labels: () of a class, ``(t,)`` of next words.

        Raises:
          ValueError: the model does not take them or does not answer ``[b, *places, classes]``
            floats; the loss does not answer ``[b]`` floats.
        """
        model, b = _own(self.factory), inputs.shape[0]
        params, rest = self._template
        with own_code(model):
            logits = jax.eval_shape(self.logits, params, rest, inputs)
        what = "a logit per class" if not places else "a logit per word at each place"
        expect(
            f"{name_of(model)} returned", logits, (b, *places, classes), f"{what} for {b} inputs"
        )
        labels = jax.ShapeDtypeStruct((b, *places), jnp.int32)
        with own_code(self.loss_function):
            losses = jax.eval_shape(self.loss_function, logits, labels)
        what = f"the loss {name_of(self.loss_function)} returned"
        expect(what, losses, (b,), f"a number for each of {b} samples")

    @property
    def dim(self) -> int:
        """The number of parameters."""
        params, _ = self._template
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    @property
    def dtype(self) -> jnp.dtype:
        """The type of the raveled parameters."""
        params, _ = self._template
        return jnp.result_type(*jax.tree.leaves(params))

    @property
    def at_once(self) -> int:
        """How many samples the model is best asked about at once."""
        convolves = getattr(_own(self.factory), "convolves", False)
        return IN_CACHE if convolves and jax.default_backend() == "cpu" else AT_ONCE

    @property
    def words(self) -> int | None:
        """How many ids of words the model knows: rows of its largest ``nnx.Embed``; None: none."""
        module = self.merge(self.eval_graph, *self._template)
        tables = [m for _, m in nnx.iter_modules(module) if isinstance(m, nnx.Embed)]
        return max((table.num_embeddings for table in tables), default=None)

    @property
    def _template(self) -> tuple[PyTree, PyTree]:
        return jax.tree.unflatten(self.treedef, self.shapes)

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, key: Key[Array, ""]) -> tuple[Float[Array, " d"], ModelState]:
        """Fresh parameters, raveled, and the model's untrained state."""
        _, params, _, rest = nnx.split(self.factory(nnx.Rngs(key)), nnx.Param, Frozen, ...)
        return ravel_pytree(params)[0], rest

    def unravel(self, flat: Float[Array, " d"]) -> PyTree:
        """The parameters' pytree from the flat vector."""
        params, _ = self._template
        leaves, treedef = jax.tree.flatten(params)
        result, start = [], 0
        for leaf in leaves:
            part = jax.lax.slice_in_dim(flat, start, start + leaf.size)
            result.append(part.reshape(leaf.shape).astype(leaf.dtype))
            start += leaf.size
        return jax.tree.unflatten(treedef, result)

    def merge(self, graph: Any, params: PyTree, model_state: ModelState) -> Any:
        """The module of one of the two graphs, of which every part is new."""
        return nnx.merge(graph, params, self.frozen.state, model_state, copy=True)

    def module(self, flat: Float[Array, " d"], model_state: ModelState) -> nnx.Module:
        """The NNX module with these parameters, in evaluation mode."""
        return self.merge(self.eval_graph, self.unravel(flat), model_state)

    def loss(
        self, params: PyTree, model_state: ModelState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], ModelState]:
        """Mean loss over the batch's samples, in training mode, and the new model state."""
        module = self.merge(self.train_graph, params, reseed(model_state, key))
        per_sample = self.loss_function(module(batch.inputs), batch.labels)
        total = jnp.sum(jnp.where(batch.mask, per_sample, 0))
        _, _, _, updated = nnx.split(module, nnx.Param, Frozen, ...)
        return total / jnp.maximum(jnp.sum(batch.mask), 1), updated

    def value_and_grad(
        self, params: PyTree, model_state: ModelState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[tuple[Float[Array, ""], ModelState], PyTree]:
        """``loss``, and its gradient by the parameters: all that algorithms ask of samples."""
        return jax.value_and_grad(self.loss, has_aux=True)(params, model_state, batch, key)

    def logits(self, params: PyTree, model_state: ModelState, inputs: Array) -> Array:
        """What the model answers to inputs, in evaluation mode."""
        return self.merge(self.eval_graph, params, model_state)(inputs)

    def evaluate(
        self, flat: Float[Array, " d"], model_state: ModelState, inputs: Array, labels: Array
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Loss of each sample, and 1 where the predicted class is the label, else 0.

        NaN instead of 0 or 1 where a sample's logits are not finite: no class is predicted, though
        ``argmax`` of NaN is 0. Where labels are next words, the share of a text's that is right.
        """
        logits = self.logits(self.unravel(flat), model_state, inputs)
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        correct = jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), correct, jnp.nan)
        if labels.ndim > 1:
            correct = mean_of_words(correct, labels)
        return self.loss_function(logits, labels), correct


Bend = Callable[[Float[Array, " d"]], Float[Array, " d"]]
"""From a gradient to what is taken for it; both flat."""


@dataclasses.dataclass(frozen=True, eq=False)
class BentObjective(Objective):
    """An objective whose gradient is not what it should be. Lives within one round."""

    inner: Objective
    bend: Bend

    def value_and_grad(
        self, params: PyTree, model_state: ModelState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[tuple[Float[Array, ""], ModelState], PyTree]:
        told, gradient = self.inner.value_and_grad(params, model_state, batch, key)
        flat, unravel = ravel_pytree(gradient)
        return told, unravel(self.bend(flat))


def _check_params(name: str, params: list[Any]) -> None:
    if not params:
        raise ValueError(f"{name} has no parameters (nnx.Param): there is nothing to train")
    wrong = {str(leaf.dtype) for leaf in params if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if wrong:
        raise ValueError(
            f"{name}: parameters (nnx.Param) must be floating-point numbers; "
            f"got {', '.join(sorted(wrong))}"
        )


def _own(factory: Factory) -> Any:
    """What the user gave as the model."""
    if isinstance(factory, _Build):
        return factory.model
    return factory.module if isinstance(factory, _Instance) else factory


def _made(
    model: Any, sample_shape: tuple[int, ...], classes: int, loss: Loss, _wide: bool
) -> Objective:
    """The objective of a model, which is made on shapes. What it is depends on JAX's widths."""
    factory = _factory(model, sample_shape, classes)
    own = _own(factory)

    def abstract(train: bool) -> tuple[Any, Any]:
        with own_code(own):
            module = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
        if not isinstance(module, nnx.Module):
            raise ValueError(f"{name_of(own)} must make an NNX module; got {module!r}")
        if train:
            module.train()
        else:
            module.eval()
        graph, params, _, rest = nnx.split(module, nnx.Param, Frozen, ...)
        return graph, (params, rest)

    train_graph, (params, rest) = abstract(True)
    eval_graph, _ = abstract(False)
    leaves, treedef = jax.tree.flatten((params, rest))
    _check_params(name_of(own), jax.tree.leaves(params))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    with own_code(own):
        frozen = Held.of(lambda: factory(nnx.Rngs(0)))
    return Objective(factory, loss, train_graph, eval_graph, treedef, shapes, frozen)


_made_once = functools.lru_cache(maxsize=8)(_made)


def _factory(
    model: Model | nnx.Module | Factory, sample_shape: tuple[int, ...], classes: int
) -> Factory:
    if isinstance(model, Model):
        return _Build(model, sample_shape, classes)
    if isinstance(model, nnx.Module):
        return _Instance(model)
    if callable(model):
        return model
    raise ValueError(
        "model must be a jaxfl.models configuration, a flax NNX module, or a function from "
        f"nnx.Rngs to one; got {model!r}"
    )


@dataclasses.dataclass(frozen=True)
class _Build:
    model: Model
    sample_shape: tuple[int, ...]
    classes: int

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model.build(self.sample_shape, self.classes, rngs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Instance:
    """A given module as its own factory: every run starts from its parameters."""

    module: nnx.Module

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.clone(self.module)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Instance) and self.module is other.module

    def __hash__(self) -> int:
        return id(self.module)


def reseed(model_state: ModelState, key: Key[Array, ""]) -> ModelState:
    """Replaces the state of every random stream (dropout) by one drawn from ``key``."""
    leaves, treedef = jax.tree.flatten(model_state)
    fresh = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, fresh)
