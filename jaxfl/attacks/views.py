"""What attackers are told: a client whose data they change, a round's messages, the defence."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Aggregator
from jaxfl.models.objective import Objective
from jaxfl.numerics import rows
from jaxfl.numerics.stream import Stream
from jaxfl.types import Batch, Context, PyTree, Segments, State, Struct


class ClientView(Struct):
    """What an attack on data is told about the client whose batch it changes."""

    id: Int[Array, ""]
    byzantine: Bool[Array, ""]
    rank: Int[Array, ""]
    """Its number among the population's Byzantine clients, from 0; meaningless for others."""
    round: Int[Array, ""]
    classes: int = struct.field(pytree_node=False, default=2)
    logits: Callable[[Array], Array] | None = struct.field(pytree_node=False, default=None)
    """Maps inputs to the logits of the model that the client received."""
    peak: tuple[float, ...] = struct.field(pytree_node=False, default=(1.0,))
    """The largest value of an input, per channel: white in an image."""
    memory: State = ()
    """The attack's."""
    rare: Callable[[Key[Array, ""], int], Array] | None = struct.field(
        pytree_node=False, default=None
    )
    """Draws so many of the inputs that only attackers have."""


class Learning(Struct):
    """What attackers have to learn from before their clients train: one attacker's own samples."""

    params: Float[Array, " d"]
    """The model that they received."""
    model_state: PyTree
    round: Int[Array, ""]
    key: Key[Array, ""]
    objective: Objective = struct.field(pytree_node=False)
    load: Callable[[int], Batch] = struct.field(pytree_node=False)
    """So many of the samples; fewer where there are fewer."""
    floor: tuple[float, ...] = struct.field(pytree_node=False)
    """The smallest value of an input, per channel: black in an image."""
    peak: tuple[float, ...] = struct.field(pytree_node=False)
    """The largest."""
    rare: Callable[[int], Array] | None = struct.field(pytree_node=False, default=None)
    """So many of the inputs that only attackers have, the rarest first; fewer where there are."""


class Mechanism(Protocol):
    """What attackers ask of a mechanism of privacy: what its hooks make of a message."""

    def checked(self, hook: str, *given: Any) -> Any:
        """What the hook of this name makes of what it is given."""
        ...


class Defence(Struct):
    """The defence as an adaptive attack sees it: the rule, its memory, not the server's key."""

    aggregator: Aggregator
    state: State
    context: Context
    start: State = ()
    """The rule's memory at the start of a run."""
    privacy: Mechanism | None = None
    """The mechanism of privacy, whose hooks stand between the messages and the rule. None outside
    of a round, in a notebook's call: the rule is given the messages as they are."""
    memory: State = ()
    """The mechanism's."""
    noise: Key[Array, " n"] | None = None
    """Where the mechanism comes after the attack: keys that are not those of the round."""
    factors: Float[Array, " n"] | None = None
    """What fairness then multiplies the messages by."""

    def guessed(self, likely: Float[Array, " d"], standing: Int[Array, " n"]) -> "Defence":
        """The defence as those know it who see their own updates only.

        The server's own update and samples are no attacker's, nor is a memory of what honest
        clients sent, nor how many samples these have, nor who of them takes part.

        Args:
          likely: what they take the server's own update for.
          standing: the attackers' rows that stand in for all rows.
        """
        given, shares = self.context, self.context.weights[standing]
        context = given.replace(
            weights=rows.safe_ratio(shares, jnp.sum(shares)),
            present=None if given.present is None else jnp.ones_like(given.present),
            root_update=None if given.root_update is None else likely,
            root_batch=jax.tree.map(jnp.zeros_like, given.root_batch),
        )
        state = self.state if self.aggregator.public_memory else self.start
        return self.replace(context=context, state=state, factors=None)

    def received(self, updates: rows.Rows) -> Float[Array, "n d"]:
        """What the rule is given where clients send these updates."""
        sent = rows.held(updates)
        if self.privacy is None:
            return sent
        assert self.context.byzantine is not None
        if self.noise is None:
            crafted = jax.vmap(functools.partial(self.privacy.checked, "crafted"))(sent)
            sent = jnp.where(self.context.byzantine[:, None], crafted, sent)
        else:
            message = functools.partial(self.privacy.checked, "message")
            sent = jax.vmap(message)(sent, self.noise, self.context.byzantine)
        if self.factors is not None:
            sent = sent * self.factors[:, None].astype(sent.dtype)
        return self.privacy.checked("bound", sent, self.memory)[0]

    def probe(self, updates: rows.Rows) -> Float[Array, " d"]:
        """What the server would make of these updates, up to its own randomness."""
        received = self.received(updates)
        return self.aggregator.checked(received, self.state, self.context).update


