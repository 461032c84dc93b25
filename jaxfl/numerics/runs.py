"""What several runs in one program, that is ``vmap``, decide together or compute in turn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from jaxfl.numerics.columns import on_cpu_or_else


@jax.custom_batching.custom_vmap
def in_all_runs(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate itself; under ``vmap``, whether it holds for the whole batch.

    A ``lax.cond`` on a batched predicate computes both branches for every run and selects. This
    one is shared by the batch, so ``cond`` stays a branch. Use it only where the branch for
    ``False`` is right in either case, and merely costs more.
    """
    return predicate


@in_all_runs.def_vmap
def _together(_: int, batched: list[bool], predicate: Array) -> tuple[Array, bool]:
    return in_all_runs(jnp.all(predicate) if batched[0] else predicate), False


def alongside(small: Array, large: Array) -> Array:
    """``small`` itself; under ``vmap``, one for each ``large`` of the batch.

    On a CPU, XLA multiplies a batch of matrices by one vector by copying all of them into
    another order first, and by a vector for each in place.
    """
    return jnp.where(large[(0,) * large.ndim] == 0, small, small)


def in_turn(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of one run's arrays; under ``vmap`` on a CPU it computes run after run.

    For what walks a matrix in blocks that stay in the cache: blocks of all runs at once do not.

    Args:
      function: of the number of a run and of arrays that all lead by an axis of runs, to that
        run's answer. It reads what it needs of them; a run's whole matrix would be copied.
    """

    def alone(*arrays: Array) -> Array:
        return function(jnp.int32(0), *(array[None] for array in arrays))

    one = jax.custom_batching.custom_vmap(alone)

    @one.def_vmap
    def _(size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        shared = alike(size, batched, arrays)

        def run_after_run(*arrays: Array) -> Array:
            def of(run: Integer[Array, ""]) -> Array:
                return function(run, *arrays)

            return jax.lax.map(of, jnp.arange(size, dtype=jnp.int32))

        return on_cpu_or_else(run_after_run, jax.vmap(alone), *shared), True

    return differentiable_as(alone, one)


def alike(size: int, batched: list[bool], arrays: tuple[Array, ...]) -> list[Array]:
    """The arrays, those that all runs share once for each."""
    return [
        array if own else jnp.broadcast_to(array, (size, *array.shape))
        for array, own in zip(arrays, batched, strict=True)
    ]


def differentiable_as(
    plain: Callable[..., Any], function: Callable[..., Any]
) -> Callable[..., Any]:
    """``function`` with the derivative of ``plain``: a rule for ``vmap`` allows no reverse one."""
    differentiable = jax.custom_jvp(function)

    @differentiable.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
        return differentiable(*primals), jax.jvp(plain, primals, tangents)[1]

    return differentiable
