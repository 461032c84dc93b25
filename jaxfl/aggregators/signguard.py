"""SignGuard: clients whose updates have an ordinary norm and the signs of the majority."""

import abc
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import order
from jaxfl.numerics.mean_shift import largest_cluster
from jaxfl.numerics.rows import masked_median, median_row, safe_ratio, safe_sqrt
from jaxfl.numerics.runs import in_all_runs
from jaxfl.types import Context, Info, Spec, State, Struct


def sign_features(sample: Float[Array, "n s"], usable: Bool[Array, " n"]) -> Float[Array, "n 3"]:
    """Shares of positive, zero and negative elements, each in units of its largest over clients.

    The scaling is that of the authors' code; it makes rare zeros count as much as signs do.
    """
    s = sample.shape[1]
    # Both counts in one reduction: two, with what XLA fuses into them, take forty times longer.
    positive, negative = jax.lax.reduce(
        [(sample > 0).astype(jnp.int32), (sample < 0).astype(jnp.int32)],
        [jnp.int32(0), jnp.int32(0)],
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        (1,),
    )
    counts = jnp.stack([positive, s - positive - negative, negative], axis=1)
    shares = jnp.where(usable[:, None], counts.astype(sample.dtype) / s, 0)
    return shares / (jnp.max(shares, axis=0, keepdims=True) + 1e-8)


def _lower_median(values: Float[Array, "n c"], mask: Bool[Array, " n"]) -> Float[Array, " c"]:
    """Per column, the lower median of the rows under the mask."""
    count = jnp.sum(mask, dtype=jnp.int32)
    values = jnp.where(mask[:, None], values, jnp.inf)
    return order.of_rank(values, jnp.maximum(count - 1, 0) // 2)


class _SignGuard(WeightingRule):
    """What the three variants share. Abstract."""

    low: Scalar = field(default=0.1, at_least=0, at_most=1)
    """Least norm that passes, in units of the median norm."""
    high: Scalar = field(default=3.0, at_least=1)
    """Largest norm that passes, in the same units."""
    fraction: float = field(default=0.1, above=0, at_most=1)
    """Share of coordinates whose signs are looked at."""
    window: bool = False
    """Look at one random run of coordinates, as the authors' code does, instead of a random one in
    each of as many stretches."""
    start: int | None = field(default=None, at_least=0)
    """Where that run begins, for comparisons in which it must be known; else at random."""
    filter_norms: bool = True
    """The first component, the norm filter."""
    cluster_signs: bool = True
    """The second, the clustering of sign statistics."""
    clip: bool = True
    """The third, clipping those selected to the median norm."""
    lower: bool = False
    """Clip to the lower of two middle norms, as the authors' code does; its filter goes by their
    mean, as this one always does."""
    needs = capability(frozenset({"norms"}))
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start is not None and not self.window:
            raise ValueError(f"{type(self).__name__}: start needs window = True")

    @classmethod
    def example(cls, f: int = 2) -> "_SignGuard":
        return cls(fraction=0.5)

    @abc.abstractmethod
    def feature(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, "n f"], Float[Array, " n"] | None]:
        """One more feature for the clustering, as a column, and the scores it comes from."""

    def columns(self, dim: int, context: Context) -> Int[Array, " s"] | None:
        """Indices of the coordinates whose signs are looked at: ``context.key`` decides."""
        if not self.cluster_signs:
            return None
        key = jax.random.fold_in(context.key, 0)
        size = max(1, math.floor(Fraction(str(self.fraction)) * dim))
        index = jnp.arange(size, dtype=jnp.int32)
        if self.start is not None:
            if self.start + size > dim:
                must = f"a window of {size} of {dim} coordinates must start by {dim - size}"
                raise ValueError(f"{type(self).__name__}: {must}; got start = {self.start}")
            return index + self.start
        if self.window:
            return index + jax.random.randint(key, (), 0, dim - size + 1, jnp.int32)
        # The first dim % size stretches are longer by one, so that no coordinate is left out.
        length, longer = divmod(dim, size)
        start = index * length + jnp.minimum(index, longer)
        # Remainders of 32 bits cost half of randint, whose evenness is not needed here.
        lengths = (length + (index < longer)).astype(jnp.uint32)
        place = jax.random.bits(key, (size,), jnp.uint32) % lengths
        return start + place.astype(jnp.int32)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        norms, usable = statistics.norms, statistics.usable
        assert norms is not None
        median = masked_median(norms, usable)
        low, high = (jnp.asarray(bound, norms.dtype) for bound in (self.low, self.high))
        ordinary = usable
        if self.filter_norms:
            ordinary &= ((low * median <= norms) & (norms <= high * median)) | (median == 0)
        feature, scores = self.feature(statistics, state, context)
        alike = usable
        if self.cluster_signs:
            assert statistics.sample is not None
            features = jnp.concatenate([sign_features(statistics.sample, usable), feature], axis=1)
            deviations = jnp.where(usable, jnp.abs(norms - median), 0)
            key = jax.random.fold_in(context.key, 1)
            alike = largest_cluster(features, usable, deviations, key)
        selected = ordinary & alike
        selected = jnp.where(jnp.any(selected), selected, ordinary)
        central = (jnp.arange(norms.shape[0]) == median_row(norms, usable)) & usable
        selected = jnp.where(jnp.any(selected), selected, central)

        weights = selected.astype(norms.dtype) / jnp.maximum(jnp.sum(selected), 1)
        if self.clip:
            bound = _lower_median(norms[:, None], usable)[0] if self.lower else median
            finite = jnp.where(selected, norms, 1)
            weights *= jnp.where(finite > bound, safe_ratio(bound, finite), 1)
        return weights, Info(selected=selected, weights=weights, scores=scores)


