"""LASA: in every layer, clients whose sparse update has an ordinary norm and ordinary signs."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import order, rows
from jaxfl.types import Aggregated, Context, Info, Segment, Segments, State, present_mask


class LASA(Aggregator):
    """Sparsifies updates, then averages in each parameter those that deviate little.

    1. Updates are clipped to the median norm. 2. Of the values in kernels and embeddings the share
    ``sparsity`` of smallest magnitude is set to 0, biases and scales stay. 3. In each parameter l a
    client has the norm a of what is left and its purity q, the sum of its signs over their number.
    4. It passes where both ``|a - median a| / std a < norm_limit`` and the same of q
    ``< sign_limit``; where nobody does, all pass. 5. The answer in l is the mean over those who
    pass, of what is left (``average_sparse``, as the authors' code has it) or of the clipped
    updates. ``info`` is as that of ``PerLayer``.

    Needs an honest majority, and the model's layers. Cost: a selection in each row and three reads
    of the matrix. Fails: attacks of ordinary norm with balanced signs; with limits of 1 about a
    third of the honest clients is dropped by each criterion, and one extreme row hides milder ones,
    as a standard deviation is not robust.
    Xu, Zhang, Hu, "Achieving Byzantine-resilient federated learning via layer-adaptive sparsified
    model aggregation", WACV 2025.

    >>> updates = {"kernel": jnp.array([1.0, 1, 1, 1, -1])[:, None, None] * jnp.ones((5, 2, 2))}
    >>> LASA(sparsity=0.0).inspect(updates).info.selected.tolist()
    [True, True, True, True, False]
    """

    name = "lasa"
    sparsity: float = field(default=0.3, at_least=0, below=1)
    """Share of the values in kernels and embeddings, the smallest, that is set to 0."""
    norm_limit: Scalar = field(default=1.0, above=0)
    """Standard deviations by which a norm may differ from the median norm."""
    sign_limit: Scalar = field(default=1.0, above=0)
    """The same of the purity of signs."""
    average_sparse: bool = True
    """Whether sparse updates are averaged, or the clipped ones."""
    needs_segments = capability(True)
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    unanimous = capability(False)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        self.check_segments(context.segments)
        squares = rows.squared_norms(updates)
        usable = jnp.isfinite(squares) & present_mask(context, updates.shape[0])
        norms = rows.safe_sqrt(jnp.where(usable, squares, 0))
        most = rows.masked_median(norms, usable)
        shrink = rows.clip_factors(norms, most)
        least = self._thresholds(updates, usable, context.segments)
        outputs, each = [], []
        for segment in context.segments:
            part = updates[:, segment.offset : segment.end].astype(squares.dtype)
            part = jnp.where(usable[:, None], part, 0)
            sparse = jnp.where(jnp.abs(part) > least[:, None], part, 0) if _thins(segment) else part
            passed = self._passed(sparse, shrink, usable)
            weights = shrink * passed / jnp.maximum(jnp.sum(passed), 1)
            taken = sparse if self.average_sparse else part
            outputs.append(jnp.matmul(weights, taken, precision="highest"))
            each.append(passed)
        shares = np.array([s.end - s.offset for s in context.segments]) / updates.shape[1]
        passed = jnp.stack(each)
        counts = jnp.maximum(jnp.sum(passed, axis=1, keepdims=True), 1)
        weights = jnp.matmul(jnp.asarray(shares, norms.dtype), passed / counts, precision="highest")
        info = Info(selected=jnp.any(passed, axis=0), weights=weights)
        output = jnp.concatenate(outputs).astype(updates.dtype)
        return Aggregated(update=output, state=state, info=info)

    def _thresholds(
        self, updates: Float[Array, "n d"], usable: Bool[Array, " n"], segments: Segments
    ) -> Float[Array, " n"]:
        """The magnitude that values of each row must exceed to stay; -1 where all do."""
        thinned = [np.arange(s.offset, s.end) for s in segments if _thins(s)]
        count = sum(map(len, thinned))
        kept = math.floor((1 - Fraction(str(self.sparsity))) * count)
        if self.sparsity == 0 or not count:
            return jnp.full(usable.shape, -1, rows.accumulator(updates.dtype))
        if not kept:
            return jnp.full(usable.shape, jnp.inf, rows.accumulator(updates.dtype))
        mask = np.zeros(updates.shape[1], bool)
        mask[np.concatenate(thinned)] = True

        def one(pair: tuple[Array, Array]) -> Array:
            row, exists = pair
            sizes = jnp.abs(jnp.where(exists, row, 0).astype(rows.accumulator(row.dtype)))
            return order.of_rank_of_many(jnp.where(jnp.asarray(mask), sizes, jnp.inf), count - kept)

        return jax.lax.map(one, (updates, usable))

    def _passed(
        self, sparse: Float[Array, "n c"], shrink: Float[Array, " n"], usable: Bool[Array, " n"]
    ) -> Bool[Array, " n"]:
        norms = shrink * rows.safe_sqrt(rows.squared_norms(sparse))
        signs = jnp.sign(sparse)
        purity = rows.safe_ratio(jnp.sum(signs, axis=1), jnp.sum(jnp.abs(signs), axis=1))
        ordinary = _deviation(norms, usable) < jnp.asarray(self.norm_limit, norms.dtype)
        ordinary &= _deviation(purity, usable) < jnp.asarray(self.sign_limit, norms.dtype)
        ordinary &= usable
        return jnp.where(jnp.any(ordinary), ordinary, usable)


def _thins(segment: Segment) -> bool:
    """Whether it is a tensor of weights, whose small values are left out."""
    return len(segment.shape) >= 2


def _deviation(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, " n"]:
    """From the median, in standard deviations of the population; 0 where all are equal."""
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, values, 0)) / count
    variance = jnp.sum(jnp.where(mask, jnp.square(values - mean), 0)) / count
    away = jnp.abs(values - rows.masked_median(values, mask))
    return rows.safe_ratio(away, rows.safe_sqrt(variance))
