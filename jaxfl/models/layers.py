"""The model's layers in the flat vector of its parameters."""

import functools
from typing import Any

import jax
from jax.extend.core import Literal

from jaxfl.models.objective import Objective
from jaxfl.types import Segments, segments_of

CARRY = {"add", "add_any", "broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"}
"""Operations through which an output layer's product and bias become logits."""
RESHAPE = CARRY - {"add", "add_any"}
"""Operations that a parameter may go through before it is used."""


@functools.lru_cache(maxsize=64)
@functools.lru_cache(maxsize=8)
def segments(objective: Objective, inputs: jax.ShapeDtypeStruct) -> Segments:
    """The parameters of the objective's model; the model is traced for its output layer.

    The output layer is the product with a parameter from which the logits follow by additions
    alone, and the parameters added. A model that ends otherwise (a softmax inside, tied weights
    behind a loop) has none.

    >>> objective = Objective.of(jaxfl.models.Softmax(), (4,), 3)
    >>> shape = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    >>> [(s.name, s.offset, s.shape, s.last) for s in segments(objective, shape)]
    [('layers.0.bias', 0, (3,), True), ('layers.0.kernel', 3, (4, 3), True)]
    """
    params, rest = objective._template
    leaves, tree = jax.tree.flatten(params)

    def logits(leaves: list[Any], rest: Any, inputs: Any) -> Any:
        return objective.logits(jax.tree.unflatten(tree, leaves), rest, inputs)

    jaxpr = jax.make_jaxpr(logits)(leaves, rest, inputs).jaxpr
    number = {variable: i for i, variable in enumerate(jaxpr.invars[: len(leaves)])}
    return segments_of(params, _output_layer(jaxpr, number))


def _output_layer(jaxpr: Any, number: dict[Any, int]) -> frozenset[int]:
    """The numbers of the parameters of the output layer."""
    made = {out: equation for equation in jaxpr.eqns for out in equation.outvars}

    def parameter(variable: Any) -> int | None:
        while variable not in number:
            equation = made.get(variable)
            if equation is None or equation.primitive.name not in RESHAPE:
                return None
            variable = equation.invars[0]
        return number[variable]

    found, ends = set[int](), list(jaxpr.outvars)
    while ends:
        end = ends.pop()
        if isinstance(end, Literal):
            continue
        own, equation = parameter(end), made.get(end)
        if own is not None:
            found.add(own)
        elif equation is not None and equation.primitive.name in CARRY:
            ends += equation.invars
        elif equation is not None and equation.primitive.name == "dot_general":
            factors = map(parameter, equation.invars)
            found |= {factor for factor in factors if factor is not None}
    return frozenset(found)