class AttackView(Struct):
    """All that an attack on messages may look at in one round."""

    updates: Float[Array, "n d"]
    """The honest rows and, in the attackers' rows, what they would send if they were honest. To an
    attack that declares ``streams``, it may be a ``Stream`` that never holds all of them."""
    key: Key[Array, ""]
    """The attackers' own randomness."""
    defence: Defence
    """The actual defence, to probe."""
    round: Int[Array, ""]
    params: Float[Array, " d"] | None
    weights: Float[Array, " n"]
    honest: Bool[Array, " n"]
    """Rows of honest clients, present and finite: one honest NaN must not disarm the attack. To
    attackers who know no more than their own rows, all rows but theirs, whoever takes part: what
    they send then tells nobody how many did, on which central privacy rests."""
    own: Bool[Array, " n"]
    """Rows of attackers, present and finite."""
    attackers: Int[Array, " a"]
    """Indices of the attackers' rows, ascending, padded with n."""
    ranks: Int[Array, " a"]
    """The number of each attacker among the population's Byzantine clients, from 0."""
    client_ids: Int[Array, " n"]

    @property
    def segments(self) -> Segments:
        """Which parameters of the model the coordinates are; () where that is not known."""
        return self.defence.context.segments

    @property
    def learning_rate(self) -> Float[Array, ""]:
        """The server's in this round, by which it multiplies the aggregate."""
        return self.defence.context.learning_rate

    @property
    def count(self) -> Int[Array, ""]:
        """How many attackers there are."""
        return jnp.sum(self.attackers < self.honest.shape[0], dtype=jnp.int32)

    def own_rows(self) -> Float[Array, "a d"]:
        """What the attackers would send if they were honest (arbitrary in padded places)."""
        if isinstance(self.updates, Stream):
            return self.updates.take(self.attackers)
        return self.updates.at[self.attackers].get(mode="clip")

    def send(self, crafted: Float[Array, "a_or_1 d"]) -> rows.Rows:
        """The updates with the attackers' rows replaced by the crafted ones."""
        if isinstance(self.updates, Stream):
            return self._send_streamed(self.updates, crafted.astype(self.updates.dtype))
        return self.updates.at[self.attackers].set(self.full(crafted), mode="drop")

    def _send_streamed(self, updates: Stream, crafted: Float[Array, "a_or_1 d"]) -> Stream:
        place = jnp.full((updates.shape[0],), -1, jnp.int32)
        numbers = jnp.arange(self.attackers.shape[0], dtype=jnp.int32)
        place = place.at[self.attackers].set(numbers, mode="drop")

        def sent(row: Array, place: Array) -> Array:
            own = crafted[jnp.clip(place, 0, crafted.shape[0] - 1)]
            return jnp.where(place < 0, row, own)

        return updates.each(sent, place)

    def full(self, crafted: Float[Array, "a_or_1 d"]) -> Float[Array, "a d"]:
        """One row for each attacker, of the updates' type."""
        shape = (self.attackers.shape[0], self.updates.shape[1])
        return jnp.broadcast_to(crafted, shape).astype(self.updates.dtype)
