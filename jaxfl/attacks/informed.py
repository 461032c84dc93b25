"""Attacks on messages that start from the updates the attackers know, and the moments of those."""

import abc
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.attacks.base import ALL, OWN, Attack
from jaxfl.attacks.views import AttackView
from jaxfl.component import capability, field
from jaxfl.numerics import columns, rows
from jaxfl.numerics.stream import Stream
from jaxfl.types import State

FULL, PARTIAL, EVERYBODY = "full", "partial", "everybody"


class InformedAttack(Attack):
    """An attack on messages that starts from what it knows of the others' updates. Abstract.

    With ``knowledge="full"`` they know all honest updates of the round, with ``"partial"`` only
    what they would send themselves if they were honest. Attacks by means and deviations may also
    reckon with ``"everybody"``, both of these.

    >>> jaxfl.IPM(knowledge="partial").threat_model
    ('its messages', 'its own updates')
    """

    knowledge: str = field(default=FULL, choices=(FULL, PARTIAL))
    """All honest updates of the round, or the attackers' own only."""
    crafts = capability(True)

    @capability
    def knows(self) -> str:
        return OWN if self.knowledge == PARTIAL else ALL

    def known(self, view: AttackView) -> Bool[Array, " n"]:
        """The rows that the attackers reckon with."""
        if self.knowledge == EVERYBODY:
            return view.honest | view.own
        return view.honest if self.knowledge == FULL else view.own

    @abc.abstractmethod
    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]: ...

    def rehearsal(self, view: AttackView) -> AttackView:
        """The round as the attackers know it, to try the defence on.

        With partial knowledge, copies of what they would send honestly stand in for the rows
        that they do not know, and their mean for the server's own update; a memory of what honest
        clients sent is as at the start of a run.
        """
        if self.knowledge != PARTIAL:
            return view
        n = view.updates.shape[0]
        mine = jnp.nonzero(view.own, size=n, fill_value=0)[0]
        # In turn over the rows of others, wherever the attackers' own stand among them.
        others = jnp.cumsum(~view.own, dtype=jnp.int32) - 1
        turn = jnp.maximum(others, 0) % jnp.maximum(jnp.sum(view.own, dtype=jnp.int32), 1)
        standing = mine[turn]
        likely = mean_of_known(view.updates, view.own)
        return view.replace(
            updates=view.updates[standing],
            defence=view.defence.guessed(likely.astype(view.updates.dtype), standing),
        )


class AttackByMoments(InformedAttack):
    """An attack that needs means, deviations and distances of what it knows, no more. Abstract."""

    knowledge: str = field(default=FULL, choices=(FULL, PARTIAL, EVERYBODY))
    """All honest updates, the attackers' own only, or both, as SignGuard's code has it."""


def check_inner(owner: InformedAttack, inner: Attack) -> None:
    """Raises ValueError if ``inner`` is not on messages alone, or knows more than ``owner``."""
    name, kind = type(owner).__name__, type(inner).__name__
    if inner.poisons or not inner.crafts:
        raise ValueError(f"{name} is made of attacks on messages alone; got {kind}")
    if owner.knowledge == PARTIAL and inner.knows == ALL:
        raise ValueError(
            f"{name} with partial knowledge is made of attacks that know no more; got {kind}, "
            f"which knows {ALL}"
        )


def mean_of_known(
    updates: rows.Rows,
    known: Bool[Array, " n"],
    shares: Float[Array, " n"] | None = None,
) -> Float[Array, " d"]:
    """The mean of the known rows, in float32 or better; 0 if there are none.

    ``shares``: what each counts for; None: all the same.
    """
    if shares is None:
        weights = known / jnp.maximum(jnp.sum(known), 1)
    else:
        counted = jnp.where(known, shares, 0)
        weights = rows.safe_ratio(counted, jnp.sum(counted))
    nothing = jnp.zeros((0, updates.shape[1]), updates.dtype)
    return rows.weighted_sum(weights, updates, nothing)


def mean_and_std(
    updates: rows.Rows, known: Bool[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Mean and standard deviation (ddof = 1; 0 of one row) of each column of the known rows."""
    if isinstance(updates, Stream):
        return _streamed_moments(updates, known)
    count = jnp.sum(known)
    mean_weights = known / jnp.maximum(count, 1)
    variance_weights = known / jnp.maximum(count - 1, 1)

    def block_statistics(block: Array) -> Array:
        block = jnp.where(known[:, None], block.astype(mean_weights.dtype), 0)
        mean = jnp.matmul(mean_weights, block, precision="highest")
        squares = jnp.square(block - mean[None])
        return jnp.stack([mean, jnp.matmul(variance_weights, squares, precision="highest")])

    both = columns.map_columns(block_statistics, updates, width=rows.WIDTH)
    return both[0], rows.safe_sqrt(both[1])


def _streamed_moments(
    updates: Stream, known: Bool[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """In one pass: the moments of chunks are merged, which loses no digits to cancellation.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", COMPSTAT 1982.
    """
    dtype = rows.accumulator(updates.dtype)

    def merge(carry: Any, block: Array, index: Array, inside: Array) -> Any:
        count, mean, squares = carry
        mask = known[index] & inside
        own = jnp.sum(mask).astype(dtype)
        block = jnp.where(mask[:, None], block.astype(dtype), 0)
        own_mean = jnp.matmul(mask / jnp.maximum(own, 1), block, precision="highest")
        away = jnp.where(mask[:, None], block - own_mean[None], 0)
        both = count + own
        share = rows.safe_ratio(own, both)
        apart = own_mean - mean
        squares += jnp.sum(jnp.square(away), axis=0) + jnp.square(apart) * count * share
        return both, mean + apart * share, squares

    nothing = jnp.zeros((updates.shape[1],), dtype)
    start = jnp.zeros((), dtype), nothing, nothing
    count, mean, squares = updates.scan(merge, start)
    return mean, rows.safe_sqrt(squares / jnp.maximum(count - 1, 1))
