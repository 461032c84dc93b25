"""Rules that cluster the directions of the updates and trust the majority."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.linkage import LINKAGES, larger_of_two, smallest_level
from jaxfl.numerics.order import of_rank_of_many
from jaxfl.numerics.rows import masked_median, safe_ratio
from jaxfl.types import Context, Info, Spec, State, Struct, present_count


def _mean_of_clipped(
    selected: Bool[Array, " n"], norms: Float[Array, " n"], threshold: Float[Array, ""]
) -> tuple[Array, Info]:
    finite = jnp.where(selected, norms, 1)
    scale = jnp.where(finite > threshold, safe_ratio(threshold, finite), 1)
    weights = jnp.where(selected, scale, 0) / jnp.maximum(jnp.sum(selected), 1)
    return weights, Info(selected=selected, weights=weights)


def _median_of_known(norms: Float[Array, "w n"]) -> Float[Array, ""]:
    """The median of those that are at least 0. Not by sorting: there can be millions."""
    known = norms >= 0
    count = jnp.sum(known, dtype=jnp.int32)
    column = jnp.where(known, norms, jnp.inf).reshape(-1)
    lower = of_rank_of_many(column, jnp.maximum(count - 1, 0) // 2)
    upper = of_rank_of_many(column, count // 2)
    return jnp.where(count > 0, lower / 2 + upper / 2, 0)


class ClippedClusteringState(Struct):
    """The norms of the last rounds."""

    norms: Float[Array, "w n"]
    """A ring of rounds; -1 where a round or a row is missing."""
    rounds: Int[Array, ""]


class ClippedClustering(WeightingRule):
    """Clips to the median of all norms so far, then averages the larger of two clusters.

    The clusters are those of average or single ``linkage`` over cosine distances
    ``1 - cos(x_i, x_j)``. "So far" is this round and the ``window - 1`` before it; the memory is
    their norms.

    Needs an honest majority. Cost: n^2 d multiply-adds and three reads of the matrix. Fails:
    attackers whose directions lie among the honest ones, as ALIE's do; honest clients that form
    two clusters.
    Li, Ngai, Voigt, "An experimental study of Byzantine-robust aggregation schemes
    in federated learning", IEEE Transactions on Big Data 2024.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> ClippedClustering().inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    window: int = field(default=1000, at_least=1)
    """Rounds whose norms are remembered, this one included."""
    linkage: str = field(default="average", choices=("average", "single"))
    """What counts as the distance of two clusters."""
    needs = capability(frozenset({"norms", "inner"}))
    accepts_absent = capability(True)
    unit_free = capability(True)

    @classmethod
    def example(cls, f: int = 2) -> "ClippedClustering":
        return cls(window=5)

    def init(self, spec: Spec) -> State:
        norms = jnp.full((self.window, spec.cohort), -1, jnp.promote_types(spec.dtype, "f4"))
        return ClippedClusteringState(norms=norms, rounds=jnp.zeros((), jnp.int32))

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.norms is not None
        threshold = _median_of_known(self._with(state, statistics).norms)
        n = statistics.usable.shape[0]
        distances = 1 - statistics.cosines()[:n, :n]
        larger = larger_of_two(distances, statistics.usable, self.linkage)
        return _mean_of_clipped(larger, statistics.norms, threshold)

    def remember(
        self, state: State, output: Float[Array, " d"], statistics: Statistics, context: Context
    ) -> State:
        return self._with(state, statistics)

    def _with(self, state: State, statistics: Statistics) -> ClippedClusteringState:
        assert statistics.norms is not None
        norms = jax.lax.stop_gradient(jnp.where(statistics.usable, statistics.norms, -1))
        place = state.rounds % self.window
        return ClippedClusteringState(
            norms=state.norms.at[place].set(norms.astype(state.norms.dtype)),
            rounds=state.rounds + 1,
        )


