"""What an aggregation rule is, and how rules run behind pre-aggregators.

There are two kinds with more to offer. A *weighting rule* (``weighting``) answers with a
combination of rows and works in n-space; a *coordinatewise rule* (``coordinatewise``) treats every
column by itself. Pre-aggregators multiply the rows by a small matrix from the left; they compose
with both kinds without forming the mixed rows in memory. Any other rule is handed the mixed rows.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxfl.aggregators.mixing import (
    C,
    PreAggregator,
    by_client,
    context_of,
    measure_mixed,
    mix_block,
    to_clients,
    with_f,
)
from jaxfl.component import Component, capability
from jaxfl.contracts import expect, expect_like, name_of, own_code
from jaxfl.numerics import columns, rows
from jaxfl.types import Aggregated, Context, PyTree, Segments, Spec, State, segments_of

ROOT_FIELDS = {"update": ("root_update",), "batch": ("root_batch", "params", "objective")}
"""Where a context holds what comes from the server's own samples."""


class Aggregator(Component):
    """A rule that turns n updates into one. Abstract.

    ``rule(updates)`` is the notebook's way in; ``rule.aggregate`` is the simulator's.

    >>> jaxfl.Median().inspect(jnp.array([[1.0], [2.0], [9.0]])).update
    Array([2.], dtype=float32)
    """

    tolerates = capability(True)
    """Stays bounded by the honest rows when f finite rows are arbitrary."""
    accepts_absent = capability(False)
    """Can leave out slots that hold no client (Poisson sampling)."""
    by_client = capability(False)
    """Needs to know which client a row belongs to: rows must not be grouped before it."""
    needs_everybody = capability(False)
    """Compares sums over all rounds: every client must take part in each."""
    averages = capability(False)
    """Its answer is the plain mean of the updates, all of which count alike: with updates of
    norm up to c, one of n moves it by c / n, on which central privacy rests."""
    by_samples = capability(False)
    """Weighs clients by their numbers of samples."""
    public_memory = capability(False)
    """Its memory follows from the models that the server sent: no secret of any client."""
    needs_root = capability(frozenset[str]())
    """What it reads that comes from the server's own samples: any of "update", "batch"."""
    follows_model = capability(False)
    """Reads the model's parameters: an update must be a vector of their size."""
    needs_segments = capability(False)
    """Looks at the model's layers: it must be known which coordinates are which parameters."""
    makes_inputs = capability(False)
    """Evaluates the model on inputs of its own making: it must be known, and what an input is."""
    permutation_equivariant = capability(True)
    """The order of the clients, with all that the server knows of each, changes no answer."""
    scale_equivariant = capability(False)
    """``A(c G) = c A(G)`` for every c > 0, whatever the rule remembers."""
    translation_equivariant = capability(False)
    """``A(G + v) = A(G) + v`` where the vector v is added to every update."""
    unanimous = capability(True)
    """Equal updates, in the first round, give that update (up to the rule's own noise)."""
    differentiable = capability(False)
    """Its gradient in the updates is finite, even where updates coincide, and not 0 everywhere."""
    in_units = capability(tuple[str, ...]())
    """Fields in the units of the updates: with these and the updates scaled by c, so is the
    answer."""
    streams = capability(False)
    """Needs no more of the updates than passes over their rows, which are then never all held. The
    first pass must not be inside a branch or a loop."""
    reads_once = capability(False)
    """Of a stream, takes one pass where all rows are finite."""

    @capability
    def unit_free(self) -> bool:
        """Whether all answers of a run scale by c where all its updates do.

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

    def check_segments(self, segments: Segments) -> None:
        """Raises ValueError where the rule needs layers that are not known or not there."""
        if self.needs_segments and not segments:
            raise ValueError(
                f"{type(self).__name__} needs the model's layers, which a bare matrix does not "
                "tell: pass updates as a dict of layers, {'kernel': [n, ...], 'bias': [n, ...]}, "
                "or context=Context.of(n, segments=...)"
            )

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
        if self.makes_inputs and None in (context.objective, context.params, context.sample):
            raise ValueError(
                f"{type(self).__name__} evaluates the model: pass "
                "context=Context.of(n, objective=..., params=..., sample=..., segments=...)"
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
        context = context.replace(segments=_segments(self, updates, context, dim))
        return _inspect(self, updates, context, state)


def _segments(rule: Aggregator, updates: PyTree, context: Context, dim: int) -> Segments:
    """The layers of updates, for a rule that looks at them: of the context, or of the pytree."""
    if not rule.needs_segments:
        return ()
    segments = context.segments
    if not segments and not hasattr(updates, "ndim"):
        segments = segments_of(jax.tree.map(lambda leaf: leaf[0], updates))
    rule.check_segments(segments)
    if segments and segments[-1].end != dim:
        raise ValueError(
            f"{type(rule).__name__}: segments of the context must cover d = {dim} numbers; "
            f"they cover {segments[-1].end}"
        )
    return segments


@jax.jit
def _inspect(rule: Aggregator, updates: PyTree, context: Context, state: State) -> Aggregated:
    first = jax.tree.map(lambda leaf: leaf[0], updates)
    _, unravel = ravel_pytree(first)
    flat = jax.vmap(lambda row: ravel_pytree(row)[0])(updates)
    n, d = flat.shape
    if state is None:
        spec = Spec(population=n, cohort=n, dim=d, dtype=flat.dtype, segments=context.segments)
        state = rule.init(spec)
    result = rule.checked(flat, state, context)
    return result.replace(update=unravel(result.update))


def needs_more_than(rule: Any, n: int, least: int, condition: str) -> None:
    """Raises the one error for too few updates: ``Krum needs n >= 2f + 3 clients; got ...``."""
    if n < least:
        raise ValueError(
            f"{type(rule).__name__} needs {condition} clients; got n = {n}, f = {rule.f}"
        )
