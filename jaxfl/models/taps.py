"""Taps on a model's layers: what goes into each, and which error comes back to it."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.extend.core import Literal
from jaxtyping import Array, Float

from jaxfl.models.convolution import patches_convolution
from jaxfl.models.objective import ModelState, Objective
from jaxfl.types import PyTree


class Tap:
    """Takes the place of a layer's product: keeps its input, adds ``zero`` to its output.

    The gradient with respect to ``zero`` is the error that reaches the layer. Inputs and errors
    are ``[positions, features]``: pixels for convolutions, 1 for dense layers on vectors.
    """

    inputs: Array
    shape: tuple[int, int]

    def __init__(self, layer: Any, zero: Float[Array, "p o"] | None = None) -> None:
        self.zero = zero
        if isinstance(layer, nnx.Conv):
            layer.conv_general_dilated = self.convolution
        else:
            layer.dot_general = self.product

    def product(self, x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
        """The product of a dense layer, whose input is kept."""
        self.inputs = x.reshape(-1, x.shape[-1])
        return self._output(jax.lax.dot_general(x, kernel, dimensions, **options))

    def convolution(
        self,
        x: Array,
        kernel: Array,
        strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        **options: Any,
    ) -> Array:
        """As patches times a matrix (see ``jaxfl.models.convolution``), in any dimension."""
        *window, _, out = kernel.shape
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
        margins = ((0, 0, 0), *((int(a), int(b), 0) for a, b in padding), (0, 0, 0))
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), margins)
        axes = list(zip(x.shape[1:-1], window, strides, strict=True))
        slices = [[slice(i, n - w + i + 1, s) for i in range(w)] for n, w, s in axes]
        patches = jnp.concatenate([x[:, *at] for at in itertools.product(*slices)], axis=-1)
        self.inputs = patches.reshape(-1, patches.shape[-1])
        how = {k: options.get(k) for k in ("precision", "preferred_element_type")}
        return self._output(jnp.matmul(patches, kernel.reshape(-1, out), **how))

    def _output(self, y: Array) -> Array:
        self.shape = (math.prod(y.shape[:-1]), y.shape[-1])
        return y if self.zero is None else y + self.zero.astype(y.dtype).reshape(y.shape)


def tapped_layers(module: nnx.Module) -> list[Any]:
    """The layers that can be tapped, in a fixed order."""
    return [layer for _, layer in nnx.iter_modules(module) if _tappable(layer)]


def _tappable(layer: Any) -> bool:
    # Not isinstance: a subclass may do anything with its kernel.
    if type(layer) is nnx.Linear:
        simple = layer.dot_general is jax.lax.dot_general
    elif type(layer) is nnx.Conv:
        simple = (
            layer.conv_general_dilated in (jax.lax.conv_general_dilated, patches_convolution)
            and all(d == 1 for d in jax.tree.leaves((layer.input_dilation, layer.kernel_dilation)))
            and layer.feature_group_count == 1
            and layer.mask is None
        )
    else:
        return False
    return simple and layer.promote_dtype is promote_dtype


@functools.lru_cache(maxsize=64)
def ghost_shapes(
    objective: Objective, sample: jax.ShapeDtypeStruct
) -> tuple[tuple[int, int], ...] | None:
    """``[positions, features]`` of each layer's output for one example; None: no ghost norms.

    The model is traced with the kernels and biases that its layers see replaced by zeros: if
    its answer still depends on a parameter, that one is used outside a layer.
    """
    params, model_state = objective._template
    module = objective.merge(objective.train_graph, params, model_state)
    owned = [
        p for layer in tapped_layers(module) for p in (layer.kernel, layer.bias) if p is not None
    ]
    everything = [p for _, p in nnx.iter_graph(module) if isinstance(p, nnx.Param)]
    if sorted(map(id, owned)) != sorted(map(id, everything)):
        return None
    calls: list[list[bool]] = []
    taps: list[Tap] = []

    def forward(params: PyTree, model_state: ModelState, inputs: Array) -> tuple[Array, Any]:
        module = objective.merge(objective.train_graph, params, model_state)
        layers = tapped_layers(module)
        taps[:] = [Tap(layer) for layer in layers]
        calls[:] = [_blind(layer) for layer in layers]
        answer = module(inputs)
        return answer, [tap.inputs for tap, called in zip(taps, calls, strict=True) if called]

    try:
        jaxpr = jax.make_jaxpr(forward)(
            params, model_state, jax.ShapeDtypeStruct((1, *sample.shape), sample.dtype)
        ).jaxpr
    except jax.errors.UnexpectedTracerError:
        return None  # Called inside a transformation (scan, checkpoint): inputs cannot leave it.
    if any(called != [True] for called in calls):
        return None
    reached = set(jaxpr.invars[: len(owned)])
    for equation in jaxpr.eqns:
        if any(v in reached for v in equation.invars if not isinstance(v, Literal)):
            reached.update(equation.outvars)
    if any(v in reached for v in jaxpr.outvars if not isinstance(v, Literal)):
        return None
    return tuple(tap.shape for tap in taps)


def _blind(layer: Any) -> list[bool]:
    """Makes a layer compute with zeros; answers, per call, whether it was with its parameters."""
    calls: list[bool] = []
    own = [p.get_raw_value() for p in (layer.kernel, layer.bias) if p is not None]

    def promote(arrays: Sequence[Any], **options: Any) -> Any:
        inputs, *used = arrays
        used = [x for x in used if x is not None]
        calls.append(all(x is y for x, y in zip(used, own, strict=True)))
        blank = [None if x is None else jnp.zeros(x.shape, x.dtype) for x in arrays[1:]]
        return promote_dtype((inputs, *blank), **options)

    layer.promote_dtype = promote
    return calls
