"""Rules that look at nothing but the norms of the updates: screening and clipping."""

import math
from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import masked_median, safe_ratio
from jaxfl.types import Context, Info, State, present_count


def norm_ranks(
    norms: Float[Array, " n"], low: Int[Array, ""] | int, high: Int[Array, ""] | int
) -> Bool[Array, " n"]:
    """The rows whose norm has rank low, ..., high - 1 in ascending order, ties by index."""
    column = norms[:, None]
    return (smallest(column, high) & ~smallest(column, low))[:, 0]


def _mean_of(kept: Bool[Array, " n"], statistics: Statistics) -> tuple[Array, Info]:
    assert statistics.norms is not None
    kept &= statistics.usable
    weights = kept.astype(statistics.norms.dtype)
    weights = safe_ratio(weights, jnp.sum(weights))
    return weights, Info(selected=kept, weights=weights, scores=statistics.norms)


def _share_of(share: float, count: Int[Array, ""] | int, n: int, rounding) -> Array:
    """``rounding(share * count)``, exact for a decimal share: in floats 0.29 * 100 is below 29."""
    exact = Fraction(str(share))
    return jnp.asarray([rounding(exact * k) for k in range(n + 1)], jnp.int32)[count]


class CGE(WeightingRule):
    """Comparative gradient elimination: the n - f updates of smallest norm, averaged.

    ``average = False`` gives their sum, the form in Liu et al.'s analysis, whose step size then
    carries the 1 / (n - f). ``info.scores`` holds the norms.

    Needs n > 2f. Cost: two reads of the matrix. Fails: anything of ordinary norm, a sign flip
    included.
    Gupta, Liu, Vaidya, "Byzantine fault-tolerance in distributed machine learning
    using norm-based comparative gradient elimination", DSN-W 2021; Liu, Gupta, Vaidya,
    "Approximate Byzantine fault-tolerance in distributed optimization", PODC 2021.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> CGE(f=1).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    f: int = field(at_least=0)
    average: bool = True
    """Whether the kept updates are averaged; else summed."""
    needs = capability(frozenset({"norms"}))
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    @capability
    def unanimous(self) -> bool:
        return self.average

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " m"], Info]:
        assert statistics.norms is not None
        m = statistics.norms.shape[0]
        kept = norm_ranks(statistics.norms, 0, present_count(context, m) - self.f)
        weights, info = _mean_of(kept, statistics)
        if not self.average:
            weights = (kept & statistics.usable).astype(weights.dtype)
        return weights, info


class NBS(WeightingRule):
    """Norm-based screening: the mean without the f updates of largest norm.

    ``beta``, where given, drops ceil(beta n) of them instead of f. With q-FFL's weights on the
    updates it is H-nobs (Zhou et al., NeurIPS 2023). ``info.scores`` holds the norms.

    Needs n > f. Cost: two reads of the matrix. Fails: whatever has an ordinary norm passes, a
    sign flip included, however few the Byzantine clients.
    Ghosh et al., "Communication-efficient and Byzantine-robust distributed learning", 2019.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> NBS(f=1).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    f: int = field(at_least=0)
    beta: float | None = field(default=None, at_least=0, below=1)
    """Share of the updates that is dropped, in place of f of them."""
    needs = capability(frozenset({"norms"}))
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, self.f + 1, "n > f")
        if self.beta is not None and math.ceil(Fraction(str(self.beta)) * n) >= n:
            raise ValueError(
                f"NBS: beta must leave at least one of n = {n} clients; got {self.beta}"
            )

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " m"], Info]:
        assert statistics.norms is not None
        m = statistics.norms.shape[0]
        count = present_count(context, m)
        dropped = self.f if self.beta is None else _share_of(self.beta, count, m, math.ceil)
        return _mean_of(norm_ranks(statistics.norms, 0, count - dropped), statistics)


