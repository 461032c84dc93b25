"""FedSECA: signs elected by clients that agree with others, and magnitudes that agree with them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import columns, order, rows
from jaxfl.types import Aggregated, Context, Info, State, present_mask

SIGN_WIDTH = 2048
"""Columns in a block whose signs are compared."""


class FedSECA(Aggregator):
    """Elects a sign for each coordinate; averages what agrees with it of clipped, sparse updates.

    1. ``w_kl``, the mean over coordinates of ``sign(g_kj) sign(g_lj)``, says how much k and l
    agree, and ``rho_k = max(0, mean_l sign(w_kl))`` how reliable k is. 2. The elected sign is
    ``e_j = sign(sum_k rho_k sign(g_kj))``. 3. Each update is clipped to the median norm, each of
    its values to the median magnitude mu_j of its coordinate, and only values above the
    ``sparsity`` quantile of the update's own magnitudes are kept. 4. The answer is the mean of
    the values kept with the elected sign, 0 where there are none. ``info.scores`` holds rho.

    Needs an honest majority. Cost: n^2 d multiply-adds and a selection in each row and column.
    No answer is beyond mu_j. Fails: lies that agree with most signs and flip a few important ones;
    the answer is biased, as most of each update is left out.
    Benjamin, Asokan, Yaqub, Nandakumar, "FedSECA: sign election and coordinate-wise aggregation of
    gradients for Byzantine tolerant federated learning", CVPR Workshops 2025.

    >>> updates = jnp.array([[1.0, 2.0], [1.0, 1.0], [-1.0, 1.0]])
    >>> [f"{x:.4f}" for x in FedSECA(sparsity=0.0)(updates)]
    ['0.8162', '1.0000']
    """

    name = "fedseca"
    sparsity: Scalar = field(default=0.9, at_least=0, at_most=1)
    """Share of each update, its smallest values, that is left out."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    unanimous = capability(False)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        n = updates.shape[0]
        squares = rows.squared_norms(updates)
        usable = jnp.isfinite(squares) & present_mask(context, n)
        norms = rows.safe_sqrt(jnp.where(usable, squares, 0))
        most = rows.masked_median(norms, usable)
        shrink = rows.clip_factors(norms, most)
        votes = _votes(updates, usable)
        least = jnp.where(self.sparsity == 0, -1, _quantiles(updates, usable, self.sparsity))

        def elect(block: Array) -> Array:
            block = jnp.where(usable[:, None], block.astype(squares.dtype), 0)
            signs = jnp.sign(block).astype(jnp.int32)
            elected = jnp.sign(jnp.sum(votes[:, None] * signs, axis=0)).astype(block.dtype)
            clipped = shrink[:, None] * jnp.abs(block)
            size = jnp.minimum(clipped, order.median_where(clipped, usable)[None])
            kept = (jnp.abs(block) > least[:, None]) & (size > 0)
            agree = kept & (jnp.sign(block) * elected[None] > 0)
            total = jnp.sum(jnp.where(agree, size, 0), axis=0)
            return elected * total / jnp.maximum(jnp.sum(agree, axis=0), 1)

        width = order.column_width(n)
        output = columns.map_columns(elect, updates, width=min(width, rows.WIDTH))
        count = jnp.maximum(jnp.sum(usable), 1).astype(squares.dtype)
        info = Info(scores=votes.astype(squares.dtype) / count)
        return Aggregated(update=output.astype(updates.dtype), state=state, info=info)


def _votes(updates: Float[Array, "n d"], usable: Bool[Array, " n"]) -> Int[Array, " n"]:
    """By how many more clients each one agrees with than not; at least 0.

    Whole, as rho is not: where the signs of a coordinate balance, rounding must not elect one.
    """

    def agreement(block: Array) -> Array:
        signs = jnp.where(usable[:, None], jnp.sign(block), 0).astype(jnp.float32)
        return jnp.matmul(signs, signs.T, precision="highest")

    # Whole numbers, which float32 adds exactly up to 2^24 coordinates.
    agree = jnp.sign(columns.sum_columns(agreement, updates, width=SIGN_WIDTH))
    return jnp.maximum(jnp.sum(agree.astype(jnp.int32), axis=1), 0)


def _quantiles(
    updates: Float[Array, "n d"], usable: Bool[Array, " n"], share: Scalar
) -> Float[Array, " n"]:
    """Of each row's magnitudes, interpolated between two of them; 0 of one not usable."""
    dtype = rows.accumulator(updates.dtype)
    place = jnp.asarray(share, dtype) * (updates.shape[1] - 1)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, updates.shape[1] - 1)

    def one(pair: tuple[Array, Array]) -> Array:
        row, exists = pair
        sizes = jnp.where(exists, jnp.abs(row.astype(dtype)), 0)
        below, above = (order.of_rank_of_many(sizes, k) for k in (low, high))
        return below + (place - low) * (above - below)

    return jax.lax.map(one, (updates, usable))
