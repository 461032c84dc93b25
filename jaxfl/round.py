"""THE round: one pure function of the federation's state, with all clients as a leading axis.

    cohort -> data poisoning and local work -> clip and noise -> fairness weights -> attack
        -> aggregate -> server step

Everything in it is traced into one program. ``Federation`` holds the parts (a pytree, so any
number in it can be swept by ``vmap``), ``Plan`` the sizes and choices that shape the program.
What mechanisms of privacy do is in their hooks, which are the identity where there is none.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxfl import metrics
from jaxfl.clients import Message, Samples
from jaxfl.component import promises
from jaxfl.data.federated import FederatedData
from jaxfl.devices import replicate
from jaxfl.fairness import Weighed
from jaxfl.federation import Federation
from jaxfl.local_work import Told, broadcast, learned, told_with, work_locally
from jaxfl.models.objective import ModelState
from jaxfl.numerics.rows import Rows, each, matrix_of
from jaxfl.privacy.deployment import Turn
from jaxfl.record import RoundRecord, record_of
from jaxfl.sending import send
from jaxfl.state import FederationState, Plan, RoundKeys, round_keys
from jaxfl.types import Batch, Context, Info, PyTree, State, Struct, present_mask


class Received(Struct):
    """All that has happened before the server aggregates."""

    keys: RoundKeys
    context: Context
    own: Rows
    """Every client's own update, before any attack on messages."""
    known: Told | None
    """What else is known of the clients' work; of a stream, once it has been read."""
    sent: Rows
    """What the server aggregates: attacked, weighed and bounded."""
    seen: State
    """What the mechanism of privacy must know of the messages to release the aggregate."""
    weighed: Weighed | None
    attack: State
    root: State


class Exchange(Struct):
    """The messages of one round, for study: what would have been sent, and what was."""

    ids: Int[Array, " n"]
    byzantine: Bool[Array, " n"]
    present: Bool[Array, " n"] | None
    own: Float[Array, "n d"]
    """Every client's own update, before any attack on messages."""
    sent: Float[Array, "n d"]
    """What the server receives."""


def run_round(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    minority: Bool[Array, " K"] | None = None,
) -> tuple[FederationState, RoundRecord]:
    """One round: pure, and one program. ``minority`` are ``minority_clients``, if known already."""
    received = receive(federation, plan, data, state)
    minority = minority_clients(data, state) if minority is None else minority
    return answer(federation, plan, state, received, minority)


def receive(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState
) -> Received:
    """The first half of the round, up to what the server has before it aggregates."""
    keys = round_keys(state)
    if federation.smoothing is not None:
        # Clients and the server's mechanism of privacy have the numbers up to the population's.
        key = jax.random.fold_in(keys.noise, plan.spec.population + 1)
        params = federation.smoothing.sent(state.params, state.round, key)
        state = state.replace(params=replicate(params))
    state = state.replace(attack=learned(federation, plan, data, state, keys.attack))
    work = work_locally(federation, plan, data, state, keys)
    context, root = _root_phase(federation, plan, data, state, keys, work.context)
    sent, weighed, attack = send(federation, plan, state, keys, context, work)
    with jax.named_scope("privacy"):
        sent, seen = federation.privacy.checked("bound", sent, state.privacy)
    return Received(
        keys=keys,
        context=context,
        own=work.updates,
        known=work.known,
        sent=sent,
        seen=seen,
        weighed=weighed,
        attack=attack,
        root=root,
    )


@jax.named_scope("server")
def answer(
    federation: Federation,
    plan: Plan,
    state: FederationState,
    received: Received,
    minority: Bool[Array, " K"],
) -> tuple[FederationState, RoundRecord]:
    """The second half of the round: the server aggregates, releases, takes its step."""
    context, weighed = received.context, received.weighed
    with jax.named_scope("aggregation"):
        result = federation.aggregator.checked(received.sent, state.aggregator, context)
    told = told_with(received.sent, received.known)
    messages = _messages(federation, received, told)
    result = result.replace(update=result.update.astype(state.params.dtype))
    update, privacy = _release(federation, plan, state, received, result.update)
    update = update if weighed is None else update * weighed.scale.astype(update.dtype)
    share = _share(federation, plan, context)
    update, server = federation.algorithm.checked_finish(
        state.server, update, messages, context, share
    )
    params, optimizer = _step(federation, state, context.params, update)
    kept = _kept(context, result.info, received.sent.shape[0])
    new_state = state.replace(
        params=params,
        model_state=_mean_model_state(told.model_state, state.model_state, kept),
        optimizer=optimizer,
        clients=jax.tree.map(
            lambda x, m: x.at[context.client_ids].set(m, mode="drop"), state.clients, told.memory
        ),
        attack=received.attack,
        aggregator=result.state,
        server=server,
        privacy=privacy,
        fairness=() if weighed is None else weighed.state,
        root=received.root,
        participations=state.participations.at[context.client_ids].add(1, mode="drop"),
        round=state.round + 1,
    )
    record = record_of(
        context,
        told.loss,
        received.sent,
        result.update,
        result.info,
        minority=minority.at[context.client_ids].get(mode="fill", fill_value=False),
        clip=federation.privacy.checked("threshold", state.privacy),
        participations=new_state.participations,
        signs=plan.signs,
    )
    return new_state, record


