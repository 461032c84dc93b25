"""Pre-aggregators in a row: their product, and the statistics of the rows that come out."""

import abc
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators import statistics as measured
from jaxfl.aggregators.statistics import FLAT, Space, Statistics
from jaxfl.component import Component, capability
from jaxfl.contracts import expect, name_of, own_code
from jaxfl.numerics.rows import Mixing, Rows, mix_rows
from jaxfl.types import Context, Info, PyTree

C = TypeVar("C", bound=Component)
STREAMED = frozenset({"norms", "products"})
"""Statistics of rows one by one, which a pass over rows that are never held can give."""


def with_f(cls: type[C], f: int) -> C:
    """A component with its default fields, and this f where it has one."""
    return cls(**({"f": f} if "f" in cls._hints else {}))


class PreAggregator(Component):
    """Replaces the m rows by ``matrix @ rows`` before a rule sees them. Abstract.

    >>> jaxfl.Clipping(tau=2.0)(jnp.array([[1.0], [9.0]]))
    Array([[1.],
           [2.]], dtype=float32)
    """

    accepts_absent = capability(False)
    needs = capability(frozenset({"gram"}))
    affine = capability(True)
    """Every row of the matrix (but those of unusable rows, all 0) sums to 1."""
    by_client = capability(False)
    """Needs to know which client a row belongs to: rows must not be grouped before it."""
    diagonal = capability(False)
    """Rows are only rescaled: ``mix`` gives a factor for each."""

    @capability
    def streams(self) -> bool:
        """Whether rows that are computed anew whenever they are read will do."""
        return self.diagonal and self.needs <= STREAMED

    selects = capability(False)
    """Hands on only some of the rows, or means of only some."""
    permutation_equivariant = capability(True)
    """The order of the rows changes nothing but the order of those handed on."""
    scale_equivariant = capability(False)
    """The matrix is the same for ``c G`` and every c > 0."""
    translation_equivariant = capability(False)
    """The matrix is the same where one vector is added to every row, which it hands on."""
    unanimous = capability(True)
    """Equal rows are handed on as they are."""
    in_units = capability(tuple[str, ...]())
    """Fields in the units of the rows."""

    @classmethod
    def example(cls: type[C], f: int = 2) -> C:
        """A pre-aggregator with settings that suit updates of unit scale from a dozen clients."""
        return with_f(cls, f)

    def check(self, n: int) -> None:
        """Raises ValueError where the mixing is not defined for n rows."""

    def rows(self, n: int) -> int:
        """How many rows are handed on."""
        return n

    def __call__(self, updates: PyTree, *, context: Context | None = None) -> Float[Array, "m d"]:
        """The mixed rows of a matrix ``[n, d]`` or of a list of n vectors, for a notebook.

        A row that is not usable is NaN. In a ``Pipeline`` these rows are never formed.

        Raises:
          ValueError: the updates are no such matrix of floats, or too few.

        >>> jaxfl.Bucketing(size=1)(jnp.array([[1.0, 2], [3, 4]])).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
        """
        name = type(self).__name__
        matrix = by_client(name, updates)
        shape = getattr(matrix, "shape", type(matrix).__name__)
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] < 1:
            raise ValueError(
                f"{name}: updates must be a matrix [n, d], a row per client; got {shape}"
            )
        if not jnp.issubdtype(matrix.dtype, jnp.floating):
            raise ValueError(f"{name}: updates must be floating-point; got {matrix.dtype}")
        n = shape[0]
        self.check(n)
        return _mixed(self, jnp.asarray(matrix), Context.of(n) if context is None else context)

    @abc.abstractmethod
    def mix(self, statistics: Statistics, context: Context) -> Mixing:
        """The matrix, of which a row of zeros marks the mixed row as not usable.

        Where the class is ``diagonal``, the factors on its diagonal alone.
        """

    def checked(self, statistics: Statistics, context: Context) -> Mixing:
        """``mix``, whose answer is looked at as it is traced.

        Raises:
          ValueError: a class of one's own answers something else than it should.
        """
        m = statistics.usable.shape[0]
        with own_code(self, ".mix"):
            mixing = self.mix(statistics, context)
        shape = (m,) if self.diagonal else (self.rows(m), m)
        wanted = "a factor per row" if self.diagonal else "a row per row handed on"
        expect(f"{name_of(self)}.mix returned", mixing, shape, wanted)
        return mixing


