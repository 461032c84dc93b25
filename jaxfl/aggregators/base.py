"""The two kinds of aggregation rule, and the one way both are run.

A *weighting rule* answers with a combination of rows whose weights depend on the updates only
through sums over coordinates (norms, inner products): the matrix is read once for those, all
iterations happen in n-space, and it is read once more for the combination. A *coordinatewise
rule* treats every column by itself. Pre-aggregators multiply the rows by a small matrix from
the left; they compose with both kinds without forming the mixed rows in memory.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxfl.component import Component
from jaxfl.numerics import columns, order, rows
from jaxfl.types import Aggregated, Context, Info, PyTree, Spec, State, Struct, present_mask


class Statistics(Struct):
    """What a weighting rule or pre-aggregator may know of m rows and r reference rows."""

    usable: Bool[Array, " m"]
    """Rows that are present, finite and of finite norm; the others must get weight 0."""
    norms: Float[Array, " m"] | None
    """Norm of each row, +inf where not usable; None after mixing, unless something needs them."""
    gram: Float[Array, "k k"] | None
    """Inner products of the m + r rows about a common centre; None where nothing needs them."""

    def squared_distances(self) -> Float[Array, "k k"]:
        """Between all m + r rows; +inf to and from a row that is not usable."""
        assert self.gram is not None
        references = self.gram.shape[0] - self.usable.shape[0]
        return rows.squared_distances(self.gram, self.usable_rows(references))

    def usable_rows(self, references: int) -> Bool[Array, " k"]:
        """``usable`` extended by the reference rows, which always are."""
        return jnp.concatenate([self.usable, jnp.ones((references,), bool)])


class Aggregator(Component):
    """A rule that turns n updates into one. Abstract.

    ``rule(updates)`` is the notebook's way in; ``rule.aggregate`` is the simulator's.
    """

    tolerates: ClassVar[bool] = True
    """Stays bounded by the honest rows when f finite rows are arbitrary."""
    accepts_absent: ClassVar[bool] = False
    """Can leave out slots that hold no client (Poisson sampling)."""

    def check(self, n: int) -> None:
        """Raises ValueError where the rule is not defined for n updates."""
        if n < 1:
            raise ValueError(f"{type(self).__name__} needs at least one update; got n = {n}")

    def init(self, spec: Spec) -> State:
        """The memory at the start of a run; ``()`` where the rule has none."""
        return ()

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        """Aggregates one round: pure, traceable, without checks."""
        raise NotImplementedError

    def __call__(
        self, updates: PyTree, *, context: Context | None = None, state: State = None
    ) -> PyTree:
        """Aggregates an array ``[n, ...]`` or a pytree of such arrays, compiled.

        Returns the aggregate in the structure of one update. See ``inspect`` for the reasons.

        Raises:
          ValueError: the rule is not defined for this number of updates.
        """
        return self.inspect(updates, context=context, state=state).update

    def inspect(
        self, updates: PyTree, *, context: Context | None = None, state: State = None
    ) -> Aggregated:
        """Like a call, but returns ``Aggregated``: the update, the new memory and the Info."""
        leaves = jax.tree.leaves(updates)
        sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in leaves}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"{type(self).__name__}: updates must share a leading client axis of at least 1; "
                f"got leaves of shapes {[jnp.shape(leaf) for leaf in leaves]}"
            )
        (n,) = sizes
        self.check(n)
        context = Context.of(n) if context is None else context
        if context.present is not None and not self.accepts_absent:
            raise ValueError(f"{type(self).__name__} cannot leave out absent clients")
        return _inspect(self, updates, context, state)


@jax.jit
def _inspect(rule: Aggregator, updates: PyTree, context: Context, state: State) -> Aggregated:
    first = jax.tree.map(lambda leaf: leaf[0], updates)
    _, unravel = ravel_pytree(first)
    flat = jax.vmap(lambda row: ravel_pytree(row)[0])(updates)
    n, d = flat.shape
    if state is None:
        state = rule.init(Spec(population=n, cohort=n, dim=d, dtype=flat.dtype))
    result = rule.aggregate(flat, state, context)
    return result.replace(update=unravel(result.update))


class WeightingRule(Aggregator):
    """A rule whose answer is ``weights @ [updates; references]``. Abstract."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    """Statistics that ``weigh`` reads: any of "norms", "gram"."""

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "r d"] | None:
        """Rows that the rule compares with or starts from, such as its previous output."""
        return None

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        """The weights of the m rows and r references, 0 wherever a row is not usable."""
        raise NotImplementedError

    def remember(self, state: State, output: Float[Array, " d"], context: Context) -> State:
        """The memory for the next round."""
        return state

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        return run_rule((), self, updates, state, context)


class CoordinatewiseRule(Aggregator):
    """A rule whose every output coordinate depends on its own column alone. Abstract."""

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        """Columns to numbers; elements that were NaN, and dropped rows, arrive as +inf."""
        raise NotImplementedError

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        return run_rule((), self, updates, state, context)


class PreAggregator(Component):
    """Replaces the m rows by ``matrix @ rows`` before a rule sees them. Abstract."""

    accepts_absent: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    affine: ClassVar[bool] = True
    """Every row of the matrix (but those of unusable rows, all 0) sums to 1."""
    diagonal: ClassVar[bool] = False
    """The matrix only rescales rows."""

    def check(self, n: int) -> None:
        """Raises ValueError where the mixing is not defined for n rows."""

    def rows(self, n: int) -> int:
        """How many rows are handed on."""
        return n

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, "m_out m"]:
        """The matrix; a row of zeros marks the mixed row as not usable."""
        raise NotImplementedError


def measure(
    updates: Float[Array, "n d"],
    references: Float[Array, "r d"],
    context: Context,
    needs: frozenset[str],
) -> Statistics:
    """Pass 0 (norms, which rows are finite) and, where needed, the pass for the Gram matrix."""
    squares = rows.squared_norms(updates)
    usable = jnp.isfinite(squares) & present_mask(context, updates.shape[0])
    norms = jnp.where(usable, rows.safe_sqrt(squares), jnp.inf)
    gram = None
    if "gram" in needs:
        pilot = rows.median_row(norms, usable)
        gram = rows.centred_gram(updates, references, usable, pilot)
    return Statistics(usable=usable, norms=norms, gram=gram)


def run_rule(
    pre: Sequence[PreAggregator],
    rule: Aggregator,
    updates: Float[Array, "n d"],
    state: State,
    context: Context,
) -> Aggregated:
    """Runs pre-aggregators and a rule over one ``[n, d]`` matrix. The only driver there is."""
    n, d = updates.shape
    weighting = isinstance(rule, WeightingRule)
    own = rule.references(state, context, d) if weighting else None
    references = jnp.zeros((0, d), updates.dtype) if own is None else own.astype(updates.dtype)

    readers = [*(p.needs for p in pre), rule.needs if weighting else frozenset()]
    needs = frozenset[str]().union(*readers)
    origin = any("norms" in later for later in readers[1:]) or any(
        "gram" in later
        for i, stage in enumerate(pre)
        if not stage.affine
        for later in readers[i + 1 :]
    )
    if origin:
        # Norms of mixed rows are distances to the origin, and scaling moves a row towards it.
        references = jnp.concatenate([references, jnp.zeros((1, d), updates.dtype)])
        needs |= {"gram"}

    measured = weighting or pre
    statistics = measure(updates, references, context, needs) if measured else None
    mixing = None
    for stage in pre:
        assert statistics is not None
        matrix = stage.mix(statistics, context)
        usable = statistics.usable if stage.diagonal else jnp.any(matrix != 0, axis=1)
        statistics = _mixed(statistics, matrix, usable, origin)
        mixing = matrix if mixing is None else jnp.matmul(matrix, mixing, precision="highest")

    if not weighting:
        assert isinstance(rule, CoordinatewiseRule)
        diagonal = all(p.diagonal for p in pre)
        output = _reduce(rule, updates, mixing, statistics, context, diagonal)
        return Aggregated(update=output, state=state, info=Info())

    assert statistics is not None
    m, r = statistics.usable.shape[0], references.shape[0]
    visible = statistics
    if origin and statistics.gram is not None:
        visible = statistics.replace(gram=statistics.gram[: m + r - 1, : m + r - 1])
    weights, info = rule.weigh(visible, state, context)
    if mixing is not None:
        mass = jnp.matmul(weights[:m], mixing, precision="highest")
        info = Info(selected=mass > 0, weights=mass)
        weights = jnp.concatenate([mass, weights[m:]])
    missing = n + r - weights.shape[0]
    output = rows.combine(jnp.pad(weights, (0, missing)), updates, references)
    state = rule.remember(state, output, context)
    return Aggregated(update=output, state=state, info=info)


def _mixed(
    statistics: Statistics,
    matrix: Float[Array, "m_out m"],
    usable: Bool[Array, " m_out"],
    origin: bool,
) -> Statistics:
    """The statistics of the mixed rows: ``M G M^T``, where M leaves references as they are.

    M must be affine in the centred coordinates, so what a row lacks to a sum of 1 comes from the
    origin, the last reference.
    """
    if statistics.gram is None:
        return Statistics(usable=usable, norms=None, gram=None)
    m_out, m = matrix.shape
    r = statistics.gram.shape[0] - m
    lacking = jnp.zeros((m_out, r), matrix.dtype)
    if origin:
        lacking = lacking.at[:, -1].set(jnp.where(usable, 1 - jnp.sum(matrix, axis=1), 0))
    whole = jnp.block(
        [[matrix, lacking], [jnp.zeros((r, m), matrix.dtype), jnp.eye(r, dtype=matrix.dtype)]]
    )
    gram = jnp.linalg.multi_dot([whole, statistics.gram, whole.T], precision="highest")
    norms = None
    if origin:
        distances = rows.squared_distances(gram, jnp.ones((m_out + r,), bool))
        norms = jnp.where(usable, rows.safe_sqrt(distances[:m_out, -1]), jnp.inf)
    return Statistics(usable=usable, norms=norms, gram=gram)


def _reduce(
    rule: CoordinatewiseRule,
    updates: Float[Array, "n d"],
    mixing: Float[Array, "m n"] | None,
    statistics: Statistics | None,
    context: Context,
    diagonal: bool,
) -> Float[Array, " d"]:
    """The coordinatewise rule over blocks of columns, mixed as they are read."""
    dtype = rows.accumulator(updates.dtype)
    m = updates.shape[0] if mixing is None else mixing.shape[0]

    def block_reduce(block: Array) -> Array:
        block = block.astype(dtype)
        if mixing is not None:
            assert statistics is not None
            block = jnp.where(jnp.any(mixing != 0, axis=0)[:, None], block, 0)
            if diagonal:
                block = jnp.diagonal(mixing)[:, None] * block
            else:
                block = jnp.matmul(mixing.astype(dtype), block, precision="highest")
            block = jnp.where(statistics.usable[:, None], block, jnp.inf)
        return rule.reduce(jnp.where(jnp.isnan(block), jnp.inf, block), context)

    width = order.column_width(m)
    return columns.map_columns(block_reduce, updates, width=width).astype(updates.dtype)


def needs_more_than(rule: Any, n: int, least: int, condition: str) -> None:
    """Raises the one error for too few updates: ``Krum needs n >= 2f + 3 clients; got ...``."""
    if n < least:
        raise ValueError(
            f"{type(rule).__name__} needs {condition} clients; got n = {n}, f = {rule.f}"
        )
