"""The local model poisoning attacks on trimmed means and medians, and on Krum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators import (
    Bulyan,
    Krum,
    MeaMed,
    Median,
    MultiKrum,
    Phocas,
    TrimmedMean,
    WeightedTrimmedMean,
)
from jaxfl.attacks.informed import FULL, InformedAttack, mean_and_std, mean_of_known
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import columns, rows
from jaxfl.numerics.gram import centred_gram, squared_distances
from jaxfl.types import State

HALVINGS = 40
"""Factors that FangKrum tries, each half of the one before: down to 1e-12 of the first."""


class FangTrim(InformedAttack):
    """Per coordinate, values just beyond all honest ones, on the side where the mean should not go.

    s are the signs of the mean of all updates before the attack. Where s > 0, values are drawn
    uniformly below the least honest value, down to ``reach`` times it (if it is positive, down
    to it divided by ``reach``); where s < 0, likewise above the largest; where s = 0, they are 0.
    Each attacker draws its own. With partial knowledge s comes from the attackers' own updates,
    and values lie 3 to 4 standard deviations of these from their mean.

    Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning",
    USENIX Security 2020 (there reach is b = 2).

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> crafted = FangTrim()(updates, byzantine)[4]
    >>> bool(crafted[0] < updates[:4, 0].min())
    True
    """

    reach: Scalar = field(default=2.0, above=1)
    """How far beyond the honest values, as a factor."""
    made_for = capability((Median, TrimmedMean, MeaMed, Phocas, WeightedTrimmedMean))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        dtype = rows.accumulator(view.updates.dtype)
        if self.knowledge == FULL:
            sign = jnp.sign(mean_of_known(view.updates, view.honest | view.own))
            reach = jnp.asarray(self.reach, dtype)
            least, most = extremes(view.updates, view.honest).astype(dtype)
            below = jnp.where(least > 0, least / reach, least * reach)
            above = jnp.where(most > 0, most * reach, most / reach)
            low, high = jnp.where(sign > 0, below, most), jnp.where(sign > 0, least, above)
            anyone = jnp.any(view.honest)
        else:
            mean, std = mean_and_std(view.updates, view.own)
            sign = jnp.sign(mean)
            side = mean - 3.5 * sign * std
            low, high, anyone = side - std / 2, side + std / 2, jnp.any(view.own)
        shape = (view.attackers.shape[0], view.updates.shape[1])
        share = jax.random.uniform(view.key, shape, dtype)
        drawn = low[None] + share * (high - low)[None]
        return jnp.where(anyone & (sign != 0)[None], drawn, 0), state


def extremes(updates: Float[Array, "n d"], known: Bool[Array, " n"]) -> Float[Array, "2 d"]:
    """The smallest and the largest of each column of the known rows; infinite if there are none."""

    def of(block: Array) -> Array:
        inside = {"axis": 0, "where": known[:, None]}
        least = jnp.min(block, initial=jnp.inf, **inside)
        return jnp.stack([least, jnp.max(block, initial=-jnp.inf, **inside)])

    return columns.map_columns(of, updates, width=rows.WIDTH)


class FangKrum(InformedAttack):
    """All attackers send ``-lambda s``, with the largest lambda at which Krum picks one of them.

    s are the signs of the mean of all updates before the attack. lambda starts at the paper's
    upper bound and is halved until Krum, told the true number of attackers, picks a crafted
    update; if it never does, the smallest lambda is sent. Krum is computed from distances alone:
    the matrix is read once, however many factors are tried. With partial knowledge the attackers
    run Krum on their own updates and a growing number of crafted ones.

    Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning",
    USENIX Security 2020.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) >= 3
    >>> sent = FangKrum()(updates, byzantine)
    >>> bool((sent[3] < 0).all()), bool((sent[3] == sent[4]).all())
    (True, True)
    """

    made_for = capability((Krum, MultiKrum, Bulyan))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known, updates = self.known(view), view.updates
        whole = view.honest | view.own if self.knowledge == FULL else view.own
        sign = jnp.sign(mean_of_known(updates, whole))
        count = jnp.sum(known)
        squares = jnp.where(known, rows.squared_norms(jnp.where(known[:, None], updates, 0)), 0)
        along = jnp.where(known, rows.products(updates, sign[None])[:, 0], 0)
        pilot = rows.median_row(squares, known)
        gram = centred_gram(updates, jnp.zeros_like(updates, shape=(0, len(sign))), known, pilot)
        near = _nearest(squared_distances(gram, known))

        size, m = rows.squared_norms(sign), view.count

        def bound(copies: Array) -> Array:
            # The paper's, with its divisor n - 2m - 1: here m = copies and n = count + copies.
            least = jnp.min(jnp.where(known, _sum_of(jnp.sqrt(near), count - 2), jnp.inf))
            root = jnp.sqrt(jnp.maximum(size, 1))
            honest = jnp.maximum(count - copies - 1, 1)
            return least / (honest * root) + jnp.sqrt(jnp.max(squares)) / root

        def factor(copies: Int[Array, ""]) -> tuple[Array, Array]:
            """The first factor at which Krum picks one of the copies, and whether there is one."""
            factors = bound(copies) * 0.5 ** jnp.arange(HALVINGS, dtype=squares.dtype)

            def succeeds(scale: Array) -> Array:
                # |g_i + scale s|^2
                away = jnp.maximum(squares + 2 * scale * along + jnp.square(scale) * size, 0)
                return picks_crafted(near, jnp.where(known, away, jnp.inf), known, copies, copies)

            found = jax.lax.map(succeeds, factors)
            first = jnp.argmax(found)
            return jnp.where(jnp.any(found), factors[first], factors[-1]), jnp.any(found)

        if self.knowledge == FULL:
            chosen, _ = factor(m)
        else:
            # Up to one more than there are attackers: beside one own row, one copy only ties.
            tries = jnp.arange(1, view.attackers.shape[0] + 2)
            scales, found = jax.lax.map(factor, tries)
            found &= tries <= m + 1
            chosen = jnp.where(jnp.any(found), scales[jnp.argmax(found)], scales[m])
        chosen = jnp.where(count > 0, chosen, 0)
        return -chosen * sign[None], state


def picks_crafted(
    near: Float[Array, "n n"],
    away: Float[Array, " n"],
    known: Bool[Array, " n"],
    copies: Int[Array, ""],
    f: Int[Array, ""],
) -> Bool[Array, ""]:
    """Whether Krum picks a crafted row, of which there are ``copies`` equal ones.

    Args:
      near: of each row, its squared distances to the other known rows in ascending order, +inf
        after them.
      away: squared distance of each row to the crafted one, +inf where not known.
      known: the rows that there are besides the crafted ones.
      copies: how often the crafted row occurs.
      f: what Krum is told: it sums over n - f - 2 neighbours.

    Cost: O(n^2), of sums alone.
    """
    neighbours = jnp.maximum(jnp.sum(known) + copies - f - 2, 1)
    crafted = _sum_of(jnp.sort(away)[None], neighbours - (copies - 1))[0]
    # Nearest to an honest row are other honest rows, with the copies in between.
    closer = jnp.sum(near < away[:, None], axis=1)
    before = jnp.minimum(closer, neighbours)
    between = jnp.clip(neighbours - before, 0, copies)
    own = _sum_of(near, neighbours - between)
    honest = own + jnp.where(between > 0, between * away, 0)
    return crafted < jnp.min(jnp.where(known, honest, jnp.inf))


def _nearest(squared_distances: Float[Array, "n n"]) -> Float[Array, "n n"]:
    others = jnp.where(jnp.eye(len(squared_distances), dtype=bool), jnp.inf, squared_distances)
    return jnp.sort(others, axis=1)


def _sum_of(ordered: Float[Array, "r n"], count: Int[Array, " r"] | Array) -> Float[Array, " r"]:
    """The sum of the first ``count`` entries of each row; 0 if that is none."""
    place = jnp.arange(ordered.shape[1])[None]
    counted = place < jnp.broadcast_to(count, ordered.shape[:1])[:, None]
    return jnp.sum(jnp.where(counted, ordered, 0), axis=1)
