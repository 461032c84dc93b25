"""All seeds of a simulation in one program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxfl.data.federated import FederatedData
from jaxfl.devices import Device
from jaxfl.federation import Federation
from jaxfl.programs import compile_or_load
from jaxfl.state import FederationState, Plan
from jaxfl.types import PyTree


@functools.lru_cache(maxsize=64)
def over_seeds(
    function: Callable[..., PyTree],
    *,
    plan: Plan,
    several: bool,
    own: tuple[bool, ...],
    way: str,
    devices: tuple[Device, ...] | None,
    donate: tuple[int, ...] = (),
    **static: Any,
) -> Callable[..., PyTree]:
    """A function of (federation, plan, data, state), compiled as one of (federation, data, state).

    With several seeds every argument has a leading axis of seeds, except for partitions and
    numbers of the federation that they share: ``own`` says which leaves are each seed's. Equal
    plans share programs.
    """

    def one_seed(federation: Any, data: FederatedData, state: FederationState) -> PyTree:
        return function(federation, plan, data, state, **static)

    def all_seeds(federation: Any, data: FederatedData, state: FederationState) -> PyTree:
        partitions = data.axes() if data.start.ndim > 1 else None
        parts = axes_of(federation, own)
        # All are in the same round: what is decided by its number is decided once.
        state = state.replace(round=state.round[0])
        states = jax.tree.map(lambda _: 0, state).replace(round=None)
        axes = parts, partitions, states
        given = federation, data, state
        if plan.together is None:
            return jax.vmap(one_seed, in_axes=axes)(*given)
        one = functools.partial(_in_turn, one_seed, axes, given)
        # One at a time without a vmap, in which every branch of a run's own would be computed.
        size = plan.together if plan.together > 1 else None
        return jax.lax.map(one, jnp.arange(state.byzantine.shape[0]), batch_size=size)

    return compile_or_load(
        all_seeds if several else one_seed,
        (function, plan, several, own, static),
        way=way,
        devices=devices,
        donate=donate,
    )


def axes_of(federation: Federation | None, own: tuple[bool, ...]) -> Any:
    """The ``in_axes`` of a federation of which these leaves lead by an axis of seeds."""
    axes = [0 if differs else None for differs in own]
    return jax.tree.unflatten(jax.tree.structure(federation), axes)


def _in_turn(function: Callable[..., PyTree], axes: PyTree, given: PyTree, run: Array) -> PyTree:
    """What ``vmap`` with these ``in_axes`` gives for one of the runs."""

    def own(axis: int | None, part: PyTree) -> PyTree:
        return part if axis is None else jax.tree.map(lambda x: x[run], part)

    return function(*jax.tree.map(own, axes, given, is_leaf=lambda axis: axis is None))
