"""Attacks made for one defence each: for TNBS, for SignGuard, for FLTrust."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators import CGE, NBS, TNBS, FLTrust, SignGuard, SignGuardDist, SignGuardSim
from jaxfl.attacks.informed import FULL, InformedAttack, mean_and_std, mean_of_known
from jaxfl.attacks.statistical import direction_of
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import columns, rows
from jaxfl.types import State


class TNBSStealth(InformedAttack):
    """Rows that point away from the mean and have norms that a screening by norms keeps.

    Their norm is the ``quantile`` of the known norms. If the attackers know that the defence drops
    the ``high`` largest norms, it is just below the smallest of those instead. Norms of different
    attackers differ by at most 0.1 %, to avoid ties. ``direction="unit"`` is minus the mean: of
    all rows of that norm, it pulls a mean of the rows kept back most. ``"std"`` is minus the
    standard deviation of each coordinate.

    Against the two-sided norm-based screening of this library's ``TNBS``; ours.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> [f"{x:.2f}" for x in TNBSStealth()(updates, byzantine)[4]]
    ['-2.16', '-1.08']
    """

    quantile: Scalar = field(default=0.5, at_least=0, at_most=1)
    """Of the known norms, for the norm of what is sent."""
    high: int | None = field(default=None, at_least=0)
    """How many of the largest norms the defence drops, if that is known."""
    direction: str = field(default="unit", choices=("unit", "std"))
    """Minus the mean, or minus the deviation of each coordinate."""
    made_for = capability((TNBS, NBS, CGE))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        known = self.known(view)
        mean, std = mean_and_std(view.updates, known)
        away = direction_of(self.direction, mean, std)
        away = rows.safe_ratio(away, jnp.linalg.norm(away))
        norms = rows.safe_sqrt(rows.squared_norms(view.updates))
        # ``high`` is out of all honest rows; of the known ones it is a proportional number.
        share = jnp.sum(known) / jnp.maximum(jnp.sum(view.honest), 1)
        length = _length(norms, known, self.quantile, self.high, share).astype(mean.dtype)
        place = jnp.arange(view.attackers.shape[0], dtype=mean.dtype)
        shorter = 1 - 1e-3 * place / jnp.maximum(view.count, 1)
        return (length * shorter)[:, None] * away[None], state


def _length(
    norms: Float[Array, " n"],
    known: Bool[Array, " n"],
    quantile: Scalar,
    high: int | None,
    share: Float[Array, ""],
) -> Float[Array, ""]:
    ordered = jnp.sort(jnp.where(known, norms, jnp.inf))
    count = jnp.sum(known)
    if high is None:
        place = jnp.asarray(quantile) * jnp.maximum(count - 1, 0)
        below = jnp.floor(place).astype(jnp.int32)
        share = place - below
        above = jnp.minimum(below + 1, jnp.maximum(count - 1, 0))
        length = (1 - share) * ordered[below] + share * ordered[above]
    else:
        # With this many larger norms among the honest, no attacker is dropped.
        above = jnp.ceil(max(high, 1) * share - 1e-4).astype(count.dtype)
        place = jnp.clip(count - above, 0, len(norms) - 1)
        length = ordered[place] * (1 - 1e-3)
    return jnp.where(count > 0, length, 0)


class SignGuardAware(InformedAttack):
    """A harmful row with the sign statistics and the norm of an honest one.

    It has as many positive, zero and negative coordinates as the known updates have on average,
    and ``scale`` times their median norm. Its magnitudes are those of the mean. Of the signs that
    these counts allow it takes the most harmful: negative where the mean is largest, positive
    where it is smallest.

    Against ``SignGuard``, which looks at signs and norms alone; ours. Cost: a sort of d numbers.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> [f"{x:.2f}" for x in SignGuardAware()(updates, byzantine)[4]]
    ['0.00', '2.41']
    """

    name = "signguard_aware"

    scale: Scalar = field(default=1.0, at_least=0)
    """Norm of what is sent, in units of the known updates' median norm."""
    made_for = capability((SignGuard, SignGuardSim, SignGuardDist))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        mean, d = mean_of_known(view.updates, known), view.updates.shape[1]

        def counts(block: Array) -> Array:
            return jnp.stack([jnp.sum(block > 0, axis=1), jnp.sum(block < 0, axis=1)])

        signs = columns.sum_columns(counts, view.updates, width=rows.WIDTH)
        shares = known / jnp.maximum(jnp.sum(known), 1)
        # Averaged in floats, as sums of counts could overflow; a whole number stays one.
        average = jnp.matmul(signs.astype(shares.dtype), shares, precision="highest")
        positive, negative = jnp.floor(average * (1 + 1e-6)).astype(jnp.int32)
        order = jnp.argsort(mean)
        rank = jnp.zeros((d,), order.dtype).at[order].set(jnp.arange(d, dtype=order.dtype))
        sign = jnp.where(rank >= d - negative, -1, jnp.where(rank < positive, 1, 0))
        # Where the mean is 0, a small magnitude carries the sign.
        size = jnp.maximum(jnp.abs(mean), 1e-6 * jnp.max(jnp.abs(mean)))
        norms = rows.safe_sqrt(rows.squared_norms(view.updates))
        length = jnp.asarray(self.scale, mean.dtype) * rows.masked_median(norms, known)
        crafted = sign * size
        return (length * rows.safe_ratio(crafted, jnp.linalg.norm(crafted)))[None], state


