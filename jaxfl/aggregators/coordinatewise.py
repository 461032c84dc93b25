"""Rules that treat every coordinate by itself."""

import abc
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import Aggregator, needs_more_than
from jaxfl.aggregators.mixing import PreAggregator, context_of, measure_mixed, mix_block, taken
from jaxfl.component import capability, field
from jaxfl.numerics import columns, order, rows
from jaxfl.numerics.runs import alongside, in_all_runs
from jaxfl.numerics.stream import Stream
from jaxfl.types import Aggregated, Context, Info, State, present_count, present_mask


class CoordinatewiseRule(Aggregator):
    """A rule whose every output coordinate depends on its own column alone. Abstract.

    >>> isinstance(jaxfl.TrimmedMean(f=1), CoordinatewiseRule)
    True
    """

    @abc.abstractmethod
    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        """One number for each column of a block of columns.

        A NaN must count as +inf, as it does in ``numerics.order``. A mixed row that is not usable
        and the row of an absent client come as rows of +inf; ``present_count`` counts without
        the latter.
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

        there = context.present if statistics is None else statistics.usable
        handed_on = updates.shape[0] if mixing is None else mixing.shape[0]
        context_after = context_of(handed_on, context)

        def seen(block: Array) -> Array:
            block = block.astype(dtype)
            if mixing is not None:
                block = mix_block(block, mixing)
            return block if there is None else jnp.where(there[:, None], block, jnp.inf)

        def block_reduce(block: Array) -> Array:
            return self.reduce(seen(block), context_after)

        def known(block: Array) -> Array:
            return jnp.any(jnp.isfinite(seen(block)), axis=0)

        width = order.column_width(handed_on)
        output = columns.map_columns(block_reduce, updates, width=width).astype(updates.dtype)
        # No number in a column is no news of it: the model stays, as where no row is usable.
        output = jax.lax.cond(
            in_all_runs(jnp.all(jnp.isfinite(output))),
            lambda: output,
            lambda: jnp.where(columns.map_columns(known, updates, width=width), output, 0),
        )
        info = Info()
        if mixing is not None and any(stage.selects for stage in pre):
            info = Info(selected=taken(mixing))
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
        present = present_mask(context, updates.shape[0])
        tally = updates.sum(lambda block, i, inside: self._tally(block, inside & present[i]))
        update = self.answer(tally).astype(updates.dtype)
        return Aggregated(update=update, state=state, info=Info())

    def _tally(self, block: Float[Array, "n c"], counted: Bool[Array, " n"]) -> Float[Array, " c"]:
        votes = self.vote(block.astype(rows.accumulator(block.dtype)))
        # A row of ones times the votes: XLA reduces a leading axis slowly on a CPU.
        ones = alongside(counted.astype(votes.dtype), votes)
        return jnp.matmul(ones, votes, precision="highest")


class Median(CoordinatewiseRule):
    """The coordinatewise median (the mean of the two middle values where n is even).

    With ``lower`` the smaller of the two, as the code of SignGuard and of Shejwalkar and
    Houmansadr (NDSS 2021) has it.

    Needs an honest majority. Cost: one read of the matrix and O(log^2 n) comparisons an element.
    Fails under heterogeneity and ALIE: its error grows with the spread of the honest updates.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Median()(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    lower: bool = False
    """Of two middle values the lower one, as PyTorch has it, not their mean."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.median(block, present_count(context, block.shape[0]), lower=self.lower)


class _Trimming(CoordinatewiseRule):
    """Leaves out f values of each column, or f on either side. Abstract."""

    f: int = field(at_least=0)
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def split(self, n: order.Whole) -> tuple[order.Whole, order.Whole]:
        """Values to trim (f, but of n < 2f + 1 less) and n less these."""
        f = self.f if isinstance(n, int) else jnp.clip((n - 1) // 2, 0, self.f)
        return f, n - f


class TrimmedMean(_Trimming):
    """Per coordinate, the mean after dropping the f smallest and the f largest values.

    Needs n > 2f; f = 0 is the mean. Cost: as the median. Fails under ALIE and heterogeneity.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> TrimmedMean(f=1)(updates).round(2)
    Array([2.2, 1.8], dtype=float32)
    """

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        return order.mean_of_ranks(block, *self.split(present_count(context, block.shape[0])))


class MeaMed(_Trimming):
    """Per coordinate, the mean of the n - f values nearest the median; ties to the first client.

    Needs n > 2f; f = 0 is the mean. Cost: as the median, and one more selection. Fails under
    ALIE; under mild heterogeneity its error is below the median's.
    Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> MeaMed(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        n = present_count(context, block.shape[0])
        return order.mean_of_nearest(block, *order.middle(n), self.split(n)[1])


class Phocas(_Trimming):
    """Per coordinate, the mean of the n - f values nearest the f-trimmed mean.

    Needs n > 2f; f = 0 is the mean; ties go to the first client. Cost: as MeaMed. Fails: as
    MeaMed.
    Xie, Koyejo and Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent",
    2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Phocas(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    differentiable = capability(False)

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        f, kept = self.split(present_count(context, block.shape[0]))
        return order.mean_of_nearest(block, f, kept, kept)


class SignMajority(TallyRule):
    """Per coordinate, the sign that most clients vote for: -1, 1, or 0 where they tie.

    A zero votes for neither, and so does what is not finite: a NaN has no sign, and a client
    whose gradient overflowed would otherwise vote once for each coordinate.

    Needs an honest majority. Cost: one read of the matrix. The answer knows nothing of
    magnitudes, so the step length is the learning rate's alone; the gradient of the rule is 0.
    Fails where the honest clients disagree in sign: f votes then decide.
    Bernstein et al., "signSGD with majority vote is communication efficient and fault tolerant",
    ICLR 2019.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> SignMajority()(updates).round(2)
    Array([1., 1.], dtype=float32)
    """

    accepts_absent = capability(True)
    unanimous = capability(False)

    def vote(self, block: Float[Array, "n c"]) -> Float[Array, "n c"]:
        return jnp.where(jnp.isfinite(block), jnp.sign(block), 0)

    def answer(self, tally: Float[Array, " c"]) -> Float[Array, " c"]:
        return jnp.sign(tally)
