"""From the clients' own updates to what reaches the server: weighed fairly, attacked, noised."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxfl.attacks.base import attack_rows
from jaxfl.attacks.views import Defence
from jaxfl.devices import by_columns
from jaxfl.fairness import Weighed
from jaxfl.federation import Federation
from jaxfl.local_work import LocalWork
from jaxfl.numerics.rows import Rows, each
from jaxfl.privacy.deployment import ATTACK_FIRST
from jaxfl.state import FederationState, Plan, RoundKeys
from jaxfl.types import Context, State


def send(
    federation: Federation,
    plan: Plan,
    state: FederationState,
    keys: RoundKeys,
    context: Context,
    work: LocalWork,
) -> tuple[Rows, Weighed | None, State]:
    """What the server receives, how fairness weighs it, and the attack's new memory.

    Fairness weighs what the mechanism has made of an update, and attackers rewrite what would be
    received: where the mechanism comes after the attack, the weights come last.
    """
    assert context.byzantine is not None
    privacy, own = federation.privacy, work.updates
    weighed = _weigh(federation, state, context, work)
    mechanism_last = privacy.on_messages and federation.noise_order == ATTACK_FIRST
    if not mechanism_last:
        own = _multiplied(own, weighed)
    defence = Defence(
        aggregator=federation.aggregator,
        state=state.aggregator,
        context=context.replace(key=keys.probe),
        start=federation.aggregator.init(plan.spec),
        privacy=privacy,
        memory=state.privacy,
        noise=_noise_keys(keys.probe, context) if mechanism_last else None,
        factors=weighed.factors if weighed and mechanism_last else None,
    )
    sent, memory = attack_rows(
        federation.attack,
        own,
        context.byzantine,
        state.attack,
        context,
        keys.attack,
        defence,
        plan.spec.max_byzantine,
        state.ranks.at[context.client_ids].get(mode="clip"),
    )
    if mechanism_last:
        sent = _multiplied(_noised(federation, keys, context, sent), weighed)
    elif federation.attack.crafts:
        sent = _taken_for(federation, context, sent)
    return sent, weighed, memory


def _noised(federation: Federation, keys: RoundKeys, context: Context, sent: Rows) -> Rows:
    """What the mechanism makes of messages that have been attacked."""
    assert context.byzantine is not None
    noise = _noise_keys(keys.noise, context)
    # The scope is the function's: over a stream it runs later, wherever rows are asked for.
    message = functools.partial(federation.privacy.checked, "message")
    return by_columns(each(jax.named_scope("privacy")(message), sent, noise, context.byzantine))


def _taken_for(federation: Federation, context: Context, sent: Rows) -> Rows:
    """What the server takes messages for that were crafted after the mechanism."""
    assert context.byzantine is not None

    @jax.named_scope("privacy")
    def taken_for(row: Array, crafted: Array) -> Array:
        return jnp.where(crafted, federation.privacy.checked("crafted", row), row)

    return each(taken_for, sent, context.byzantine)


def _noise_keys(key: Key[Array, ""], context: Context) -> Key[Array, " n"]:
    """One for each client of the cohort."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, context.client_ids)


@jax.named_scope("server")
def _weigh(
    federation: Federation, state: FederationState, context: Context, work: LocalWork
) -> Weighed | None:
    """What fairness makes of the clients' standing; None without it."""
    if federation.fairness is None:
        return None
    standing = work.told.standing
    assert standing is not None
    weighed = federation.fairness.checked(
        standing.loss,
        standing.squared_norm,
        federation.algorithm.gradients,
        state.fairness,
        context,
    )
    if not federation.aggregator.scale_equivariant:
        # Its answer is no multiple of what it is given, so that nothing can be made up for later.
        factors = weighed.factors * weighed.scale
        weighed = weighed.replace(factors=factors, scale=jnp.ones_like(weighed.scale))
    return weighed


def _multiplied(updates: Rows, weighed: Weighed | None) -> Rows:
    """The updates times the factors of fairness; as they are without it."""
    if weighed is None:
        return updates
    multiply = jax.named_scope("server")(jnp.multiply)
    return each(multiply, updates, weighed.factors.astype(updates.dtype))
