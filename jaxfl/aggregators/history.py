"""Rules that judge a client by the sum of all it has sent."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.gram import centred_gram, squared_distances
from jaxfl.numerics.places import add_at, take_at
from jaxfl.types import Aggregated, Context, Info, Spec, State, Struct, present_mask


def foolsgold_weights(
    cosines: Float[Array, "n n"], usable: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """FoolsGold's learning rates: near 0 for clients whose histories point the same way.

    With ``v_i = max(0, max_{j != i} c_ij)`` and similarities pardoned to ``c_ij v_i / v_j``
    where v_j > v_i: ``a_i = 1 - max_j c_ij``, in units of the largest and at most 0.99, then
    ``clip(log(a / (1 - a)) + 1/2, 0, 1)``. All 1 where every history is the same.
    """
    n = cosines.shape[0]
    pairs = usable[:, None] & usable[None, :] & ~jnp.eye(n, dtype=bool)
    most = jnp.max(jnp.where(pairs, cosines, 0), axis=1)
    mine, theirs = most[:, None], most[None, :]
    pardon = jnp.where(theirs > mine, rows.safe_ratio(mine, jnp.broadcast_to(theirs, (n, n))), 1)
    most = jnp.max(jnp.where(pairs, cosines * pardon, 0), axis=1)
    foreign = jnp.where(usable, jnp.clip(1 - most, 0, 1), 0)
    largest = jnp.max(foreign)
    shares = jnp.minimum(rows.safe_ratio(foreign, largest), 0.99)
    inside = jnp.where(shares > 0, shares, 0.5)
    rates = jnp.clip(jnp.log(inside / (1 - inside)) + 0.5, 0, 1)
    rates = jnp.where(shares > 0, rates, 0)
    return jnp.where(usable, jnp.where(largest > 0, rates, 1), 0)


class FoolsGold(Aggregator):
    """A mean in which clients with alike histories count for little, against sybils.

    Each client's history is the sum of its updates; ``foolsgold_weights`` turns the cosines of
    histories into learning rates. ``average`` divides by their sum; the paper's own sum does
    not. The memory is every client's history, ``[population, d]``.

    Needs at least two sybils. Cost: n^2 d multiply-adds and three reads of the matrix. Fails: a
    single attacker is invisible, sybils that add different noise, honest IID clients, which look
    like sybils.
    Fung, Yoon, Beschastnikh, "The limitations of federated learning in sybil settings", RAID
    2020.

    >>> updates = jnp.array([[1, 0], [0, 1.0], [1, 1], [-1, 1], [-1, 1]])
    >>> FoolsGold().inspect(updates).info.weights.round(2).tolist()
    [0.32999998331069946, 0.32999998331069946, 0.32999998331069946, 0.0, 0.0]
    """

    name = "foolsgold"
    average: bool = True
    """Whether learning rates are divided by their sum."""
    tolerates = capability(False)
    accepts_absent = capability(True)
    by_client = capability(True)
    unit_free = capability(True)

    @capability
    def unanimous(self) -> bool:
        return self.average

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.population, spec.dim), spec.dtype)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        usable, clean = _usable(updates, context)
        history = _add_rows(state, updates, usable, context)
        nothing = jnp.zeros((0, updates.shape[1]), history.dtype)
        own = _clients_rows(history, usable, context)
        gram = centred_gram(own.matrix, nothing, own.usable, None)[own.places][:, own.places]
        squares = jnp.diagonal(gram)
        usable &= jnp.isfinite(squares)  # a sum of finite updates can overflow
        norms = rows.safe_sqrt(squares)
        unit = rows.safe_ratio(jnp.ones_like(norms), norms)
        cosines = jnp.clip(gram * unit[:, None] * unit[None, :], -1, 1)
        rates = foolsgold_weights(cosines, usable)
        weights = rows.safe_ratio(rates, jnp.sum(rates)) if self.average else rates
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        output = rows.combine(weights, updates, none, clean)
        return Aggregated(update=output, state=history, info=Info(weights=weights, scores=rates))


class ByzantineSGDState(Struct):
    """What ByzantineSGD remembers of every client."""

    start: Float[Array, " d"]
    """Parameters at the first round, x_1."""
    progress: Float[Array, " K"]
    """``A_i = sum_t <g_i, x_t - x_1>``."""
    history: Float[Array, "K d"]
    """``B_i = sum_t g_i``."""
    good: Bool[Array, " K"]


class ByzantineSGD(Aggregator):
    """Expels for good whoever strays from the median in its update, or in sums over all rounds.

    Client i stays good while ``|A_i - median A| <= T_A``, ``|B_i - B_med| <= T_B`` and
    ``|g_i - g_med| <= 4 V``, where A_i and B_i sum ``<g_i, x_t - x_1>`` and g_i over the rounds,
    B_med is a row with more than half of the others within T_B and g_med one with more than
    half within 2 V. The answer is ``1/n sum`` of the good clients' updates. Thresholds:
    ``T_B = 4 V sqrt(T log(16 n T / delta))`` and ``T_A = D T_B``; V, D and T are ``deviation``,
    ``diameter`` and ``horizon``.

    Needs an honest majority, every client in every round, and ``context.params``. Where no row has
    a majority nearby, the row with most neighbours takes its place. A row that is not finite expels
    its client. Cost: 2 n^2 d multiply-adds and four reads of the matrix. Fails: V unknown or large
    (thresholds that never bind).
    Alistarh, Allen-Zhu, Li, "Byzantine stochastic gradient descent", NeurIPS 2018.

    >>> ByzantineSGD().follows_model
    True
    """

    deviation: Scalar = field(default=10.0, above=0)
    """V, how far an honest update may be from the true gradient; in its units."""
    diameter: Scalar = field(default=10.0, above=0)
    """D, how far parameters may move from where they started."""
    horizon: Scalar = field(default=1000.0, at_least=1)
    """T, rounds in all."""
    delta: Scalar = field(default=0.01, above=0, below=1)
    """Probability of failure."""
    by_client = capability(True)
    needs_everybody = capability(True)
    follows_model = capability(True)
    in_units = capability(("deviation",))

    def init(self, spec: Spec) -> State:
        return ByzantineSGDState(
            start=jnp.zeros((spec.dim,), spec.dtype),
            progress=jnp.zeros((spec.population,), rows.accumulator(jnp.dtype(spec.dtype))),
            history=jnp.zeros((spec.population, spec.dim), spec.dtype),
            good=jnp.ones((spec.population,), bool),
        )

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        if context.params is None:
            raise ValueError("ByzantineSGD needs context.params, the parameters of this round")
        n, d = updates.shape
        usable, clean = _usable(updates, context)
        dtype = state.progress.dtype
        params = context.params.astype(state.start.dtype)
        start = jnp.where(context.round == 0, params, state.start)
        moved = rows.products(updates, (params - start)[None].astype(updates.dtype))[:, 0]
        ids = context.client_ids
        progress = state.progress.at[ids].add(jnp.where(usable, moved, 0).astype(dtype))
        history = _add_rows(state.history, updates, usable, context)

        deviation = jnp.asarray(self.deviation, dtype)
        horizon = jnp.asarray(self.horizon, dtype)
        logarithm = jnp.log(16 * n * horizon / jnp.asarray(self.delta, dtype))
        far = 4 * deviation * jnp.sqrt(horizon * logarithm)
        middle = rows.masked_median(progress[ids], usable)
        near_a = jnp.abs(progress[ids] - middle) <= jnp.asarray(self.diameter, dtype) * far
        own = _clients_rows(history, usable, context)
        near_b = _within(own.matrix, own.usable, far, far, own.places)
        near_g = _within(updates, usable, 2 * deviation, 4 * deviation)
        good = state.good[ids] & usable & near_a & near_b & near_g

        weights = good.astype(dtype) / n
        output = rows.combine(weights, updates, jnp.zeros((0, d), updates.dtype), clean)
        state = ByzantineSGDState(
            start=start, progress=progress, history=history, good=state.good.at[ids].set(good)
        )
        return Aggregated(update=output, state=state, info=Info(selected=good, weights=weights))


def _usable(updates: Float[Array, "n d"], context: Context) -> tuple[Array, Array]:
    """Rows to count, and whether all rows are finite."""
    finite = jnp.isfinite(rows.squared_norms(updates))
    return finite & present_mask(context, updates.shape[0]), jnp.all(finite)


def _add_rows(
    memory: Float[Array, "K d"], updates: Float[Array, "n d"], usable: Array, context: Context
) -> Float[Array, "K d"]:
    """The memory, with the usable updates added to the rows of their clients."""
    nowhere = memory.shape[0]
    places = jnp.where(usable, context.client_ids, nowhere)
    return add_at(memory, places, updates.astype(memory.dtype))


class _Rows(NamedTuple):
    """This round's clients' rows, somewhere in a matrix."""

    matrix: Float[Array, "m d"]
    usable: Bool[Array, " m"]
    places: Int[Array, " n"]


def _clients_rows(memory: Float[Array, "K d"], usable: Array, context: Context) -> _Rows:
    """Of a memory: all of it where as many take part as there are, which copies nothing."""
    population, n = memory.shape[0], usable.shape[0]
    places = jnp.minimum(context.client_ids, population - 1)
    if n < population:
        return _Rows(take_at(memory, places), usable, jnp.arange(n))
    present = jnp.zeros((population,), bool).at[context.client_ids].set(usable, mode="drop")
    return _Rows(memory, present, places)


def _within(
    matrix: Float[Array, "m d"],
    usable: Bool[Array, " m"],
    half: Array,
    allowed: Array,
    places: Int[Array, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Rows within ``allowed`` of the row that has most others within ``half``, first of equals.

    ``places``: where in the matrix the rows are, in their order.
    """
    none = jnp.zeros((0, matrix.shape[1]), matrix.dtype)
    pilot = rows.median_row(rows.safe_sqrt(rows.squared_norms(matrix)), usable)
    distances = squared_distances(centred_gram(matrix, none, usable, pilot), usable)
    if places is not None:
        usable, distances = usable[places], distances[places][:, places]
    neighbours = jnp.sum(distances <= jnp.square(half), axis=1, dtype=jnp.int32)
    centre = jnp.argmax(jnp.where(usable, neighbours, -1))
    return distances[centre] <= jnp.square(allowed)
