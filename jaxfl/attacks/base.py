"""What Byzantine clients do: to their data, and to the messages they send."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Aggregator, Mean
from jaxfl.component import Component
from jaxfl.numerics import columns, rows
from jaxfl.types import Batch, Context, Spec, State, Struct, present_mask


class ClientView(Struct):
    """What a client's data poisoning may know of the client."""

    id: Int[Array, ""]
    byzantine: Bool[Array, ""]
    round: Int[Array, ""]
    classes: int = struct.field(pytree_node=False, default=2)


class AttackView(Struct):
    """What the threat model grants a message attack besides the updates themselves."""

    round: Int[Array, ""]
    params: Float[Array, " d"] | None
    weights: Float[Array, " n"]
    honest: Bool[Array, " n"]
    """Present, not Byzantine, and finite: one honest NaN must not disarm the attack."""
    attackers: Int[Array, " a"]
    """Rows of the Byzantine clients in ascending order, padded with n."""


class Defence(Struct):
    """The defence as an adaptive attack may use it: with its memory, not with the server's key."""

    aggregator: Aggregator
    state: State
    context: Context

    def probe(self, updates: Float[Array, "n d"]) -> Float[Array, " d"]:
        """What the server would answer to these updates, up to its own randomness."""
        return self.aggregator.aggregate(updates, self.state, self.context).update


class Attack(Component):
    """A Byzantine strategy. Abstract; the base itself does nothing.

    An attack *crafts rows*: the driver writes them over the Byzantine clients' updates and over
    nothing else, so that an attack cannot touch honest rows even by mistake.
    """

    poisons: ClassVar[bool] = False
    """Changes the data of Byzantine clients."""
    crafts: ClassVar[bool] = True
    """Changes the messages of Byzantine clients."""

    def init(self, spec: Spec) -> State:
        """The memory at the start of a run."""
        return ()

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        """The batch a Byzantine client trains on."""
        return batch

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a_or_1 d"], State]:
        """The rows that the attackers send: one per attacker, or one that all of them send.

        Args:
          updates: honest rows, and in the attackers' places what they would send honestly.
          state: the attack's memory.
          view: round, parameters, who is honest, where the attackers are.
          key: the attackers' own randomness.
          defence: the actual defence, to probe.
        """
        return own_rows(updates, view), state

    def __call__(
        self,
        updates: Float[Array | np.ndarray, "n d"],
        byzantine: Bool[Array | np.ndarray, " n"],
        *,
        key: Key[Array, ""] | None = None,
        defence: Aggregator | None = None,
    ) -> Float[Array, "n d"]:
        """Attacks a matrix of updates in a notebook; ``byzantine`` marks the attackers' rows.

        ``defence`` is what an adaptive attack works against; the mean unless given.
        """
        key = jax.random.key(0) if key is None else key
        defence = Mean() if defence is None else defence
        return _attack(self, jnp.asarray(updates), jnp.asarray(byzantine, bool), key, defence)


@jax.jit
def _attack(attack, updates, byzantine, key, defence):
    n, d = updates.shape
    spec = Spec(population=n, cohort=n, dim=d, max_byzantine=n, dtype=updates.dtype)
    context = Context.of(n)
    probe = Defence(aggregator=defence, state=defence.init(spec), context=context)
    return attack_rows(attack, updates, byzantine, attack.init(spec), context, key, probe, n)[0]


def attack_rows(
    attack: Attack,
    updates: Float[Array, "n d"],
    byzantine: Bool[Array, " n"],
    state: State,
    context: Context,
    key: Key[Array, ""],
    defence: Defence,
    max_byzantine: int,
) -> tuple[Float[Array, "n d"], State]:
    """The updates with the Byzantine rows rewritten, and the attack's new memory."""
    if max_byzantine == 0 or not attack.crafts:
        return updates, state
    n = updates.shape[0]
    view = AttackView(
        round=context.round,
        params=context.params,
        weights=context.weights,
        honest=~byzantine & present_mask(context, n) & jnp.isfinite(rows.squared_norms(updates)),
        attackers=jnp.nonzero(byzantine, size=max_byzantine, fill_value=n)[0].astype(jnp.int32),
    )
    crafted, state = attack.craft(updates, state, view, key, defence)
    crafted = jnp.broadcast_to(crafted, (max_byzantine, updates.shape[1])).astype(updates.dtype)
    return updates.at[view.attackers].set(crafted, mode="drop"), state


def own_rows(updates: Float[Array, "n d"], view: AttackView) -> Float[Array, "a d"]:
    """What the attackers would send if they were honest (arbitrary in padded places)."""
    return updates.at[view.attackers].get(mode="clip")


def honest_mean(updates: Float[Array, "n d"], view: AttackView) -> Float[Array, " d"]:
    """The mean of the honest rows."""
    weights = view.honest / jnp.maximum(jnp.sum(view.honest), 1)
    nothing = jnp.zeros((0, updates.shape[1]), updates.dtype)
    return rows.combine(weights, updates, nothing)


def honest_mean_and_std(
    updates: Float[Array, "n d"], view: AttackView
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Per coordinate, mean and standard deviation (ddof = 1; 0 for one row) of the honest rows."""
    count = jnp.sum(view.honest)
    mean_weights = view.honest / jnp.maximum(count, 1)
    variance_weights = view.honest / jnp.maximum(count - 1, 1)

    def block_statistics(block: Array) -> Array:
        block = jnp.where(view.honest[:, None], block.astype(mean_weights.dtype), 0)
        mean = jnp.matmul(mean_weights, block, precision="highest")
        squares = jnp.square(block - mean[None])
        return jnp.stack([mean, jnp.matmul(variance_weights, squares, precision="highest")])

    both = columns.map_columns(block_statistics, updates, width=rows.WIDTH)
    return both[0], rows.safe_sqrt(both[1])


class NoAttack(Attack):
    """Byzantine clients follow the protocol: the baseline of every table."""

    crafts: ClassVar[bool] = False
