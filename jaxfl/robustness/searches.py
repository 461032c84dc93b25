"""Searches for rows that make a rule's ratio large: lower bounds of kappa."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jaxfl.aggregators.base import Aggregator
from jaxfl.robustness.notions import TINY, oblivious_ratio, ratios


@functools.partial(jax.jit, static_argnames=("shape", "starts", "steps"))
def search_kappa(
    rule: Aggregator,
    sets: Bool[Array, "k n"],
    key: Key[Array, ""],
    *,
    shape: tuple[int, int],
    starts: int,
    steps: int,
) -> tuple[Float[Array, ""], Float[Array, "n d"]]:
    """The largest ratio found over rows and sets, by random steps: a lower bound of kappa.

    Many random starts, each climbing by steps of random rows and lengths, all sets at once.

    Args:
      rule: the rule.
      sets: the honest sets to look at.
      key: of the search.
      shape: of the rows, (n, d).
      starts: how many.
      steps: of each.

    Returns:
      The ratio, and rows where it is attained.

    >>> sets = ~jnp.eye(4, dtype=bool)
    >>> search = dict(shape=(4, 1), starts=8, steps=100)
    >>> bool(search_kappa(jaxfl.Median(), sets, jax.random.key(0), **search)[0] > 0.5)
    True
    """
    return _search(rule, sets, sets, key, shape, starts, steps)


@functools.partial(jax.jit, static_argnames=("shape", "starts", "steps"))
def search_kappas(
    rule: Aggregator,
    sets: Bool[Array, "k n"],
    key: Key[Array, ""],
    *,
    shape: tuple[int, int],
    starts: int,
    steps: int,
) -> Float[Array, " k"]:
    """The largest ratio found for each set by itself, ``kappa_S``: a search of its own for each.

    Give all sets that can occur: rows of which another set could be the honest one are where some
    starts begin, and where no rule can do well (``set_floors``).

    Its mean by the sets' probabilities is the amortised value, its largest the worst. Lower
    bounds, as of ``search_kappa``, which asks for the worst set only and costs 1 / k of this.

    >>> sets = jnp.array([[True, True, True], [True, True, False]])
    >>> search = dict(shape=(3, 1), starts=4, steps=50)
    >>> found = search_kappas(jaxfl.Median(), sets, jax.random.key(0), **search)
    >>> bool(found[0] < found[1])
    True
    """

    def of(honest: Array, key: Array) -> Array:
        return _search(rule, honest[None], sets, key, shape, starts, steps)[0]

    return jax.vmap(of)(sets, jax.random.split(key, sets.shape[0]))


def _search(
    rule: Aggregator,
    sets: Bool[Array, "k n"],
    others: Bool[Array, "m n"],
    key: Key[Array, ""],
    shape: tuple[int, int],
    starts: int,
    steps: int,
) -> tuple[Float[Array, ""], Float[Array, "n d"]]:
    """The largest ratio of the sets, from rows at random and such that others could be honest."""
    n, d = shape

    def climb(key: Array) -> tuple[Array, Array]:
        first, which, size, key = jax.random.split(key, 4)
        x = jax.random.normal(first, (n, d))
        # Half of the starts have two clusters: a set that may be honest, and all others.
        other = jnp.where(jax.random.choice(which, others)[:, None], 0.0, 1.0)
        spread = 10.0 ** jax.random.uniform(size, minval=-3, maxval=0)
        x = jnp.where(jax.random.bernoulli(key), spread * x + other, x)

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
            x, best = carry
            which, how, far = jax.random.split(key, 3)
            scale = 10.0 ** jax.random.uniform(far, minval=-3, maxval=0.5)
            moved = jax.random.bernoulli(which, 0.3, (n, 1)) * scale
            trial = x + moved * jax.random.normal(how, x.shape)
            ratio = jnp.max(ratios(rule, trial, sets))
            better = ratio > best
            return (jnp.where(better, trial, x), jnp.where(better, ratio, best)), None

        start = x, jnp.max(ratios(rule, x, sets))
        return jax.lax.scan(step, start, jax.random.split(key, steps))[0]

    rows, best = jax.vmap(climb)(jax.random.split(key, starts))
    return jnp.max(best), rows[jnp.argmax(best)]


@functools.partial(jax.jit, static_argnames="steps")
def climb_kappa(
    rule: Aggregator,
    sets: Bool[Array, "k n"],
    x: Float[Array, "n d"],
    *,
    steps: int = 200,
    masses: Float[Array, " k"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "n d"]]:
    """The largest ratio on the way up its gradient through the rule, from the rows x.

    Without ``masses`` the worst set's ratio is climbed, with them the oblivious ratio. Steps are
    Adam's on the logarithm, in units of the rows' own size.

    Returns:
      The largest ratio met, and the rows where it was.

    >>> x, sets = jnp.array([[0.0], [1.0], [2.0], [4.0]]), ~jnp.eye(4, dtype=bool)
    >>> bool(climb_kappa(jaxfl.Median(), sets, x)[0] >= ratios(jaxfl.Median(), x, sets).max())
    True
    """
    optimizer = optax.adam(0.02)

    def ratio(x: Array) -> Array:
        if masses is None:
            return jnp.max(ratios(rule, x, sets))
        return oblivious_ratio(rule, x, sets, masses)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        x, memory, best, place = carry
        value, slope = jax.value_and_grad(lambda x: jnp.log(jnp.maximum(ratio(x), TINY)))(x)
        better = jnp.exp(value) > best
        best, place = jnp.where(better, jnp.exp(value), best), jnp.where(better, x, place)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        moved, memory = optimizer.update(-slope, memory)
        return (x + moved, memory, best, place), None  # pyright: ignore[reportOperatorIssue]

    unit = x / jnp.maximum(jnp.max(jnp.abs(x)), jnp.finfo(x.dtype).tiny)
    start = unit, optimizer.init(unit), ratio(unit), unit
    (_, _, best, place), _ = jax.lax.scan(step, start, None, length=steps)
    return best, place
