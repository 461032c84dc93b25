"""Sequential centred clipping: buckets move the reference one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.types import Aggregated, Context, Info, Spec, State


class SequentialCenteredClipping(Aggregator):
    """Centred clipping whose reference moves after each bucket of ``size`` clients.

    Bucket after bucket ``v <- v + mean_{i in bucket} clip(g_i - v)``, where clip shortens to
    ``tau``; v is the previous answer, zero at the start. With ``average_first`` it is
    ``v + clip(mean_i g_i - v)``; with ``clip_twice`` updates are clipped around the v of the
    round's start before. In the first round buckets are random. Later clients are sorted by their
    cosine with v and cut into ``size`` strata, and each bucket gets one client, at random, of each
    stratum. ``tau`` is in the units of the updates. With one bucket it is one step of centred
    clipping.

    Needs a small f / n. Cost: three reads of the matrix. A round moves v by at most tau times the
    number of buckets, ceil(n / size). Fails: a bucket with a Byzantine majority near the end has
    the last word.
    Özfatura, Özfatura, Küpçü, Gündüz, "Byzantines can also learn from history: fall of centered
    clipping in federated learning", IEEE TIFS 2024.

    >>> updates = jnp.array([[3.0], [1.0], [2.0]])
    >>> SequentialCenteredClipping(tau=1.0, size=1)(updates)
    Array([1.], dtype=float32)
    """

    tau: Scalar = field(default=1.0, above=0)
    """Clipping radius, in the units of the updates."""
    size: int = field(default=3, at_least=1)
    """Clients in a bucket."""
    average_first: bool = False
    """Whether buckets are averaged before they are clipped."""
    clip_twice: bool = False
    """Whether updates are also clipped around the round's first reference."""
    public_memory = capability(True)
    permutation_equivariant = capability(False)
    unanimous = capability(False)
    in_units = capability(("tau",))

    @classmethod
    def example(cls, f: int = 2) -> "SequentialCenteredClipping":
        return cls(tau=3.0)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        squares = rows.squared_norms(updates)
        usable = jnp.isfinite(squares)
        v = state.astype(squares.dtype)
        length = rows.safe_sqrt(rows.squared_norms(v))
        norms = rows.safe_sqrt(jnp.where(usable, squares, 0))
        along = jnp.where(
            usable, rows.products(updates, state[None].astype(updates.dtype))[:, 0], 0
        )
        cosines = rows.safe_ratio(rows.safe_ratio(along, norms), length)
        buckets = buckets_of(cosines, length == 0, self.size, context.key)
        tau = jnp.asarray(self.tau, squares.dtype)

        def step(at: Array, members: Array) -> tuple[Array, None]:
            exists = (members >= 0) & usable[members]
            own = jnp.where(exists[:, None], updates[members].astype(v.dtype), 0)
            if self.clip_twice:
                own = v[None] + _clipped(own - v[None], tau)
            count = jnp.maximum(jnp.sum(exists), 1)
            away = jnp.where(exists[:, None], own - at[None], 0)
            if self.average_first:
                move = _clipped(jnp.sum(away, axis=0, keepdims=True) / count, tau)[0]
            else:
                move = jnp.sum(_clipped(away, tau), axis=0) / count
            return at + move, None

        output = jax.lax.scan(step, v, buckets)[0].astype(updates.dtype)
        return Aggregated(update=output, state=output.astype(state.dtype), info=Info())


def _clipped(moves: Float[Array, "c d"], tau: Float[Array, ""]) -> Float[Array, "c d"]:
    norms = rows.safe_sqrt(rows.squared_norms(moves))
    return moves * rows.clip_factors(norms, tau)[:, None]


def buckets_of(
    cosines: Float[Array, " n"], first: Bool[Array, ""], size: int, key: Key[Array, ""]
) -> Int[Array, "buckets size_"]:
    """The rows of each bucket, one after the other; -1 where a bucket has fewer.

    Args:
      cosines: of each row with the reference.
      first: whether the buckets are floor(n / size) random ones, of nearly equal sizes.
      size: rows in a bucket later, one of each stratum of cosines.
      key: decides what is random.
    """
    n = cosines.shape[0]
    most = -(-n // size)
    draws = jax.random.uniform(key, (n,), jnp.float32)
    # Where a stratum starts in the sorted rows; the first of them are one longer.
    stratum, place = _cut(n, size)
    by_cosine = jnp.argsort(cosines, stable=True)
    mixed = by_cosine[jnp.argsort(stratum + draws)]
    later = jnp.full((most, size), -1, jnp.int32).at[place, stratum].set(mixed.astype(jnp.int32))
    parts, in_turn = max(n // size, 1), jnp.argsort(draws).astype(jnp.int32)
    bucket, turn = _cut(n, parts)
    wide = -(-n // parts)
    start = jnp.full((most, wide), -1, jnp.int32).at[bucket, turn].set(in_turn)
    later = jnp.pad(later, ((0, 0), (0, wide - size)), constant_values=-1) if wide > size else later
    start = jnp.pad(start, ((0, 0), (0, size - wide)), constant_values=-1) if size > wide else start
    return jnp.where(first, start, later)


def _cut(n: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Of n things cut into parts of nearly equal size: the part of each, and its place there."""
    cut = np.array_split(np.arange(n), parts)
    part = np.concatenate([np.full(len(own), i) for i, own in enumerate(cut)])
    return part, np.concatenate([np.arange(len(own)) for own in cut])
