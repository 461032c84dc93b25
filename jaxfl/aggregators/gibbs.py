"""The mean over honest sets, each as likely as the law and its variance make it."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.subsets import MOST_SUBSETS, count_sets, left_out
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.gram import tame_gram
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State

_ROUNDINGS = 64
"""Variances that differ by no more than so many roundings are equal."""


def gibbs_weights(
    variances: Float[Array, " k"],
    masses: Float[Array, " k"],
    temperature: Float[Array, ""],
    possible: Bool[Array, " k"],
) -> Float[Array, " k"]:
    """``q_S ~ mu_S exp(-V_S / (temperature min V))`` over the possible sets; sums to 1, or 0.

    At temperature 0 all is with the sets of least variance, as mu has it among them.
    """
    allowed = possible & (masses > 0)
    least = jnp.min(jnp.where(allowed, variances, jnp.inf))
    least = jnp.where(jnp.isfinite(least), least, 0)
    over = allowed & (variances > least * (1 + _ROUNDINGS * jnp.finfo(variances.dtype).eps))
    tiny = jnp.finfo(variances.dtype).tiny
    unit = jnp.where(over, jnp.maximum(temperature * least, tiny), 1)
    excess = jnp.where(over, variances - least, 0) / unit
    odds = jnp.where(allowed, masses * jnp.exp(-excess), 0)
    return safe_ratio(odds, jnp.sum(odds))


class GibbsMean(WeightingRule):
    """``sum_S q_S mean_S``, with ``q_S ~ mu_S exp(-Var_S / (temperature * least variance))``.

    The sets S that can be honest are ``sets`` [k, n], masks over the population, with
    ``probabilities`` [k] mu_S (``law.support()``); each leaves out at most f. Without them, all
    sets of n - f clients are as likely, of which there may be 100,000. Var_S is the mean squared
    distance of S's rows from their mean, in units of the least of all: so the answer follows
    units. At temperature 0 it is the mean of the set of least variance that can occur, at a high
    one the ``ExpectedMean``.

    A set with a row that is not finite is impossible; where all are, the answer is 0.

    With ``r = max |S| / |S and S'| - 1`` over sets that can occur, the squared error is at most
    ``2 r (2 + temperature log 1 / mu_S)`` times the variance of the honest set S.

    Needs the honest set among those listed. Cost: three reads of the matrix, n^2 d multiply-adds
    and O(k n^2). Fails where the honest set is not listed, and beyond what can be listed.
    Karakulev et al., "Bayesian robust aggregation for federated learning", arXiv:2505.02490, 2025,
    for a mean over posterior honesty, there of one client at a time.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> GibbsMean(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    f: int = field(at_least=0)
    sets: Scalar | None = field(default=None, at_least=0, at_most=1)
    """Masks of the sets that can be honest, [k, n]; none: all of n - f clients."""
    probabilities: Scalar | None = field(default=None, at_least=0)
    """Of these sets, [k]; none: all alike."""
    temperature: Scalar = field(default=0.1, at_least=0)
    """How much the spread of a set counts: the less, the more."""
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def __post_init__(self) -> None:
        if np.asarray(self.sets).dtype.kind == "b":
            object.__setattr__(self, "sets", np.asarray(self.sets, np.float64))
        super().__post_init__()

    @capability
    def by_client(self) -> bool:
        return self.sets is not None

    def check(self, n: int) -> None:
        if self.sets is None:
            needs_more_than(self, n, 2 * self.f + 1, "n > 2f")
            if count_sets(n, self.f) > MOST_SUBSETS:
                raise ValueError(
                    f"GibbsMean needs n such that there are at most {MOST_SUBSETS} sets of n - f "
                    f"clients; got n = {n}, f = {self.f}"
                )
            return
        sets = np.asarray(self.sets)
        if sets.ndim != 2 or sets.shape[1] < n or (1 - sets).sum(axis=1).max() > self.f:
            raise ValueError(
                f"GibbsMean: sets must be masks [k, n] of the population, n = {n} or more, each "
                f"leaving out at most f = {self.f}; got shape {sets.shape}"
            )
        if self.probabilities is not None and np.shape(self.probabilities) != sets.shape[:1]:
            raise ValueError(
                f"GibbsMean: probabilities must be {len(sets)} numbers, one per set; got shape "
                f"{np.shape(self.probabilities)}"
            )

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        gram, usable = tame_gram(statistics.gram, statistics.usable)
        n, dtype = usable.shape[0], gram.dtype
        if self.sets is None:
            left = jnp.asarray(left_out(n, self.f))
            members = ~jnp.any(left[:, :, None] == jnp.arange(n)[None, None], axis=1)
        else:
            members = jnp.asarray(self.sets)[:, context.client_ids] > 0
        masses = jnp.ones(members.shape[:1], dtype)
        if self.probabilities is not None:
            masses = jnp.asarray(self.probabilities, dtype)
        possible = jnp.any(members, axis=1) & ~jnp.any(members & ~usable[None], axis=1)
        shares = members.astype(dtype)
        shares = safe_ratio(shares, jnp.sum(shares, axis=1, keepdims=True))
        squares = jnp.matmul(shares, jnp.diagonal(gram), precision="highest")
        own = jnp.sum(shares * jnp.matmul(shares, gram, precision="highest"), axis=1)
        variances = jnp.maximum(squares - own, 0)
        q = gibbs_weights(variances, masses, jnp.asarray(self.temperature, dtype), possible)
        weights = jnp.matmul(q, shares, precision="highest")
        return weights, Info(weights=weights)
