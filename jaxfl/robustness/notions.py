"""How robust a rule is, measured: four notions, from drawn honest sets and from all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxfl.aggregators import Aggregator
from jaxfl.arguments import integer
from jaxfl.attacks import Attack, Defence
from jaxfl.attacks.base import attack_rows
from jaxfl.robustness.law import Numbers
from jaxfl.types import Context, Spec, Struct

TINY = 1e-12
"""Of the squares of the rows: a smaller variance tells nothing."""


class Damages(Struct):
    """What each attack did to a rule on each of R honest sets.

    The adaptive notion is ``ratio_of_means(damages.worst, damages.spread)``, the tail notion
    ``quantile`` or ``tail`` of ``damages.worst / damages.spread``.

    >>> found = jaxfl.robustness.Damages(jnp.array([[1.0, 3.0]]), spread=jnp.ones(1))
    >>> found.worst.tolist()
    [3.0]
    """

    each: Float[Array, "r attacks"]
    """``|F - mean_S|^2`` under each attack; infinite where the answer is not finite."""
    spread: Float[Array, " r"]
    """``Var_S``, the mean squared distance of the honest rows from their mean."""

    @property
    def worst(self) -> Float[Array, " r"]:
        """The largest over the attacks."""
        return jnp.max(self.each, axis=1)


def damages(
    rule: Aggregator,
    attacks: tuple[Attack, ...],
    sets: Numbers,
    gradients: Numbers,
    key: Key[Array, ""],
    *,
    batch: int | None = None,
    most: int | None = None,
) -> Damages:
    """Attacks a rule on many honest sets, in one program: one round, attackers know S.

    Rules that are given the same sets, gradients and key meet the same attack noise: their
    differences are paired. An attack that draws is a lower bound of what attackers can do, and so
    is the largest over any list of them.

    Args:
      rule: without a memory that matters in a first round.
      attacks: on messages.
      sets: honest sets [r, n]; all others attack.
      gradients: of all clients if they were honest, [r, n, d].
      key: of the attacks.
      batch: how many sets are computed at once; None: all.
      most: attackers a set can have, the bound of its law: calls with the same one are one
        program. None: as many as these sets have.

    Raises:
      ValueError: shapes that do not fit, a set with more attackers than ``most``, an attack on
        data, or a rule that needs the server's data.

    >>> sets, x = jnp.array([[True, True, False]]), jnp.array([[[1.0], [3.0], [2.0]]])
    >>> damages(jaxfl.Mean(), (jaxfl.NoAttack(),), sets, x, jax.random.key(0)).spread
    Array([1.], dtype=float32)
    """
    if np.shape(sets) != np.shape(gradients)[:2] or np.ndim(gradients) != 3:
        raise ValueError(
            f"damages needs sets [r, n] and gradients [r, n, d]; got shapes {np.shape(sets)} and "
            f"{np.shape(gradients)}"
        )
    for attack in attacks:
        if attack.poisons or attack.follows_model or attack.needs_root:
            raise ValueError(f"damages needs attacks on messages; got {type(attack).__name__}")
    if rule.needs_root or rule.follows_model:
        raise ValueError(f"damages needs rules of updates alone; got {type(rule).__name__}")
    rule.check(np.shape(sets)[1])
    met = int((~np.asarray(sets)).sum(axis=1).max())
    if most is not None and met > integer(most, "damages: most", 0):
        raise ValueError(f"damages: most = {most}, and a set has {met} attackers")
    sizes = met if most is None else most, min(batch or len(sets), len(sets))
    return _damages(rule, attacks, jnp.asarray(sets), jnp.asarray(gradients), key, *sizes)


@functools.partial(jax.jit, static_argnames=("most", "batch"))
def _damages(
    rule: Aggregator,
    attacks: tuple[Attack, ...],
    sets: Bool[Array, "r n"],
    gradients: Float[Array, "r n d"],
    key: Array,
    most: int,
    batch: int,
) -> Damages:
    _, n, d = gradients.shape
    spec = Spec(population=n, cohort=n, dim=d, max_byzantine=most, dtype=gradients.dtype)

    def one(honest: Array, x: Array, key: Array) -> tuple[Array, Array]:
        context = Context.of(n, byzantine=~honest, key=key)
        memory = rule.init(spec)
        defence = Defence(aggregator=rule, state=memory, context=context, start=memory)
        mean, spread = mean_and_variance(x, honest)

        def under(attack: Attack, key: Array) -> Array:
            start = attack.init(spec)
            sent, _ = attack_rows(attack, x, ~honest, start, context, key, defence, most)
            away = rule.checked(sent, memory, context).update - mean
            squared = jnp.sum(jnp.square(away))
            return jnp.where(jnp.isfinite(squared), squared, jnp.inf)

        keys = jax.random.split(key, len(attacks))
        return jnp.stack([under(a, k) for a, k in zip(attacks, keys, strict=True)]), spread

    keys = jax.random.split(key, len(sets))
    each, spread = jax.lax.map(lambda of: one(*of), (sets, gradients, keys), batch_size=batch)
    return Damages(each=each, spread=spread)


def mean_and_variance(
    x: Float[Array, "n d"], honest: Bool[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """The mean of the honest rows, and their mean squared distance from it.

    >>> mean, variance = mean_and_variance(jnp.array([[1.0], [3.0]]), jnp.array([True, True]))
    >>> float(mean[0]), float(variance)
    (2.0, 1.0)
    """
    shares = honest.astype(x.dtype) / jnp.sum(honest)
    mean = jnp.matmul(shares, x, precision="highest")
    squares = jnp.sum(jnp.square(x - mean[None]), axis=1)
    return mean, jnp.dot(shares, squares, precision="highest")


def errors_and_variances(
    rule: Aggregator, x: Float[Array, "n d"], sets: Bool[Array, "k n"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """``|F(x) - mean_S|^2`` and ``Var_S`` of each set, for rows that are what they are; traceable.

    >>> x, sets = jnp.array([[0.0], [0.0], [3.0]]), jnp.array([[True, True, False]])
    >>> [float(v[0]) for v in errors_and_variances(jaxfl.Mean(), x, sets)]
    [1.0, 0.0]
    """
    n, d = x.shape
    state = rule.init(Spec(population=n, cohort=n, dim=d, dtype=x.dtype))
    output = rule.aggregate(x, state, Context.of(n)).update
    means, variances = jax.vmap(mean_and_variance, (None, 0))(x, sets)
    return jnp.sum(jnp.square(output[None] - means), axis=1), variances


def ratios(
    rule: Aggregator, x: Float[Array, "n d"], sets: Bool[Array, "k n"]
) -> Float[Array, " k"]:
    """The notion per set: ``|F(x) - mean_S|^2 / Var_S``; 0 where Var_S is too small to tell.

    >>> x, sets = jnp.array([[0.0], [2.0], [4.0]]), jnp.array([[True, True, False]])
    >>> ratios(jaxfl.Mean(), x, sets)
    Array([1.], dtype=float32)
    """
    errors, variances = errors_and_variances(rule, x, sets)
    tiny = TINY * jnp.max(jnp.sum(jnp.square(x), axis=1))
    return jnp.where(variances > tiny, errors / jnp.maximum(variances, tiny), 0)


def oblivious_ratio(
    rule: Aggregator,
    x: Float[Array, "n d"],
    sets: Bool[Array, "k n"],
    masses: Float[Array, " k"],
) -> Float[Array, ""]:
    """The oblivious notion at these rows: ``E_S |F(x) - mean_S|^2 / E_S Var_S``; traceable.

    >>> sets = ~jnp.eye(3, dtype=bool)
    >>> oblivious_ratio(jaxfl.Mean(), jnp.array([[0.0], [1.0], [2.0]]), sets, jnp.full(3, 1 / 3))
    Array(0.33333334, dtype=float32)
    """
    errors, variances = errors_and_variances(rule, x, sets)
    masses = masses.astype(x.dtype)
    return jnp.dot(masses, errors, precision="highest") / jnp.dot(
        masses, variances, precision="highest"
    )
