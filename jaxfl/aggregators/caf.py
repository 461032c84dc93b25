"""Covariance-bound-agnostic filtering."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics.eigen import top_eigenpair
from jaxfl.numerics.gram import tame_gram, weighted_gram
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State, present_count

MOST_STEPS = 1000
"""Of the filter that divides by the largest of all projections, which nothing else ends."""


def filter_weights(
    gram: Float[Array, "n n"],
    usable: Bool[Array, " n"],
    least: Int[Array, ""] | int,
    steps: int,
    over: str = "weighted",
) -> Float[Array, " n"]:
    """Weights c of the rows, not normalised, whose covariance had the smallest top eigenvalue.

    From c = 1, while the weights sum to more than ``least``: the top eigenvector v of the
    weighted covariance; ``c_i <- c_i (1 - t_i / max t)``, ``t_i = <x_i - mean, v>^2``.

    Args:
      gram: inner products about any centre.
      usable: rows that may have weight.
      least: what the weights sum to at the end, at most.
      steps: most steps.
      over: the rows of which the largest t is taken: ``weighted``, those that still have weight,
        so that each step leaves one more without; or ``all``.
    """
    gram, usable = tame_gram(gram, usable)
    ones = usable.astype(gram.dtype)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        step, c, *_, done = carry
        return (step < steps) & (jnp.sum(c) > least) & ~done

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        step, c, best, smallest, start, _ = carry
        root = jnp.sqrt(c)
        centred = weighted_gram(gram, c)
        covariance = root[:, None] * centred * root[None, :] / jnp.sum(c)
        value, vector = top_eigenpair(covariance, start)
        better = value < smallest
        best, smallest = jnp.where(better, c, best), jnp.where(better, value, smallest)
        projections = jnp.matmul(centred, root * vector, precision="highest")
        projections = jnp.abs(jnp.where((c > 0) if over == "weighted" else usable, projections, 0))
        farthest = jnp.max(projections)
        kept = 1 - jnp.square(safe_ratio(projections, farthest))
        # Equal rows differ by rounding; one left with so little would be the farthest again.
        c = jnp.where(kept > len(c) * jnp.finfo(c.dtype).eps, c * kept, 0)
        return step + 1, c, best, smallest, vector, farthest == 0

    infinite = jnp.array(jnp.inf, gram.dtype)
    start = jnp.zeros((), jnp.int32), ones, ones, infinite, ones, jnp.array(False)
    return jax.lax.while_loop(unfinished, step, start)[2]


class CAF(WeightingRule):
    """Filters along the top eigenvector of the covariance; keeps the least spread mean met.

    Starting from weights c = 1: the weighted mean and covariance of the updates, its top
    eigenpair, then ``c_i <- c_i (1 - t_i / max t)`` with t_i the squared projection on the
    eigenvector of update i less the mean, the largest among rows that still have weight, while c
    sums to more than n - 2f. The answer is the mean whose covariance had the smallest top
    eigenvalue. The eigenvectors are exact, found in n-space. The gradient takes the weights as
    constants.

    ``over``: ``"all"`` takes the largest t among all rows, as ByzFL's documentation writes it. A
    row that is out then holds the weights of the others up: one update at a distance of D makes
    about D^2 steps, of which at most 1,000 are taken, and a second attacker nearer than the first
    keeps its weight. After many steps the answer depends on rounding.

    Needs n > 2f; f = 0 is the mean. Cost: three reads of the matrix, n^2 d multiply-adds, and up
    to 2f eigenvectors of an n x n matrix (``"all"``: up to 1,000). Fails: one heterogeneous client
    that dominates the covariance is removed though honest.
    Allouah, Guerraoui, Stephan, "Towards trustworthy federated learning with untrusted
    participants", ICML 2025.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> CAF(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    f: int = field(at_least=0)
    over: str = field(default="weighted", choices=("weighted", "all"))
    """The rows of which the largest t is taken: those that still have weight, or all."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        m = statistics.usable.shape[0]
        gram = jax.lax.stop_gradient(statistics.gram)
        least = present_count(context, m) - 2 * self.f
        steps = 2 * self.f if self.over == "weighted" else MOST_STEPS
        c = filter_weights(gram, statistics.usable, least, steps, self.over)
        weights = safe_ratio(c, jnp.sum(c))
        return weights, Info(selected=weights > 0, weights=weights)