def measure_mixed(
    pre: Sequence[PreAggregator],
    updates: Rows,
    references: Float[Array, "r d"],
    context: Context,
    needs: frozenset[str],
    columns: Int[Array, " s"] | None = None,
    gram_wanted: Bool[Array, ""] | None = None,
    space: Space = FLAT,
) -> tuple[Statistics, Mixing | None]:
    """The statistics of the rows that come out of the pre-aggregators, without forming those rows.

    The updates are measured once. Each stage then turns the statistics of its n rows into those of
    the m rows it hands on, which takes products of small matrices only.

    Args:
      pre: the pre-aggregators, first to last.
      updates: the matrix.
      references: rows that a rule compares with.
      context: what the server knows.
      needs: statistics that the rule after them reads.
      columns: coordinates to sample for it.
      gram_wanted: whether the rule wants its Gram matrix; stages that need one always get it.
      space: what the rows are measured as.

    Returns:
      Statistics of the mixed rows, and what mixes them: a matrix, a factor for each row where
      they are only rescaled, None where there is no stage.
    """
    readers = [*(stage.needs for stage in pre), needs]
    everything = frozenset[str]().union(*readers)
    origin = "inner" in needs
    for i, stage in enumerate(pre):
        later = frozenset[str]().union(*readers[i + 1 :])
        # The norm of a mixed row is its distance to the origin, and a stage whose matrix has rows
        # that do not sum to 1 mixes the origin in: both need it among the references.
        origin |= "norms" in later and not stage.diagonal
        origin |= bool({"gram", "inner"} & later) and not stage.affine
    if origin:
        zero = jnp.zeros((1, updates.shape[1]), updates.dtype)
        references = jnp.concatenate([references, zero])
        everything |= {"gram"}
    if any("gram" in reads for reads in readers[:-1]):
        gram_wanted = None

    # Rounding spoils distances unless the centre is near the rows, and the cosines of short rows
    # unless it is the origin.
    centred = any("gram" in reads for reads in readers)
    mixing = None
    with jax.named_scope("pre-aggregation" if pre else "aggregation"):
        now = space.measure(updates, references, context, everything, columns, gram_wanted, centred)
        for stage in pre:
            m = now.usable.shape[0]
            next_mixing = stage.checked(now, context_of(m, context))
            now = measured.mix(now, next_mixing, origin=origin)
            mixing = next_mixing if mixing is None else compose(next_mixing, mixing)
    return (measured.about_origin(now) if origin else now), mixing


@jax.jit
def _mixed(stage: PreAggregator, updates: Array, context: Context) -> Array:
    none = jnp.zeros((0, updates.shape[1]), updates.dtype)
    statistics, mixing = measure_mixed((stage,), updates, none, context, frozenset())
    assert mixing is not None
    mixed = mix_block(updates.astype(mixing.dtype), mixing)
    return jnp.where(statistics.usable[:, None], mixed, jnp.nan).astype(updates.dtype)


def by_client(name: str, updates: PyTree) -> PyTree:
    """Updates that lead by the client axis: a list of clients' vectors stacked, or one error.

    A plain list is what other libraries take the clients as, and would be a pytree of n layers.
    """
    if type(updates) in (list, tuple):
        shapes = {np.shape(row) if hasattr(row, "shape") else type(row).__name__ for row in updates}
        lengths = [shape for shape in shapes if isinstance(shape, tuple) and len(shape) == 1]
        if len(shapes) != 1 or len(lengths) != 1:
            got = ", ".join(sorted(map(str, shapes))) or "nothing"
            raise ValueError(
                f"{name}: a list of updates must be of vectors of one length, one per client, "
                f"and a pytree of layers a dict; got a list of {got}"
            )
        return jnp.stack([jnp.asarray(row) for row in updates])
    if getattr(updates, "ndim", 2) == 1:
        raise ValueError(
            f"{name}: updates must be a matrix [n, d], a row per client; got one vector of shape "
            f"{np.shape(updates)}"
        )
    return updates


@jax.named_scope("pre-aggregation")
def mix_block(block: Float[Array, "n c"], mixing: Mixing) -> Float[Array, "m c"]:
    """``mixing @ block``; a row that nothing is taken of may be NaN, and does not spread."""
    block = jnp.where(taken(mixing)[:, None], block, 0)
    return mix_rows(mixing.astype(block.dtype), block)


def compose(
    later: Float[Array, "l m"] | Float[Array, " m"],
    earlier: Float[Array, "m n"] | Float[Array, " n"],
) -> Float[Array, "l n"] | Float[Array, " n"]:
    """What mixes as ``earlier`` does and then ``later``: factors where both are."""
    if earlier.ndim == 2:
        return mix_rows(later, earlier)
    return later * (earlier if later.ndim == 1 else earlier[None])


def weights_before(weights: Float[Array, " m"], mixing: Mixing) -> Float[Array, " n"]:
    """Of the rows that were mixed, from the weights of the rows that came out."""
    if mixing.ndim == 1:
        return weights * mixing
    return jnp.matmul(weights, mixing, precision="highest")


def taken(mixing: Mixing) -> Bool[Array, " n"]:
    """The rows of which anything is handed on."""
    return mixing != 0 if mixing.ndim == 1 else jnp.any(mixing != 0, axis=0)


def context_of(m: int, context: Context) -> Context:
    """The context for a rule that sees m mixed rows instead of n clients.

    Where m = n each row is still a client's. Otherwise a row is a group: all weigh the same, and
    which client is which is not known.
    """
    if context.weights.shape[0] == m:
        return context
    return context.replace(
        weights=jnp.full((m,), 1 / m, context.weights.dtype),
        client_ids=jnp.arange(m, dtype=context.client_ids.dtype),
        present=None,
        byzantine=None,
    )


def to_clients(info: Info, mixing: Mixing) -> Info:
    """Carries ``info`` about mixed rows back to the clients that the rows were mixed from.

    A client's weight is the sum over mixed rows of the row's weight times the client's share in
    it. Scores belong to mixed rows and are left out.
    """
    if info.weights is not None:
        mass = weights_before(info.weights, mixing)
        return Info(selected=mass > 0, weights=mass)
    if info.selected is not None:
        kept = jnp.where(info.selected.reshape(-1, *[1] * (mixing.ndim - 1)), mixing, 0)
        return Info(selected=taken(kept))
    return Info()