class TNBS(WeightingRule):
    """Two-sided norm-based screening: the mean without the smallest and the largest norms.

    Drops the ``low`` smallest and ``high`` largest, f each unless given; or, with ``quantile``
    p, floor(p n) on either side. ``info.scores`` holds the norms.

    Needs n > low + high. Cost: two reads of the matrix. Fails: any message whose norm lies
    within the kept range; it also drops honest clients of small norm, those that q-FFL would
    serve.
    Basharat, Bian, Xu, Tian, "Towards trustworthy federated learning", 2025.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> TNBS(f=1).inspect(updates).info.selected.tolist()
    [False, True, True, True, True, True, False]
    """

    f: int = field(at_least=0)
    low: int | None = field(default=None, at_least=0)
    """How many of the smallest norms are dropped; none: f."""
    high: int | None = field(default=None, at_least=0)
    """How many of the largest norms are dropped; none: f."""
    quantile: float | None = field(default=None, at_least=0, below=0.5)
    """Share dropped on either side, in place of numbers."""
    needs = capability(frozenset({"norms"}))
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    def check(self, n: int) -> None:
        if self.quantile is not None:
            if self.low is not None or self.high is not None:
                raise ValueError("TNBS: give either quantile or low and high, not both")
            return
        low, high = self._ends()
        if n <= low + high:
            raise ValueError(
                f"TNBS needs n > low + high clients; got n = {n}, f = {self.f}, "
                f"low = {low}, high = {high}"
            )

    def _ends(self) -> tuple[int, int]:
        low, high = self.low, self.high
        return self.f if low is None else low, self.f if high is None else high

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " m"], Info]:
        assert statistics.norms is not None
        m = statistics.norms.shape[0]
        count = present_count(context, m)
        low, high = self._ends()
        if self.quantile is not None:
            low = high = _share_of(self.quantile, count, m, math.floor)
        return _mean_of(norm_ranks(statistics.norms, low, count - high), statistics)


class NormClipping(WeightingRule):
    """The mean of the updates clipped in norm: ``mean_i x_i min(1, tau / |x_i|)``, plus noise.

    ``tau`` is in the units of the updates; None clips to the median norm of the round.
    ``noise_std`` is the standard deviation of Gaussian noise on every coordinate of the mean, None
    for none.

    Needs a small f / n: each Byzantine client moves the mean by up to 2 tau / n. Cost: two reads
    of the matrix. Fails: attacks of ordinary norm.
    Sun, Kairouz, Suresh, McMahan, "Can you really backdoor
    federated learning?", 2019.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> NormClipping(tau=3.0)(updates).round(2)
    Array([1.9 , 1.29], dtype=float32)
    """

    tau: Scalar | None = field(default=None, above=0)
    """Largest norm, in the units of the updates; none: the median norm of the round."""
    noise_std: Scalar | None = field(default=None, at_least=0)
    """Standard deviation of the noise on every coordinate of the mean; none: no noise."""
    needs = capability(frozenset({"norms"}))
    accepts_absent = capability(True)

    @capability
    def scale_equivariant(self) -> bool:
        return not self.in_units

    @capability
    def unanimous(self) -> bool:
        return self.tau is None

    @capability
    def in_units(self) -> tuple[str, ...]:
        return tuple(n for n in ("tau", "noise_std") if getattr(self, n) is not None)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " m"], Info]:
        norms, usable = statistics.norms, statistics.usable
        assert norms is not None
        median = masked_median(norms, usable)
        tau = median if self.tau is None else jnp.asarray(self.tau, norms.dtype)
        scale = jnp.where(norms > tau, safe_ratio(tau, jnp.where(usable, norms, 1)), 1)
        weights = jnp.where(usable, scale, 0) / jnp.maximum(jnp.sum(usable), 1)
        return weights, Info(weights=weights, scores=norms)

    def noise(self, statistics: Statistics, context: Context) -> Float[Array, ""] | None:
        assert statistics.norms is not None
        std = self.noise_std
        return None if std is None else jnp.asarray(std, statistics.norms.dtype)
