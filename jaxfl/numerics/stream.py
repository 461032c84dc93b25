"""Matrices that are never made: their rows are computed anew, chunk by chunk, when they are read.

A pass over such a matrix costs what computing it costs, and holds one chunk of rows. All that can
be said of rows one by one (norms, products with a few vectors) or summed over them can be had;
sorting a column or products of all rows with all rows cannot, and raise ``NeedsMatrix``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Compute = Callable[[Int[Array, " c"]], tuple[Float[Array, "c d"], Any]]
"""From row numbers to the rows, and what else is told about each of them."""
Watch = Callable[[Float[Array, "c d"], Int[Array, " c"], Bool[Array, " c"]], tuple[Array, Array]]
"""From a block, its row numbers and which of them count, to a sum over its rows and a number of
each row."""


class NeedsMatrix(ValueError, AttributeError):  # noqa: N818 - says what is needed
    """More was asked of a streamed matrix than a pass over its rows can answer."""


class Kept(NamedTuple):
    """What the first pass over a stream has kept."""

    told: Any
    """What was told of each row; leads by n."""
    total: Float[Array, " d"]
    """The sum that was watched."""
    numbers: Float[Array, " n"]
    """The number of each row that was watched."""


class Stream:
    """An ``[n, d]`` matrix whose chunks are computed whenever it is read.

    Lives within one trace. Whatever reads it first also keeps what is watched, so that what every
    round needs of the rows takes no pass of its own; so the first pass must not be inside a branch
    or a loop, whose values cannot be kept outside.

    Args:
      compute: rows by their numbers.
      shape: n and d.
      dtype: of the rows.
      chunk: rows at once.
      watch: what the first pass keeps.
    """

    ndim = 2

    def __init__(
        self, compute: Compute, shape: tuple[int, int], dtype: Any, chunk: int, watch: Watch
    ) -> None:
        self.compute = compute
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.chunk = min(chunk, shape[0])
        self.watch = watch
        self._kept: Kept | None = None

    @property
    def kept(self) -> Kept:
        """What the first pass has kept; takes that pass if there has been none."""
        if self._kept is None:
            self.map(lambda block, index: ())
        assert self._kept is not None
        return self._kept

    def map(self, function: Callable[[Array, Array], Any]) -> Any:
        """``function(block, row numbers)`` of all blocks, whose answers lead by the rows."""
        return self._fold(lambda block, index, inside: ((), function(block, index)))[1]

    def sum(self, function: Callable[[Array, Array, Array], Any]) -> Any:
        """The sum over blocks of ``function(block, row numbers, which count)``."""
        return self._fold(lambda *block: (function(*block), ()))[0]

    def scan(self, function: Callable[[Any, Array, Array, Array], Any], start: Any) -> Any:
        """``start`` carried through ``function(carry, block, row numbers, which count)``."""
        _ = self.kept
        steps = self._steps(self.shape[0])

        def body(carry: Any, step: Array) -> tuple[Any, None]:
            index, inside = self._place(step, self.shape[0])
            return function(carry, self.compute(index)[0], index, inside), None

        return jax.lax.scan(body, start, jnp.arange(steps))[0]

    def take(self, rows: Int[Array, " a"]) -> Float[Array, "a d"]:
        """These rows, held; numbers that are too large give the last row."""
        count = rows.shape[0]
        if count == 0:
            return jnp.zeros((0, self.shape[1]), self.dtype)
        chunk = min(self.chunk, count)
        steps = -(-count // chunk)

        def body(_: None, own: Array) -> tuple[None, Array]:
            return None, self.compute(jnp.minimum(own, self.shape[0] - 1))[0]

        padded = jnp.pad(rows, (0, steps * chunk - count), mode="edge")
        _, taken = jax.lax.scan(body, None, padded.reshape(steps, chunk))
        return jax.lax.collapse(taken, 0, 2)[:count]

    def each(self, function: Callable[..., Array], *own: Array) -> "Stream":
        """The stream of ``function(row, ...)``, which also gets every row's share of ``own``."""

        def compute(index: Int[Array, " c"]) -> tuple[Float[Array, "c d"], Any]:
            block, told = self.compute(index)
            return jax.vmap(function)(block, *(x[index] for x in own)), told

        return Stream(compute, self.shape, self.dtype, self.chunk, self.watch)

    def _fold(self, function: Callable[[Array, Array, Array], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Sums and answers of all blocks, and in the first pass what is watched."""
        n = self.shape[0]
        first = self._kept is None

        def both(step: Array) -> tuple[Any, Any]:
            index, inside = self._place(step, n)
            block, told = self.compute(index)
            total, answers = function(block, index, inside)
            if not first:
                return total, answers
            watched, numbers = self.watch(block, index, inside)
            return (total, watched), (answers, told, numbers)

        def body(carry: Any, step: Array) -> tuple[Any, Any]:
            total, answers = both(step)
            return jax.tree.map(jnp.add, carry, total), answers

        shapes, _ = jax.eval_shape(both, jnp.int32(0))
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, answers = jax.lax.scan(body, start, jnp.arange(self._steps(n)))
        answers = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[:n], answers)
        if not first:
            return total, answers
        self._kept = Kept(told=answers[1], total=total[1], numbers=answers[2])
        return total[0], answers[0]

    def _steps(self, rows: int) -> int:
        return -(-rows // self.chunk)

    def _place(self, step: Array, rows: int) -> tuple[Int[Array, " c"], Bool[Array, " c"]]:
        """The row numbers of a chunk, and which are not beyond the last."""
        place = step * self.chunk + jnp.arange(self.chunk, dtype=jnp.int32)
        return jnp.minimum(place, rows - 1), place < rows

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsMatrix(f"reads the whole matrix of updates at once (its {name})")
