"""Numbers of a model that nobody trains, held once."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx


class Frozen(nnx.Variable):
    """A number of a model that is not trained: in no message, held once for all clients.

    Takes the place of an ``nnx.Param`` in a layer, as ``LoRA`` puts it there. Its value is a
    constant of the program, the same in every run whatever the seed.

    >>> from flax import nnx
    >>> class Scaled(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.layer = nnx.Linear(8, 3, rngs=rngs)
    ...         self.layer.kernel = jaxfl.models.Frozen(self.layer.kernel[...])
    ...     def __call__(self, x):
    ...         return self.layer(x)
    >>> jaxfl.models.Objective.of(Scaled, (8,), 3).dim
    3
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """The frozen numbers of a model; equal where all of them are."""

    state: Any
    digest: str

    @staticmethod
    def of(make: Callable[[], nnx.Module]) -> "Held":
        """Those of the module that ``make`` makes, which is made only if there are some."""
        _, some, _ = nnx.split(nnx.eval_shape(make), Frozen, ...)
        if not jax.tree.leaves(some):
            return Held(some, "")
        # Also where this is called while something else is traced.
        with jax.ensure_compile_time_eval():
            state = jax.jit(lambda: nnx.split(make(), Frozen, ...)[1])()
            state = jax.tree.map(np.asarray, state)
        total = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(state):
            total.update(repr((jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype))).encode())
            total.update(leaf.tobytes())
        return Held(state, total.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