@jax.named_scope("record")
def minority_clients(data: FederatedData, state: FederationState) -> Bool[Array, " K"]:
    """The honest clients whose labels are most unlike the others'. The same in every round."""
    return metrics.minority(data.label_counts, ~state.byzantine)


def exchange(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState
) -> Exchange:
    """The messages of the next round, which is not taken."""
    return exchanged(receive(federation, plan, data, state))


def exchanged(received: Received) -> Exchange:
    """The messages of a round whose first half is known."""
    context = received.context
    assert context.byzantine is not None
    return Exchange(
        ids=context.client_ids,
        byzantine=context.byzantine,
        present=context.present,
        own=matrix_of(received.own),
        sent=matrix_of(received.sent),
    )


@jax.named_scope("server")
def _root_phase(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    keys: RoundKeys,
    context: Context,
) -> tuple[Context, State]:
    """What the rule needs of models and the server's samples; the server's memory as a client."""
    needs, own, memory = federation.aggregator.needs_root, data.root_index(), state.root
    if "batch" in needs or federation.aggregator.makes_inputs:
        context = context.replace(
            model_state=state.model_state, objective=plan.objective, client_chunk=plan.chunk
        )
    if "batch" in needs:
        context = context.replace(
            root_batch=Batch(*data.samples(own), mask=jnp.ones(own.shape, bool))
        )
    if federation.aggregator.makes_inputs:
        context = context.replace(sample=data.sample)
    if "update" in needs:

        def load(place: Array, mask: Array, key: Array) -> Batch:
            return Batch(*data.samples(own[place]), mask)

        samples = Samples(count=jnp.int32(data.root), load=load, capacity=data.root)
        message, memory = federation.algorithm.checked_step(
            plan.objective, broadcast(plan, state), samples, memory, keys.root
        )
        context = context.replace(root_update=replicate(message.update))
    return context, memory


@jax.named_scope("privacy")
def _release(
    federation: Federation,
    plan: Plan,
    state: FederationState,
    received: Received,
    aggregate: Float[Array, " d"],
) -> tuple[Float[Array, " d"], State]:
    """The aggregate as the mechanism of privacy releases it, and the mechanism's new memory."""
    population = plan.spec.population
    turn = Turn(
        present=present_mask(received.context, received.sent.shape[0]).astype(jnp.float32),
        expected=federation.participation.expected(population),
        separation=federation.participation.separation,
        mean=promises(federation.aggregator, "averages"),
    )
    # No client has the number of the population: its noise is the server's.
    key = jax.random.fold_in(received.keys.noise, population)
    seen, memory = received.seen, state.privacy
    return federation.privacy.checked("release", aggregate, seen, turn, memory, key)


def _step(
    federation: Federation,
    state: FederationState,
    sent: Float[Array, " d"] | None,
    update: Float[Array, " d"],
) -> tuple[Float[Array, " d"], PyTree]:
    """The parameters after the optimiser's step from those that were sent, and its memory."""
    optimizer = federation.optimizer.transform()
    change, memory = optimizer.update(update, state.optimizer, sent)
    params: Any = optax.apply_updates(sent, change)  # pyright: ignore
    if federation.smoothing is not None:
        params = federation.smoothing.clipped(params, state.round + 1)
    return replicate(params), memory


def _messages(federation: Federation, received: Received, told: Told) -> Message:
    """What the server's half of the algorithm may read of the clients."""
    sent, loss, steps, present = received.sent, told.loss, told.steps, received.context.present
    if present is not None:
        sent = each(lambda row, there: jnp.where(there, row, 0), sent, present)
    if federation.private:
        loss = jnp.full(loss.shape, jnp.nan)
        # Of one that is private, they are a number of its samples.
        if not promises(federation.algorithm, "private"):
            steps = jnp.full(steps.shape, jnp.nan)
    return Message(sent, loss, told.model_state, steps)  # pyright: ignore


def _share(federation: Federation, plan: Plan, context: Context) -> Float[Array, ""]:
    """The share of the population that takes part; the expected one where that is private."""
    population = plan.spec.population
    if federation.privacy.hides_cohort:
        return jnp.asarray(federation.participation.expected(population) / population)
    return jnp.sum(present_mask(context, plan.spec.cohort)) / population


def _kept(context: Context, info: Info, n: int) -> Bool[Array, " n"]:
    """The clients that are present and, where the rule selects, selected."""
    kept = present_mask(context, n)
    return kept if info.selected is None else kept & info.selected.astype(bool)


def _mean_model_state(
    messages: ModelState, before: ModelState, kept: Bool[Array, " n"]
) -> ModelState:
    """Batch statistics averaged over the clients whose messages the rule kept.

    Those that are not finite are left out; where none is left, and all else, stays as it was.
    """

    def floating(x: Array) -> bool:
        return bool(jnp.issubdtype(x.dtype, jnp.floating))

    for new in filter(floating, jax.tree.leaves(messages)):
        kept &= jnp.all(jnp.isfinite(new.reshape(new.shape[0], -1)), axis=1)
    weights = kept / jnp.maximum(jnp.sum(kept), 1)

    def mean(new: Array, old: Array) -> Array:
        if not floating(old):
            return old
        new = jnp.where(jnp.expand_dims(kept, tuple(range(1, new.ndim))), new, 0)
        total = jnp.tensordot(weights, new, axes=1, precision="highest").astype(old.dtype)
        return jnp.where(jnp.any(kept), total, old)

    return jax.tree.map(mean, messages, before)
