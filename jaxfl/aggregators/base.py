"""The kinds of aggregation rule, and how each runs behind pre-aggregators.

A *weighting rule* answers with a combination of rows whose weights depend on the updates only
through sums over coordinates (norms, inner products): the matrix is read once for those, all
iterations happen in n-space, and it is read once more for the combination. A *coordinatewise
rule* treats every column by itself. Pre-aggregators multiply the rows by a small matrix from
the left; they compose with both kinds without forming the mixed rows in memory. Any other rule
is handed the mixed rows.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.mixing import (
    STREAMED,
    C,
    PreAggregator,
    by_client,
    context_of,
    measure_mixed,
    mix_block,
    to_clients,
    with_f,
)
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import Component, capability
from jaxfl.contracts import expect, expect_like, name_of, own_code
from jaxfl.numerics import columns, order, rows
from jaxfl.numerics.noise import normal
from jaxfl.numerics.runs import alongside, in_all_runs
from jaxfl.numerics.stream import Stream
from jaxfl.types import Aggregated, Context, Info, PyTree, Spec, State, present_mask

ROOT_FIELDS = {"update": ("root_update",), "batch": ("root_batch", "params", "objective")}
"""Where a context holds what comes from the server's own samples."""


class Aggregator(Component):
    """A rule that turns n updates into one. Abstract.

    ``rule(updates)`` is the notebook's way in; ``rule.aggregate`` is the simulator's.
    """

    tolerates = capability(True)
    """Stays bounded by the honest rows when f finite rows are arbitrary."""
    accepts_absent = capability(False)
    """Can leave out slots that hold no client (Poisson sampling)."""
    by_client = capability(False)
    """Needs to know which client a row belongs to: rows must not be grouped before it."""
    by_samples = capability(False)
    """Weighs clients by their numbers of samples."""
    public_memory = capability(False)
    """Its memory follows from the models that the server sent: no secret of any client."""
    needs_root = capability(frozenset[str]())
    """What it reads that comes from the server's own samples: any of "update", "batch"."""
    follows_model = capability(False)
    """Reads the model's parameters: an update must be a vector of their size."""
    permutation_equivariant = capability(True)
    """The order of the clients, with all that the server knows of each, changes no answer."""
    scale_equivariant = capability(False)
    """``A(c G) = c A(G)`` for every c > 0, whatever the rule remembers."""
    translation_equivariant = capability(False)
    """``A(G + v) = A(G) + v`` where the vector v is added to every update."""
    unanimous = capability(True)
    """Equal updates, in the first round, give that update (up to the rule's own noise)."""
    differentiable = capability(False)
    """Its gradient with respect to the updates is finite, where updates coincide too, and not 0."""
    in_units = capability(tuple[str, ...]())
    """Fields in the units of the updates: times c, with updates times c, so is the answer."""
    streams = capability(False)
    """Needs no more of the updates than passes over their rows, which are then never all held. The
    first pass must not be inside a branch or a loop."""
    reads_once = capability(False)
    """Of a stream, takes one pass where all rows are finite."""

    @capability
    def unit_free(self) -> bool:
        """Whether all answers of a run are times c where all its updates are.

        Weaker than ``scale_equivariant`` for rules that remember lengths.
        """
        return self.scale_equivariant

    @classmethod
    def example(cls: type[C], f: int = 2) -> C:
        """A rule with settings that suit updates of unit scale from a dozen clients."""
        return with_f(cls, f)

    def check(self, n: int) -> None:
        """Raises ValueError where the rule is not defined for n updates."""
        if n < 1:
            raise ValueError(f"{type(self).__name__} needs at least one update; got n = {n}")

    def init(self, spec: Spec) -> State:
        """The memory at the start of a run; ``()`` where the rule has none."""
        return ()

    @abc.abstractmethod
    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        """Aggregates one round: pure, traceable, without checks.

        Where no update is usable, all being absent or not finite, the answer is 0, or what the rule
        would answer to no update (an earlier answer, the server's own): the model must survive.
        """

    def checked(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        """``aggregate``, whose answer is looked at as it is traced.

        Raises:
          ValueError: a class of one's own answers something else than it should.
        """
        (n, d), name = updates.shape, f"{name_of(self)}.aggregate"
        with own_code(self, ".aggregate"):
            result: Any = self.aggregate(updates, state, context)  # pyright: ignore
        if not isinstance(result, Aggregated):
            raise ValueError(
                f"{name} must return Aggregated(update=..., state=..., info=...); "
                f"got {type(result).__name__}"
            )
        expect(f"{name} returned an update", result.update, (d,), "one number per parameter")
        expect_like(f"{name} returned the memory", result.state, state)
        for what, values in vars(result.info).items():
            if values is not None and jnp.shape(values) != (n,):
                raise ValueError(
                    f"{name} returned Info of {what} {jnp.shape(values)}; needs ({n},), one per row"
                )
        return result

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Aggregates ``M_k ... M_1 @ updates``, the pre-aggregators' matrices before this rule.

        Here the mixed rows are formed; a row that is not usable is NaN.
        """
        updates = rows.held(updates)
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        statistics, mixing = measure_mixed(pre, updates, none, context, frozenset())
        if mixing is None:
            return self.checked(updates, state, context)

        def form(block: Array) -> Array:
            mixed = mix_block(block.astype(mixing.dtype), mixing)
            return jnp.where(statistics.usable[:, None], mixed, jnp.nan)

        mixed = columns.map_columns(form, updates, width=rows.WIDTH).astype(updates.dtype)
        result = self.checked(mixed, state, context_of(mixing.shape[0], context))
        return result.replace(info=to_clients(result.info, mixing))

    def __call__(
        self, updates: PyTree, *, context: Context | None = None, state: State = None
    ) -> PyTree:
        """Aggregates a matrix ``[n, d]``, or a pytree of arrays ``[n, ...]``, compiled.

        A list of n vectors of one length, one per client, is stacked first.

        Returns the aggregate in the structure of one update. See ``inspect`` for the reasons.

        Raises:
          ValueError: the rule is not defined for this number of updates, or they are neither.
        """
        return self.inspect(updates, context=context, state=state).update

    def inspect(
        self, updates: PyTree, *, context: Context | None = None, state: State = None
    ) -> Aggregated:
        """Like a call, but returns ``Aggregated``: the update, the new memory and the Info."""
        updates = by_client(type(self).__name__, updates)
        leaves = jax.tree.leaves(updates)
        sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in leaves}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"{type(self).__name__}: updates must share a leading client axis of at least 1; "
                f"got leaves of shapes {[jnp.shape(leaf) for leaf in leaves]}"
            )
        kinds = {str(jnp.result_type(leaf)) for leaf in leaves}
        if not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
            raise ValueError(
                f"{type(self).__name__}: updates must be floating-point arrays; "
                f"got {', '.join(sorted(kinds))}"
            )
        (n,) = sizes
        self.check(n)
        context = Context.of(n) if context is None else context
        if context.weights.shape != (n,):
            raise ValueError(
                f"{type(self).__name__}: the context must be one of n = {n} clients, as the "
                f"updates are; its weights have shape {context.weights.shape}"
            )
        if context.present is not None and not self.accepts_absent:
            raise ValueError(f"{type(self).__name__} cannot leave out absent clients")
        for need in sorted(self.needs_root):
            fields = ROOT_FIELDS[need]
            if any(getattr(context, name) is None for name in fields):
                given = ", ".join(f"{name}=..." for name in fields)
                raise ValueError(
                    f"{type(self).__name__} needs the server's data: "
                    f"pass context=Context.of(n, {given})"
                )
        dim = sum(np.size(leaf) for leaf in leaves) // n
        reads = {"root_update": "update" in self.needs_root, "params": self.follows_model}
        for what in (name for name, read in reads.items() if read):
            given = getattr(context, what)
            if given is not None and getattr(given, "shape", None) != (dim,):
                found = getattr(given, "shape", type(given).__name__)
                raise ValueError(
                    f"{type(self).__name__}: {what} of the context must be one vector of d = {dim} "
                    f"numbers, as ravel_pytree makes of an update; got {found}"
                )
        return _inspect(self, updates, context, state)


@jax.jit
def _inspect(rule: Aggregator, updates: PyTree, context: Context, state: State) -> Aggregated:
    first = jax.tree.map(lambda leaf: leaf[0], updates)
    _, unravel = ravel_pytree(first)
    flat = jax.vmap(lambda row: ravel_pytree(row)[0])(updates)
    n, d = flat.shape
    if state is None:
        state = rule.init(Spec(population=n, cohort=n, dim=d, dtype=flat.dtype))
    result = rule.checked(flat, state, context)
    return result.replace(update=unravel(result.update))


class WeightingRule(Aggregator):
    """A rule whose answer is ``weights @ [updates; references]``. Abstract."""

    needs = capability(frozenset({"gram"}))
    """Statistics that ``weigh`` reads: any of "norms", "gram", "inner", "products"."""

    @capability
    def streams(self) -> bool:
        kind, base = type(self), WeightingRule
        own = kind.aggregate_mixed is base.aggregate_mixed and kind.aggregate is base.aggregate
        return own and self.needs <= STREAMED

    @capability
    def reads_once(self) -> bool:
        return self.streams and not self.needs

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "r d"] | None:
        """Extra rows, measured together with the updates: a root update, the previous aggregate."""
        return None

    def columns(self, dim: int, context: Context) -> Int[Array, " s"] | None:
        """Indices of the coordinates whose values the rule reads, in ``statistics.sample``."""
        return None

    def wants_gram(self, state: State, context: Context) -> Bool[Array, ""] | None:
        """Whether the Gram matrix is needed this round; if not it is all 0, and costs no pass.

        None: it is needed in every round.
        """
        return None

    @abc.abstractmethod
    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        """The weights of the m rows and r references, 0 wherever a row is not usable.

        Where the weights are those of the m rows only, the references get weight 0.
        """

    def noise(self, statistics: Statistics, context: Context) -> Float[Array, ""] | None:
        """Standard deviation of the Gaussian noise added to every coordinate; None: no noise."""
        return None

    def remember(
        self, state: State, output: Float[Array, " d"], statistics: Statistics, context: Context
    ) -> State:
        """The memory for the next round, given this round's output; by default unchanged."""
        return state

    def aggregate(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        return self.aggregate_mixed((), updates, state, context)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Measures the updates, weighs n numbers, and reads the matrix once more for the answer."""
        d = updates.shape[1]
        own = self.references(state, context, d)
        references = jnp.zeros((0, d), updates.dtype) if own is None else own.astype(updates.dtype)
        if not self.needs and not pre and own is None:
            return self._aggregate_once(updates, state, context)
        statistics, mixing = measure_mixed(
            pre,
            updates,
            references,
            context,
            self.needs,
            columns=self.columns(d, context),
            gram_wanted=self.wants_gram(state, context),
        )
        m = statistics.usable.shape[0]
        seen = context_of(m, context)
        weights, info = self.weigh(statistics, state, seen)
        own_weights = weights[m:]
        weights = weights[:m]
        if mixing is not None:
            weights = jnp.matmul(weights, mixing, precision="highest")
            info = to_clients(info, mixing)
        missing = references.shape[0] - own_weights.shape[0]
        weights = jnp.concatenate([weights, jnp.pad(own_weights, (0, missing))])
        assert statistics.clean is not None
        output = rows.combine(weights, updates, references, statistics.clean)
        scale = self.noise(statistics, seen)
        if scale is not None:
            drawn = normal(context.key, (d,), scale.dtype)
            output = (output + scale * drawn).astype(updates.dtype)
        state = self.remember(state, output, statistics, seen)
        return Aggregated(update=output, state=state, info=info)

    def _aggregate_once(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        """One read of the matrix, for a rule that only needs to know which rows are finite.

        First all rows are combined as if all were finite. Where the answer is finite, and small
        enough that no row's norm can have overflowed, they were, and it stands. Otherwise the
        rows are measured and those that are not finite are left out.
        """
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        everyone = Statistics(usable=present_mask(context, updates.shape[0]))
        weights, info = self.weigh(everyone, state, context)
        hopeful = rows.combine(weights, updates, none, True)
        least = jnp.min(jnp.where(weights > 0, weights, 1))
        room = jnp.sum(jnp.square(hopeful.astype(weights.dtype) / least))

        def careful() -> tuple[Array, Info]:
            statistics, _ = measure_mixed((), updates, none, context, frozenset())
            weights, info = self.weigh(statistics, state, context)
            return rows.combine(weights, updates, none), info

        output, info = jax.lax.cond(
            in_all_runs(jnp.isfinite(room)), lambda: (hopeful, info), careful
        )
        return Aggregated(update=output, state=state, info=info)


class CoordinatewiseRule(Aggregator):
    """A rule whose every output coordinate depends on its own column alone. Abstract."""

    @abc.abstractmethod
    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        """One number for each column of a block of columns.

        A NaN must count as +inf, as it does in ``numerics.order``. A mixed row that is not usable
        comes as a row of +inf.
        """

    def aggregate(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        return self.aggregate_mixed((), updates, state, context)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Reduces the columns block by block; rows are mixed as a block is read."""
        updates = rows.held(updates)
        dtype = rows.accumulator(updates.dtype)
        statistics = mixing = None
        if pre:
            none = jnp.zeros((0, updates.shape[1]), updates.dtype)
            statistics, mixing = measure_mixed(pre, updates, none, context, frozenset())
        diagonal = all(stage.diagonal for stage in pre)

        def seen(block: Array) -> Array:
            block = block.astype(dtype)
            if mixing is not None:
                assert statistics is not None
                block = mix_block(block, mixing, diagonal)
                block = jnp.where(statistics.usable[:, None], block, jnp.inf)
            return block

        def block_reduce(block: Array) -> Array:
            return self.reduce(seen(block), context)

        def known(block: Array) -> Array:
            return jnp.any(jnp.isfinite(seen(block)), axis=0)

        width = order.column_width(updates.shape[0] if mixing is None else mixing.shape[0])
        output = columns.map_columns(block_reduce, updates, width=width).astype(updates.dtype)
        # No number in a column is no news of it: the model stays, as where no row is usable.
        output = jax.lax.cond(
            in_all_runs(jnp.all(jnp.isfinite(output))),
            lambda: output,
            lambda: jnp.where(columns.map_columns(known, updates, width=width), output, 0),
        )
        info = Info()
        if mixing is not None and any(stage.selects for stage in pre):
            info = Info(selected=jnp.any(mixing != 0, axis=0))
        return Aggregated(update=output, state=state, info=info)


class TallyRule(CoordinatewiseRule):
    """A coordinatewise rule that is a function of the sum of what clients vote for. Abstract."""

    streams = capability(True)
    reads_once = capability(True)

    @abc.abstractmethod
    def vote(self, block: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """What each client says of each column; 0 where it has no number."""

    @abc.abstractmethod
    def answer(self, tally: Float[Array, " c"]) -> Float[Array, " c"]:
        """One number for each column, from the sum of the votes."""

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return self.answer(self._tally(block, jnp.ones((block.shape[0],), bool)))

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Sums the votes of rows that are streamed."""
        if pre or not isinstance(updates, Stream):
            return super().aggregate_mixed(pre, updates, state, context)
        tally = updates.sum(lambda block, index, inside: self._tally(block, inside))
        update = self.answer(tally).astype(updates.dtype)
        return Aggregated(update=update, state=state, info=Info())

    def _tally(self, block: Float[Array, "n c"], counted: Bool[Array, " n"]) -> Float[Array, " c"]:
        votes = self.vote(block.astype(rows.accumulator(block.dtype)))
        # A row of ones times the votes: XLA reduces a leading axis slowly on a CPU.
        ones = alongside(counted.astype(votes.dtype), votes)
        return jnp.matmul(ones, votes, precision="highest")


def needs_more_than(rule: Any, n: int, least: int, condition: str) -> None:
    """Raises the one error for too few updates: ``Krum needs n >= 2f + 3 clients; got ...``."""
    if n < least:
        raise ValueError(
            f"{type(rule).__name__} needs {condition} clients; got n = {n}, f = {rule.f}"
        )
