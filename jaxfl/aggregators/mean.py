"""Averages: of all updates, and of the honest ones."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State


class Mean(WeightingRule):
    """The mean, ``sum_i w_i x_i``: what federated averaging does without a defence.

    ``weighted`` takes w_i from the clients' sample counts, otherwise all are equal. Non-finite
    rows are left out.

    Needs f = 0. Cost: one read of the matrix, more where a row is not finite. Breaks down with
    one Byzantine client.
    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Mean()(updates).round(2)
    Array([ 14.57    , -11.139999], dtype=float32)
    """

    weighted: bool = True
    """Whether clients count by their numbers of samples."""

    tolerates = capability(False)
    accepts_absent = capability(True)
    needs = capability(frozenset[str]())
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    @capability
    def by_samples(self) -> bool:
        return self.weighted

    @capability
    def averages(self) -> bool:
        return not self.weighted

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        usable = statistics.usable.astype(context.weights.dtype)
        weights = context.weights * usable if self.weighted else usable
        weights = safe_ratio(weights, jnp.sum(weights))
        return weights, Info(selected=statistics.usable, weights=weights)


class Oracle(WeightingRule):
    """The mean of the honest updates: the ceiling of every table, no defence.

    Needs the truth, ``context.byzantine``, which no server knows. Cost: one read of the matrix.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> context = jaxfl.Context.of(7, byzantine=jnp.arange(7) == 6)
    >>> Oracle()(updates, context=context).round(2)
    Array([2., 2.], dtype=float32)
    """

    tolerates = capability(True)
    by_client = capability(True)
    accepts_absent = capability(True)
    needs = capability(frozenset[str]())
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        if context.byzantine is None:
            raise ValueError("Oracle needs context.byzantine, the mask of Byzantine clients")
        honest = statistics.usable & ~context.byzantine
        weights = context.weights * honest
        weights = safe_ratio(weights, jnp.sum(weights))
        return weights, Info(selected=honest, weights=weights)