class SignGuard(_SignGuard):
    """The mean of clients with an ordinary norm and the majority's sign statistics.

    1. Norms between ``low`` and ``high`` times the median norm pass. 2. The shares of positive,
    zero and negative elements, in a random ``fraction`` of the coordinates, are clustered by
    Mean-Shift; the largest cluster passes. 3. Those that pass both are clipped to the median
    norm and averaged. The three components can be switched off one by one.

    Which coordinates is up to ``context.key``: a call takes ``context=Context.of(n, key=...)``, and
    ``columns`` tells them. With ``window`` they are a run, whose ``start`` can be given.

    Where nobody passes both, those of ordinary norm are averaged; where there are none, the
    client of median norm is the answer. Where the statistics of every client equal those of
    floor(n / 2) - 1 others, as with two camps, the bandwidth is 0 and the largest group of equal
    ones passes.

    Needs an honest majority. Cost: two reads of the matrix and one of the sampled coordinates.
    Fails: attacks that match the sign statistics; a sign flip where signs are balanced.
    Xu, Huang, Song, Lan, "Byzantine-robust federated learning through collaborative malicious
    gradient filtering", ICDCS 2022.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> SignGuard(fraction=1.0).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    >>> context = jaxfl.types.Context.of(7, key=jax.random.key(5))
    >>> for start in (None, 2):
    ...     print(SignGuard(fraction=0.5, window=True, start=start).columns(8, context))
    [3 4 5 6]
    [2 3 4 5]
    """

    name = "signguard"

    def feature(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, "n f"], Float[Array, " n"] | None]:
        return jnp.zeros((statistics.usable.shape[0], 0)), None


class SignGuardState(Struct):
    """What SignGuardSim and SignGuardDist remember."""

    previous: Float[Array, " d"]
    """The last output."""
    rounds: Int[Array, ""]
    """How many there were."""


class _Remembering(_SignGuard):
    """Compares with the previous output, in the first rounds with the other clients. Abstract."""

    warmup: int = field(default=1, at_least=1)
    """Rounds in which clients are compared with one another."""
    public_memory = capability(True)

    def init(self, spec: Spec) -> State:
        return SignGuardState(
            previous=jnp.zeros((spec.dim,), spec.dtype), rounds=jnp.zeros((), jnp.int32)
        )

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "1 d"]:
        return state.previous[None]

    def wants_gram(self, state: State, context: Context) -> Bool[Array, ""]:
        return in_all_runs(state.rounds < self.warmup)

    def remember(
        self, state: State, output: Float[Array, " d"], statistics: Statistics, context: Context
    ) -> State:
        return SignGuardState(previous=output.astype(state.previous.dtype), rounds=state.rounds + 1)


