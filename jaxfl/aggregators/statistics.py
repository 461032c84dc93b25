"""What rules may know of the updates: statistics that are sums over coordinates.

They are measured in a pass or two over the matrix, and follow the rows through linear mixing
without the mixed rows being formed: norms and inner products from ``M G M^T``, products with
reference rows and sampled columns from ``M P``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.numerics import rows
from jaxfl.numerics.gram import centred_gram, squared_distances
from jaxfl.numerics.runs import in_all_runs
from jaxfl.types import Context, Struct, present_mask


class Statistics(Struct):
    """What a weighting rule or pre-aggregator may know of m rows and r reference rows.

    A field is None where nothing needs it.
    """

    usable: Bool[Array, " m"]
    """Rows that are present, finite and of finite norm; the others must get weight 0."""
    clean: Bool[Array, ""] | None = None
    """Whether every one of the original updates is finite and of finite norm."""
    norms: Float[Array, " m"] | None = None
    """Norm of each row, +inf where not usable."""
    gram: Float[Array, "k k"] | None = None
    """Inner products of the m + r rows about a common centre; 0 with a row not usable."""
    inner: Float[Array, "k k"] | None = None
    """Inner products of the m + r rows about the origin; 0 with a row not usable."""
    products: Float[Array, "m r"] | None = None
    """Inner products of rows and references about the origin, 0 where not usable."""
    reference_norms: Float[Array, " r"] | None = None
    """Norm of each reference row; known together with ``products``."""
    sample: Float[Array, "m s"] | None = None
    """The columns that the rule asked for, 0 where not usable."""

    def squared_distances(self) -> Float[Array, "k k"]:
        """Between all m + r rows; +inf to and from a row that is not usable."""
        assert self.gram is not None
        references = self.gram.shape[0] - self.usable.shape[0]
        return squared_distances(self.gram, self.usable_rows(references))

    def cosines(self) -> Float[Array, "k k"]:
        """Between all m + r rows, from -1 to 1; 0 with a row that is zero or not usable."""
        assert self.inner is not None
        norms = rows.safe_sqrt(jnp.maximum(jnp.diagonal(self.inner), 0))
        unit = rows.safe_ratio(jnp.ones_like(norms), norms)
        # One factor after the other: the product of two tiny norms underflows.
        return jnp.clip(self.inner * unit[:, None] * unit[None, :], -1, 1)

    def reference_cosines(self) -> Float[Array, "m r"]:
        """Between rows and references; 0 with one that is zero or not usable."""
        assert self.norms is not None
        assert self.products is not None
        assert self.reference_norms is not None
        norms = jnp.where(self.usable, self.norms, 0)
        shares = rows.safe_ratio(self.products, norms[:, None])
        return jnp.clip(rows.safe_ratio(shares, self.reference_norms[None, :]), -1, 1)

    def usable_rows(self, references: int) -> Bool[Array, " k"]:
        """``usable`` extended by the reference rows, which always are."""
        return jnp.concatenate([self.usable, jnp.ones((references,), bool)])


def measure(
    updates: rows.Rows,
    references: Float[Array, "r d"],
    context: Context,
    needs: frozenset[str],
    columns: Int[Array, " s"] | None,
    gram_wanted: Bool[Array, ""] | None,
    centred: bool,
) -> Statistics:
    """Reads the matrix: norms and finiteness of its rows, and what else is needed.

    ``columns`` are the coordinates to sample. ``gram_wanted``, where given, decides at run time
    whether the Gram matrix is computed; it is all 0 if not. ``centred``: inner products are taken
    about the row of median norm, which f < n/2 attackers cannot move far; otherwise about 0.
    """
    compared = references if "products" in needs else references[:0]
    # First of all: one pass over rows that are streamed then answers this and the norms.
    products, taken = rows.look(updates, compared, columns)
    squares = rows.squared_norms(updates)
    usable = jnp.isfinite(squares) & present_mask(context, updates.shape[0])
    norms = jnp.where(usable, rows.safe_sqrt(squares), jnp.inf)
    gram = reference_norms = sample = None
    if "gram" in needs:
        pilot = rows.median_row(norms, usable) if centred else None

        def read() -> Array:
            return centred_gram(rows.held(updates), references, usable, pilot)

        if gram_wanted is None:
            gram = read()
        else:
            shape = jax.eval_shape(read)
            none = jnp.zeros(shape.shape, shape.dtype)
            gram = jax.lax.cond(in_all_runs(~gram_wanted), lambda: none, read)
    if "products" in needs:
        products = jnp.where(usable[:, None], products, 0)
        reference_norms = rows.safe_sqrt(rows.squared_norms(references))
    if taken is not None:
        sample = jnp.where(usable[:, None], taken.astype(norms.dtype), 0)
    return Statistics(
        usable=usable,
        clean=jnp.all(jnp.isfinite(squares)),
        norms=norms,
        gram=gram,
        products=products if "products" in needs else None,
        reference_norms=reference_norms,
        sample=sample,
    )


class Space:
    """What rows are measured as, and what their combination is: vectors, unless overridden."""

    def measure(
        self,
        updates: rows.Rows,
        references: Float[Array, "r d"],
        context: Context,
        needs: frozenset[str],
        columns: Int[Array, " s"] | None,
        gram_wanted: Bool[Array, ""] | None,
        centred: bool,
    ) -> Statistics:
        """As the function ``measure``."""
        return measure(updates, references, context, needs, columns, gram_wanted, centred)

    def combine(
        self,
        weights: Float[Array, " k"],
        updates: rows.Rows,
        references: Float[Array, "r d"],
        clean: Bool[Array, ""] | bool,
    ) -> Float[Array, " d"]:
        """The update that is the weighted sum; a row of weight 0 counts as 0 even if it is NaN."""
        return rows.combine(weights, updates, references, clean)


FLAT = Space()


def mix(
    statistics: Statistics,
    mixing: rows.Mixing,
    *,
    origin: bool,
) -> Statistics:
    """The statistics of the rows ``mixing @ rows``; references stay as they are.

    Args:
      statistics: of the rows before.
      mixing: a matrix, of which a row of zeros marks the mixed row as not usable; or a factor for
        each row, after which those that were usable still are.
      origin: whether the last reference is the origin. A Gram matrix about a centre can be mixed
        only by rows that sum to 1: what a row of the matrix lacks becomes the weight of the
        origin, which adds nothing. The norm of a mixed row is its distance to the origin.
    """
    factors = mixing.ndim == 1
    usable = statistics.usable if factors else jnp.any(mixing != 0, axis=1)
    norms = gram = None
    if statistics.gram is not None:
        matrix = jnp.diag(mixing) if factors else mixing
        gram = _mixed_gram(statistics.gram, matrix, usable, origin)
    if factors:
        assert statistics.norms is not None
        scaled = jnp.abs(mixing) * jnp.where(usable, statistics.norms, 0)
        norms = jnp.where(usable, scaled, jnp.inf)
    elif origin:
        assert gram is not None
        everything = jnp.ones((gram.shape[0],), bool)
        distances = squared_distances(gram, everything)[: mixing.shape[0], -1]
        norms = jnp.where(usable, rows.safe_sqrt(distances), jnp.inf)

    def mixed(numbers: Array | None) -> Array | None:
        return None if numbers is None else rows.mix_rows(mixing, numbers)

    return statistics.replace(
        usable=usable,
        norms=norms,
        gram=gram,
        products=mixed(statistics.products),
        sample=mixed(statistics.sample),
    )


def _mixed_gram(
    gram: Float[Array, "k k"],
    matrix: Float[Array, "m_out m"],
    usable: Bool[Array, " m_out"],
    origin: bool,
) -> Float[Array, "l l"]:
    m_out, m = matrix.shape
    r = gram.shape[0] - m
    lacking = jnp.zeros((m_out, r), matrix.dtype)
    if origin:
        lacking = lacking.at[:, -1].set(jnp.where(usable, 1 - jnp.sum(matrix, axis=1), 0))
    whole = jnp.block(
        [[matrix, lacking], [jnp.zeros((r, m), matrix.dtype), jnp.eye(r, dtype=matrix.dtype)]]
    )
    return jnp.linalg.multi_dot([whole, gram, whole.T], precision="highest")


def about_origin(statistics: Statistics) -> Statistics:
    """Adds ``inner``, the inner products about the origin, from a Gram matrix that includes it.

    The origin, which must be the last reference, is then removed.
    """
    gram = statistics.gram
    assert gram is not None
    last = gram[-1]
    keep = statistics.usable_rows(gram.shape[0] - statistics.usable.shape[0])
    inner = gram - last[:, None] - last[None, :] + last[-1]
    inner = jnp.where(keep[:, None] & keep[None, :], inner, 0)
    return statistics.replace(gram=gram[:-1, :-1], inner=inner[:-1, :-1])
