"""Branches that several runs in one program take together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


@jax.custom_batching.custom_vmap
def in_all_runs(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate itself; under ``vmap``, whether it holds for the whole batch.

    A ``lax.cond`` on a batched predicate computes both branches for every run and selects. On
    this one it stays a branch: for one whose other side is right in either case, only dearer.
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