class FLTrustAdaptive(InformedAttack):
    """What moves FLTrust's answer farthest against the signs of the honest aggregate.

    All attackers send one direction e, which FLTrust weighs by ``c = cos(e, g_0)``; g_0 is the
    server's update and s the signs of the honest aggregate. Of all directions with the same c,
    the most harmful one lies in the plane of g_0 and s, on the side away from s. That leaves c
    alone to choose: the best of ``angles`` values is taken. Attackers gain nothing by sending
    different directions, as the objective ``-s . (sum_i t_i e_i) / sum_i t_i``, with trusts t_i,
    is a ratio of two sums with one term for each. The paper climbs to the same optimum by finite
    differences. With partial knowledge the mean of the attackers' own updates stands for g_0, too.

    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust federated learning via trust bootstrapping",
    NDSS 2021.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> context = jaxfl.Context.of(5, root_update=jnp.array([2.0, 1.0]))
    >>> given = {"defence": jaxfl.FLTrust(), "context": context}
    >>> [f"{x:.1f}" for x in FLTrustAdaptive()(updates, byzantine, **given)[4]]
    ['1.9', '-1.2']
    """

    name = "fltrust_adaptive"

    angles: int = field(default=1000, at_least=2)
    """How many cosines to the server's update are tried."""
    made_for = capability((FLTrust,))

    @capability
    def needs_root(self) -> bool:
        return self.knowledge == FULL

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        root = view.defence.context.root_update
        if not self.needs_root:
            root = mean_of_known(view.updates, known)
        if root is None:
            raise ValueError(
                "FLTrustAdaptive works against a defence with an update of the server's own, "
                "such as FLTrust"
            )
        dtype = rows.accumulator(view.updates.dtype)
        root = jnp.where(jnp.isfinite(rows.squared_norms(root)), root, 0).astype(dtype)
        length = jnp.linalg.norm(root)
        trusted = rows.safe_ratio(root, length)
        norms = jnp.where(known, rows.safe_sqrt(rows.squared_norms(view.updates)), 0)
        share = rows.safe_ratio(rows.products(view.updates, trusted[None])[:, 0], norms)
        share = jnp.where(known, jnp.maximum(share, 0), 0)
        # The attackers take the honest clients that they do not know to be like those they do.
        share = share * jnp.sum(view.honest) / jnp.maximum(jnp.sum(known), 1)
        honest = rows.weighted_sum(rows.safe_ratio(share, norms), view.updates, trusted[None][:0])
        total, m = jnp.sum(share), view.count

        sign = jnp.sign(honest)
        along = jnp.dot(sign, trusted, precision="highest")
        across = sign - along * trusted
        width = jnp.linalg.norm(across)
        cosines = jnp.linspace(0, 1, self.angles + 1, dtype=dtype)[1:]
        gain = cosines * along - jnp.sqrt(1 - jnp.square(cosines)) * width
        answer = jnp.dot(sign, honest, precision="highest") + m * cosines * gain
        best = cosines[jnp.argmin(answer / (total + m * cosines))]
        e = best * trusted - jnp.sqrt(1 - jnp.square(best)) * rows.safe_ratio(across, width)
        return (length * e)[None], state
