"""Rules that know how far to trust each client: what was learned of the law of honest sets."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.geometric_median import median_weights
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State

MOST_ODDS = 6.0
"""A client that is never Byzantine would outweigh all others; beyond these log-odds, none counts
more."""


def prior_mass(
    weights: Scalar | None, counted: Bool[Array, " n"], context: Context, dtype: jnp.dtype
) -> Float[Array, " n"]:
    """The clients' weights, those of rows that count scaled to sum to 1; without any, equal."""
    mass = counted.astype(dtype)
    if weights is not None:
        mass = mass * jnp.asarray(weights, dtype)[context.client_ids]
    return safe_ratio(mass, jnp.sum(mass))


def check_prior(part: Any, name: str, n: int) -> None:
    """Raises the one error where there is not one number for each client of a population."""
    value = getattr(part, name)
    if value is not None and (np.ndim(value) != 1 or len(value) < n):
        raise ValueError(
            f"{type(part).__name__}: {name} must be one number per client of the population, "
            f"n = {n} or more; got shape {np.shape(value)}"
        )


class PriorRule(WeightingRule):
    """A rule with a weight for each client of the population, found by its id. Abstract."""

    weights: Scalar | None = field(default=None, at_least=0)
    """One for each client of the population; none: all weigh the same."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    @capability
    def by_client(self) -> bool:
        return self.weights is not None

    def check(self, n: int) -> None:
        super().check(n)
        check_prior(self, "weights", n)
        if self.weights is not None and not np.sum(self.weights) > 0:
            raise ValueError(f"{type(self).__name__}: weights must not all be 0")


class ExpectedMean(PriorRule):
    """The mean with the weights of the expected objective, ``sum_i w_i x_i / sum_i w_i``.

    ``weights`` w_i = ``E[1{i in S} / |S|]`` over the law of the honest set S, one per client of the
    population (``law.moments().weights``); equal without them, which is right under any law that
    does not tell clients apart. It is the best answer, in squared error, to attackers who do not
    know S: robustness beyond it is about attackers who do.

    Needs attackers that do not adapt to S. Cost: one read of the matrix. One attacker who does
    moves it anywhere.
    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017, for the weighted mean.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> ExpectedMean(weights=np.array([1, 1, 1, 1, 1, 1, 0.0]))(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    tolerates = capability(False)
    needs = capability(frozenset[str]())

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        dtype = context.weights.dtype
        weights = prior_mass(self.weights, statistics.usable, context, dtype)
        return weights, Info(weights=weights)


class LogOddsMedian(WeightingRule):
    """The geometric median with weights ``log(p_i / (1 - p_i))``, cut to [0, 6].

    ``honesty`` p_i is the probability that client i is honest (``law.moments().honesty``), one per
    client of the population; without it all weigh the same. Under independent honesty with
    p_i >= 1/2 no other weights make it as likely that honest clients hold more than half of the
    weight: it is optimal for breakdown, not for error.

    Needs honest clients to hold more than half of the weight. Cost: three reads of the matrix and
    n^2 d multiply-adds. Fails where the most trusted clients are the Byzantine ones.
    Nitzan, Paroush, "Optimal decision rules in uncertain dichotomous choice situations",
    International Economic Review 1982.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> LogOddsMedian(honesty=np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.6]))(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    honesty: Scalar | None = field(default=None, at_least=0, at_most=1)
    """Probability that each client is honest; none: all weigh the same."""
    iterations: int = field(default=32, at_least=1)
    """Weiszfeld steps."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    @capability
    def by_client(self) -> bool:
        return self.honesty is not None

    def check(self, n: int) -> None:
        super().check(n)
        check_prior(self, "honesty", n)
        if self.honesty is not None and not np.any(np.asarray(self.honesty) > 0.5):
            raise ValueError("LogOddsMedian: honesty must be above 1/2 for at least one client")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        odds, dtype = None, statistics.gram.dtype
        if self.honesty is not None:
            p = jnp.clip(jnp.asarray(self.honesty, dtype), 0, 1)
            odds = jnp.clip(jnp.log(p) - jnp.log1p(-p), 0, MOST_ODDS)
        mass = prior_mass(odds, statistics.usable, context, dtype)
        squared = statistics.squared_distances()
        distances = safe_sqrt(jnp.where(jnp.isfinite(squared), squared, 0))
        weights = median_weights(statistics.gram, distances, mass, self.iterations)
        return weights, Info(weights=weights)