class SignGuardSim(_Remembering):
    """SignGuard with the cosine similarity to the previous output as one more feature.

    In the first ``warmup`` rounds it is the lower median of the cosines to all clients (one's
    own counted as 0). The feature is ``clip(s_i, 0, m) / (5 m)``, m being the lower median of
    the s_i: up to 0.2, so that signs weigh more; it is 0 where m <= 0. ``info.scores`` holds s.

    Reference, scale and clipping are those of the authors' code, which warms up for three
    epochs; the paper leaves them open. Needs an honest majority. Cost: as SignGuard and one more
    read, in the first rounds n^2 d multiply-adds. Fails: as SignGuard.
    Xu, Huang, Song, Lan, "Byzantine-robust federated learning through collaborative malicious
    gradient filtering", ICDCS 2022.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> SignGuardSim(fraction=1.0).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    name = "signguard_sim"
    needs = capability(frozenset({"norms", "inner", "products"}))

    def feature(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, "n f"], Float[Array, " n"] | None]:
        usable = statistics.usable
        n = usable.shape[0]

        def to_clients() -> Float[Array, " n"]:
            others = ~jnp.eye(n, dtype=bool)
            return _lower_median(jnp.where(others, statistics.cosines()[:n, :n], 0), usable)

        def to_previous() -> Float[Array, " n"]:
            return statistics.reference_cosines()[:, 0]

        scores = jax.lax.cond(self.wants_gram(state, context), to_clients, to_previous)
        scores = jnp.where(usable, scores, 0)
        middle = _lower_median(scores[:, None], usable)
        scaled = jnp.clip(scores, 0, jnp.maximum(middle, 0)) / (5 * middle + 1e-8)
        return jnp.where(middle > 0, scaled, 0)[:, None], scores


class SignGuardDist(_Remembering):
    """SignGuard with a flag for updates far from the previous output as one more feature.

    The distance in the first ``warmup`` rounds is the sum of the floor(n / 2) smallest distances
    to all clients, oneself included. The feature is 1/5 where it is at least 1.1 times the lower
    median, else 0. ``info.scores`` holds the distances.

    Threshold and scale are those of the authors' code, which warms up for one epoch; the paper
    leaves them open. Needs an honest majority. Cost: as SignGuard and one more read, in the first
    rounds n^2 d multiply-adds. Fails: as SignGuard.
    Xu, Huang, Song, Lan, "Byzantine-robust federated learning through collaborative malicious
    gradient filtering", ICDCS 2022.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> SignGuardDist(fraction=1.0).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    name = "signguard_dist"
    needs = capability(frozenset({"norms", "gram", "products"}))
    scale_equivariant = capability(False)
    unit_free = capability(True)

    def feature(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, "n f"], Float[Array, " n"] | None]:
        usable = statistics.usable
        n = usable.shape[0]

        def to_clients() -> Float[Array, " n"]:
            distances = safe_sqrt(statistics.squared_distances()[:n, :n])
            near = order.smallest(distances, jnp.sum(usable, dtype=jnp.int32) // 2)
            return jnp.sum(jnp.where(near & usable[None, :], distances, 0), axis=0)

        def to_previous() -> Float[Array, " n"]:
            assert statistics.norms is not None
            assert statistics.products is not None
            assert statistics.reference_norms is not None
            squares = jnp.square(jnp.where(usable, statistics.norms, 0))
            reference = jnp.square(statistics.reference_norms[0])
            return safe_sqrt(jnp.maximum(squares + reference - 2 * statistics.products[:, 0], 0))

        scores = jax.lax.cond(self.wants_gram(state, context), to_clients, to_previous)
        scores = jnp.where(usable, scores, 0)
        middle = _lower_median(scores[:, None], usable)
        return ((scores >= 1.1 * middle) / 5).astype(scores.dtype)[:, None], scores
