"""Decompositions of small matrices, on a CPU one after the other.

LAPACK's functions for a batch, in jaxlib, share it out among XLA's threads and wait for them. Where
as many of them run beside each other as there are threads, these wait for work that none is left
to do: the program never ends. For one matrix they use no threads.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.numerics.columns import on_cpu_or_else
from jaxfl.numerics.runs import alike, differentiable_as


def _one_at_a_time(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a matrix; under ``vmap`` on a CPU a loop over the batch."""
    one = jax.custom_batching.custom_vmap(plain)

    @one.def_vmap
    def _(size: int, batched: list[bool], *matrices: jax.Array) -> tuple[Any, Any]:
        def in_order(*matrices: jax.Array) -> Any:
            return jax.lax.map(lambda own: one(*own), matrices)

        found = on_cpu_or_else(in_order, jax.vmap(plain), *alike(size, batched, matrices))
        return found, jax.tree.map(lambda _: True, found)

    return differentiable_as(plain, one)


eigh = _one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
"""Eigenvalues, ascending, and eigenvectors in columns, of a symmetric matrix."""
eigvalsh = _one_at_a_time(lambda matrix: jnp.linalg.eigvalsh(matrix))
"""Its eigenvalues."""
pinv = _one_at_a_time(lambda matrix: jnp.linalg.pinv(matrix, hermitian=True))
"""Its pseudo-inverse."""
svd = _one_at_a_time(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
"""Of any matrix: left vectors in columns, singular values, right vectors in rows; the thin one."""
qr = _one_at_a_time(lambda matrix: tuple(jnp.linalg.qr(matrix)))
"""Of any matrix: orthonormal columns, and the triangular factor; the thin one."""