class CosineClustering(WeightingRule):
    """The mean of the larger of two clusters by the angles between updates.

    Distances are ``1 - cos(g_i, g_j)``; the two clusters are those of ``"complete"``, ``"single"``
    or ``"average"`` ``linkage``. Single linkage makes the largest cosine between the clusters as
    small as it can be, which is what the paper asks for; its code takes complete. Of two equal
    halves the one with the first client wins. With ``gate``, nobody is left out unless that largest
    cosine is below it.

    Needs an honest majority. Cost: n^2 d multiply-adds and three reads of the matrix. Fails:
    attackers whose directions lie among the honest ones; any length of an honest direction passes;
    without a gate it drops up to half of the honest clients where nobody attacks.
    Sattler, Müller, Wiegand, Samek, "On the Byzantine robustness of clustered federated learning",
    ICASSP 2020.

    >>> updates = jnp.array([[1, 0], [1, 0.1], [1, -0.1], [-1, 0], [-1, 0.1]])
    >>> for rule in (CosineClustering(), CosineClustering(gate=-1.0)):
    ...     print(rule.inspect(updates).info.selected.tolist())
    [True, True, True, False, False]
    [True, True, True, True, True]
    """

    linkage: str = field(default="complete", choices=LINKAGES)
    """What counts as the distance of two clusters."""
    gate: Scalar | None = field(default=None, at_least=-1, at_most=1)
    """Largest cosine between the clusters at which one is left out; none: one always is."""
    needs = capability(frozenset({"inner"}))
    tolerates = capability(False)
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        usable = statistics.usable
        n = usable.shape[0]
        cosines = statistics.cosines()[:n, :n]
        selected = larger_of_two(1 - cosines, usable, self.linkage)
        if self.gate is not None:
            apart = selected[:, None] & (usable & ~selected)[None, :]
            nearest = jnp.max(jnp.where(apart, cosines, -jnp.inf))
            selected = jnp.where(nearest < jnp.asarray(self.gate, cosines.dtype), selected, usable)
        weights = selected.astype(cosines.dtype) / jnp.maximum(jnp.sum(selected), 1)
        return weights, Info(selected=selected, weights=weights)


class FLAME(WeightingRule):
    """Admits the majority by direction, clips it to the median norm, averages, adds noise.

    The admitted are the cluster of at least floor(n / 2) + 1 clients that single linkage over
    cosine distances forms first; the paper's HDBSCAN with that least size has one such cluster
    too. All norms enter the median S. ``noise_factor`` times S is the standard deviation of the
    Gaussian noise on every coordinate; None leaves it out.

    Needs an honest majority. Cost: n^2 d multiply-adds, three reads of the matrix and d normal
    draws. Fails: attackers whose directions lie among the honest ones, heterogeneous clients
    without one tight majority.
    Nguyen et al., "FLAME: taming backdoors in federated learning", USENIX Security 2022.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> FLAME(noise_factor=0.0).inspect(updates).info.selected.tolist()
    [False, True, False, True, True, True, False]
    """

    noise_factor: Scalar | None = field(default=0.001, at_least=0)
    """Standard deviation of the noise in units of the median norm; none: no noise."""
    needs = capability(frozenset({"norms", "inner"}))
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    @classmethod
    def example(cls, f: int = 2) -> "FLAME":
        return cls(noise_factor=1e-7)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        norms, usable = statistics.norms, statistics.usable
        assert norms is not None
        n = usable.shape[0]
        majority = present_count(context, n) // 2 + 1
        admitted = smallest_level(1 - statistics.cosines()[:n, :n], usable, majority)
        return _mean_of_clipped(admitted, norms, masked_median(norms, usable))

    def noise(self, statistics: Statistics, context: Context) -> Float[Array, ""] | None:
        if self.noise_factor is None:
            return None
        assert statistics.norms is not None
        median = masked_median(statistics.norms, statistics.usable)
        return jnp.asarray(self.noise_factor, median.dtype) * median
