"""Bucketing: means of random groups."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import capability, field
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context


class Bucketing(PreAggregator):
    """Shuffles the rows, cuts them into groups of ``size`` and hands on the groups' means.

    ceil(n / size) rows go on; the last group may be smaller. Up to f of them are contaminated,
    so the next rule keeps its f. Rows dropped as non-finite are left out of their group's mean.
    Row i goes to group ``jax.random.permutation(context.key, n)[i] // size``; a call takes
    ``context=Context.of(n, key=...)``.

    Needs that of the next rule, of ceil(n / size) rows. Cost: one read of the matrix.
    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> bucketed = jaxfl.Pipeline(pre=[Bucketing(size=2)], rule=jaxfl.Median())
    >>> bucketed(updates).shape
    (2,)
    """

    size: int = field(default=2, at_least=1)
    """Rows in a group."""
    needs = capability(frozenset[str]())
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    @capability
    def permutation_equivariant(self) -> bool:
        return self.size == 1

    def rows(self, n: int) -> int:
        return -(-n // self.size)

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, "b m"]:
        m = statistics.usable.shape[0]
        # Groups of one stay in place: the next rule may weigh rows by client.
        order = jnp.arange(m) if self.size == 1 else jax.random.permutation(context.key, m)
        bucket = order // self.size
        members = bucket[None, :] == jnp.arange(self.rows(m))[:, None]
        weights = (members & statistics.usable[None, :]).astype(context.weights.dtype)
        return safe_ratio(weights, jnp.sum(weights, axis=1, keepdims=True))
