"""Rules that average the best set of n - f updates, and the search for it among all sets."""

import abc
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics.gram import tame_gram
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State

MOST_SUBSETS = 100_000
"""Up to this many sets of n - f rows the best is searched for among all."""


def count_sets(n: int, f: int) -> int:
    """How many sets of n - f of n rows there are."""
    return math.comb(n, f)


@functools.cache
def left_out(n: int, f: int) -> np.ndarray:
    """All choices of f of n rows to leave out; those kept are in lexicographic order."""
    subsets = list(itertools.combinations(range(n), f))
    return np.asarray(subsets[::-1], np.int32).reshape(len(subsets), f)


def of_all_sets(
    function: Callable[[Bool[Array, "b n"]], Float[Array, " b"]],
    usable: Bool[Array, " n"],
    f: int,
) -> Float[Array, " c"]:
    """``function`` of the masks of all sets of n - f rows, in the order of ``left_out``.

    It is given blocks of masks; a set with a row that is not usable is +inf.
    """
    n, table = usable.shape[0], jnp.asarray(left_out(usable.shape[0], f))
    count = len(table)
    block = max(1, min(count, 2**20 // n))
    blocks = jnp.pad(table, ((0, -count % block), (0, 0))).reshape(-1, block, f)

    def values(rows: Array) -> Array:
        keep = ~jnp.any(rows[:, :, None] == jnp.arange(n)[None, None], axis=1)
        return jnp.where(jnp.any(keep & ~usable[None], axis=1), jnp.inf, function(keep))

    return jax.lax.map(values, blocks).reshape(-1)[:count]


class BestSubset(WeightingRule):
    """The mean of n - f updates that are chosen by their inner products. Abstract."""

    f: int = field(at_least=0)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def exact(self, n: int) -> bool:
        """Whether the set chosen among n updates is sure to be the best."""
        return count_sets(n, self.f) <= MOST_SUBSETS

    @abc.abstractmethod
    def choose(
        self, gram: Float[Array, "n n"], usable: Bool[Array, " n"], *, exact: bool
    ) -> Bool[Array, " n"]:
        """The n - f rows, f > 0: the best among all sets where ``exact``."""

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        selected, dtype = statistics.usable, statistics.gram.dtype
        if self.f > 0:
            gram, usable = tame_gram(jax.lax.stop_gradient(statistics.gram), selected)
            selected = usable & self.choose(gram, usable, exact=self.exact(selected.shape[0]))
        weights = selected.astype(dtype)
        weights = safe_ratio(weights, jnp.sum(weights))
        return weights, Info(selected=selected, weights=weights)
