"""THE round: one pure function of the federation's state, with all clients as a leading axis.

    cohort -> data poisoning and local work -> clip and noise -> fairness weights -> attack
        -> aggregate -> server step

Everything in it is traced into one program. ``Federation`` holds the parts (a pytree, so any
number in it can be swept by ``vmap``), ``Plan`` the sizes and choices that shape the program.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Mean
from jaxfl.attacks.base import ClientView, Defence, attack_rows
from jaxfl.clients import Broadcast, Message, Samples
from jaxfl.data.dataset import FederatedData
from jaxfl.devices import by_columns, map_clients, replicate
from jaxfl.fairness import Weighed
from jaxfl.federation import Federation
from jaxfl.metrics import minority
from jaxfl.models.objective import ModelState, Objective
from jaxfl.numerics import rows
from jaxfl.privacy import CentralPrivacy, ExamplePrivacy, MessagePrivacy
from jaxfl.privacy.base import ATTACK_FIRST, NOISE_FIRST
from jaxfl.record import RoundRecord, record_of
from jaxfl.types import Batch, Context, PyTree, Spec, State, Struct, present_mask


@dataclasses.dataclass(frozen=True)
class Plan:
    """What shapes the program: static and hashable."""

    objective: Objective
    spec: Spec
    chunk: int


class FederationState(Struct):
    """All that a run carries from round to round; a checkpoint of it resumes the run."""

    params: Float[Array, " d"]
    model_state: ModelState
    optimizer: PyTree
    clients: State
    """Memory of every client of the population, leading axis K."""
    attack: State
    aggregator: State
    server: State
    """Memory of the clients' algorithm at the server."""
    privacy: State
    """The clip, where it adapts, and earlier noise, where it is correlated."""
    fairness: State
    root: State
    """Memory of the server as a client of its own; () where the rule needs no root update."""
    byzantine: Bool[Array, " K"]
    participations: Int[Array, " K"]
    """Rounds that each client has taken part in."""
    round: Int[Array, ""]
    key: Key[Array, ""]


class Standing(Struct):
    """What clients say about themselves to be weighed fairly; of their clean update."""

    loss: Float[Array, " n"]
    """Training loss of the model they received."""
    squared_norm: Float[Array, " n"]


class Exchange(Struct):
    """The messages of one round, for study: what would have been sent, and what was."""

    ids: Int[Array, " n"]
    byzantine: Bool[Array, " n"]
    present: Bool[Array, " n"] | None
    own: Float[Array, "n d"]
    """Every client's own update, before any attack on messages."""
    sent: Float[Array, "n d"]
    """What the server receives."""


def init_state(federation: Federation, plan: Plan, seed: Int[Array, ""] | int) -> FederationState:
    """The state before the first round; the seed decides parameters and who is Byzantine."""
    spec = plan.spec
    model_key, byzantine_key, run_key = jax.random.split(jax.random.key(seed), 3)
    params, model_state = plan.objective.init(model_key)
    wide = dataclasses.replace(spec, dim=spec.dim * federation.algorithm.width)
    one_client = federation.algorithm.init(spec)
    return FederationState(
        params=params,
        model_state=model_state,
        optimizer=federation.optimizer.transform().init(params),
        clients=jax.tree.map(lambda x: jnp.tile(x, (spec.population, *[1] * x.ndim)), one_client),
        attack=federation.attack.init(wide),
        aggregator=federation.aggregator.init(wide),
        server=federation.algorithm.init_server(spec),
        privacy=() if federation.privacy is None else federation.privacy.init(wide.dim),
        fairness=() if federation.fairness is None else federation.fairness.init(spec),
        root=one_client if "update" in federation.aggregator.needs_root else (),
        byzantine=jax.random.permutation(byzantine_key, spec.population) < federation.byzantine,
        participations=jnp.zeros((spec.population,), jnp.int32),
        round=jnp.zeros((), jnp.int32),
        key=run_key,
    )


def run_round(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    minority_of: Bool[Array, " K"] | None = None,
) -> tuple[FederationState, RoundRecord]:
    """One round: pure, and one program. ``minority_of``: ``minority_clients``, if known."""
    context, messages, standing, clients = _client_phase(federation, plan, data, state)
    context, root = _root_phase(federation, plan, data, state, context)
    sent, weighed, attack_state = _attack_phase(
        federation, plan, state, context, messages.update, standing
    )
    sent, norms = _bound(federation, state, sent)
    result = federation.aggregator.aggregate(sent, state.aggregator, context)
    update, privacy_state = _release(federation, plan, state, context, norms, result.update)
    update = update if weighed is None else update * weighed.scale.astype(update.dtype)
    update, server = federation.algorithm.finish(
        state.server, update, messages, context, _share(federation, plan, context)
    )

    change: Any
    change, optimizer = federation.optimizer.transform().update(
        update, state.optimizer, state.params
    )
    params: Any = optax.apply_updates(state.params, change)
    present = present_mask(context, sent.shape[0])
    new_state = state.replace(
        params=replicate(params),
        model_state=_mean_model_state(messages.model_state, state.model_state, present),
        optimizer=optimizer,
        clients=clients,
        attack=attack_state,
        aggregator=result.state,
        server=server,
        privacy=privacy_state,
        fairness=() if weighed is None else weighed.state,
        root=root,
        participations=state.participations.at[context.client_ids].add(1, mode="drop"),
        round=state.round + 1,
    )
    clip = jnp.full((), jnp.nan)
    if isinstance(federation.privacy, CentralPrivacy):
        clip = federation.privacy.threshold(state.privacy)
    minority_of = minority_clients(data, state) if minority_of is None else minority_of
    record = record_of(
        *(context, messages.loss, sent, result.update, result.info),
        minority=minority_of.at[context.client_ids].get(mode="fill", fill_value=False),
        clip=clip,
        participations=new_state.participations,
    )
    return new_state, record


def minority_clients(data: FederatedData, state: FederationState) -> Bool[Array, " K"]:
    """The honest clients whose labels are most unlike the others'. The same in every round."""
    return minority(data.label_counts, ~state.byzantine)


def exchange(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState
) -> Exchange:
    """The messages of the next round, which is not taken."""
    context, messages, standing, _ = _client_phase(federation, plan, data, state)
    context, _ = _root_phase(federation, plan, data, state, context)
    own = messages.update
    sent, _, _ = _attack_phase(federation, plan, state, context, own, standing)
    sent, _ = _bound(federation, state, sent)
    assert context.byzantine is not None
    return Exchange(
        ids=context.client_ids,
        byzantine=context.byzantine,
        present=context.present,
        own=own,
        sent=sent,
    )


def _round_keys(state: FederationState) -> Key[Array, " roles"]:
    """Keys of this round: cohort, clients, noise, attack, attacker's probe, server, root."""
    return jax.random.split(jax.random.fold_in(state.key, state.round), 7)


def _client_phase(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState
) -> tuple[Context, Message, Standing | None, State]:
    """Draws the cohort and computes every client's message, standing and new memory."""
    cohort_key, client_key, noise_key, _, _, server_key, _ = _round_keys(state)
    population = plan.spec.population
    ids, present = federation.cohort(state.byzantine, cohort_key, state.round)
    broadcast = _broadcast(plan, state)

    def one_client(shared: PyTree, arguments: PyTree) -> tuple[Message, PyTree, State]:
        federation, data, broadcast, client_key, noise_key = shared
        client, start, count, memory = arguments
        key = jax.random.fold_in(client_key, client.id)

        def logits(inputs: Array) -> Array:
            return plan.objective.logits(broadcast.params, broadcast.model_state, inputs)

        def load(place: Array, mask: Array, key: Array) -> Batch:
            inputs, labels = data.samples(data.order[start + place])
            batch = Batch(inputs, labels, mask)
            if plan.spec.max_byzantine == 0 or not federation.attack.poisons:
                return batch
            view = client.replace(logits=logits)
            poisoned = federation.attack.poison(batch, view, key)
            return jax.tree.map(lambda a, b: jnp.where(client.byzantine, a, b), poisoned, batch)

        objective, privacy = plan.objective, federation.privacy
        samples = Samples(count=count, load=load, capacity=data.capacity, client=client.id)
        if isinstance(privacy, ExamplePrivacy):
            objective = privacy.private(objective, count, federation.algorithm.batch_size)
            samples = privacy.samples(samples)
        message, memory = federation.algorithm.step(objective, broadcast, samples, memory, key)
        standing = None
        if federation.fairness is not None:
            loss = federation.algorithm.starting_loss(plan.objective, broadcast, samples, message)
            standing = Standing(loss=loss, squared_norm=rows.squared_norms(message.update[None])[0])
        if isinstance(privacy, MessagePrivacy) and federation.noise_order == NOISE_FIRST:
            noise = jax.random.fold_in(noise_key, client.id)
            message = message.replace(update=privacy.privatise(message.update, noise))
        return message, standing, memory

    taken = jnp.minimum(ids, population - 1)  # an empty slot computes, and is not counted
    byzantine = state.byzantine[taken] & (ids < population)
    views = ClientView(
        id=taken,
        byzantine=byzantine,
        rank=_ranks(state)[taken],
        round=jnp.full_like(taken, state.round),
        classes=data.classes,
        peak=data.peak,
    )
    memory = jax.tree.map(lambda x: x[taken], state.clients)
    messages, standing, memory = map_clients(
        one_client,
        (federation, data, broadcast, client_key, noise_key),
        (views, data.start[taken], data.count[taken], memory),
        chunk=plan.chunk,
    )
    clients = jax.tree.map(lambda x, m: x.at[ids].set(m, mode="drop"), state.clients, memory)

    share = data.count[taken] * (ids < population)
    context = Context(
        key=server_key,
        round=state.round,
        weights=share / jnp.maximum(jnp.sum(share), 1),
        client_ids=ids,
        present=present,
        params=state.params,
        byzantine=byzantine,
    )
    return context, messages.replace(update=by_columns(messages.update)), standing, clients


def _broadcast(plan: Plan, state: FederationState) -> Broadcast:
    return Broadcast(
        params=plan.objective.unravel(state.params),
        model_state=state.model_state,
        round=state.round,
        server=state.server,
    )


def _root_phase(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    context: Context,
) -> tuple[Context, State]:
    """What the rule needs of the server's own samples, and the server's memory as a client."""
    needs, own, memory = federation.aggregator.needs_root, data.root_index(), state.root
    if "batch" in needs:
        context = context.replace(
            root_batch=Batch(*data.samples(own), mask=jnp.ones(own.shape, bool)),
            model_state=state.model_state,
            objective=plan.objective,
            client_chunk=plan.chunk,
        )
    if "update" in needs:

        def load(place: Array, mask: Array, key: Array) -> Batch:
            return Batch(*data.samples(own[place]), mask)

        message, memory = federation.algorithm.step(
            plan.objective,
            _broadcast(plan, state),
            Samples(count=jnp.int32(data.root), load=load, capacity=data.root),
            memory,
            _round_keys(state)[-1],
        )
        context = context.replace(root_update=replicate(message.update))
    return context, memory


def _attack_phase(
    federation: Federation,
    plan: Plan,
    state: FederationState,
    context: Context,
    own: Float[Array, "n d"],
    standing: Standing | None,
) -> tuple[Float[Array, "n d"], Weighed | None, State]:
    """What the server receives, how fairness weighs it, and the attack's new memory.

    Fairness weighs what the mechanism has made of an update, and attackers rewrite what would be
    received: with noise after the attack, the weights come last.
    """
    _, _, noise_key, attack_key, probe_key, _, _ = _round_keys(state)
    assert context.byzantine is not None
    privacy, weighed = federation.privacy, None
    noise_last = isinstance(privacy, MessagePrivacy) and federation.noise_order == ATTACK_FIRST
    if not noise_last:
        own, weighed = _weigh(federation, state, context, own, standing)
    defence = Defence(
        aggregator=federation.aggregator,
        state=state.aggregator,
        context=context.replace(key=probe_key),
    )
    sent, attack_state = attack_rows(
        federation.attack,
        own,
        context.byzantine,
        state.attack,
        context,
        attack_key,
        defence,
        plan.spec.max_byzantine,
        _ranks(state).at[context.client_ids].get(mode="clip"),
    )
    if isinstance(privacy, MessagePrivacy):
        crafted = context.byzantine[:, None]
        if noise_last:
            bounded = jax.vmap(privacy.bound)(sent)
            if privacy.clip_byzantine is False:
                bounded = jnp.where(crafted, sent.astype(bounded.dtype), bounded)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, context.client_ids)
            sent = by_columns(jax.vmap(privacy.cover)(bounded, keys).astype(sent.dtype))
        elif privacy.clip_byzantine and federation.attack.crafts:
            sent = jnp.where(crafted, jax.vmap(privacy.bound)(sent).astype(sent.dtype), sent)
    if noise_last:
        sent, weighed = _weigh(federation, state, context, sent, standing)
    return sent, weighed, attack_state


def _weigh(
    federation: Federation,
    state: FederationState,
    context: Context,
    updates: Float[Array, "n d"],
    standing: Standing | None,
) -> tuple[Float[Array, "n d"], Weighed | None]:
    """The updates times the factors of fairness; as they are without it."""
    if federation.fairness is None or standing is None:
        return updates, None
    gradients = federation.algorithm.gradients
    weighed = federation.fairness.weigh(
        standing.loss, standing.squared_norm, gradients, state.fairness, context
    )
    return updates * weighed.factors[:, None].astype(updates.dtype), weighed


def _bound(
    federation: Federation, state: FederationState, sent: Float[Array, "n d"]
) -> tuple[Float[Array, "n d"], Float[Array, " n"] | None]:
    """What is received as the central mechanism clips it, and the norms before."""
    if not isinstance(federation.privacy, CentralPrivacy):
        return sent, None
    return federation.privacy.bound(sent, state.privacy)


def _release(
    federation: Federation,
    plan: Plan,
    state: FederationState,
    context: Context,
    norms: Float[Array, " n"] | None,
    aggregate: Float[Array, " d"],
) -> tuple[Float[Array, " d"], State]:
    """The aggregate as the central mechanism releases it, and its new memory."""
    privacy = federation.privacy
    if not isinstance(privacy, CentralPrivacy) or norms is None:
        return aggregate, ()
    expected = federation.participation.expected(plan.spec.population)
    present = present_mask(context, norms.shape[0]).astype(norms.dtype)
    if isinstance(federation.aggregator, Mean):
        # The divisor must not tell how many took part.
        aggregate = aggregate * (jnp.sum(present) / expected).astype(aggregate.dtype)
    # No client has the number of the population: its noise is the server's.
    key = jax.random.fold_in(_round_keys(state)[2], plan.spec.population)
    separation = federation.participation.separation
    return privacy.release(aggregate, norms, present, expected, separation, state.privacy, key)


def _share(federation: Federation, plan: Plan, context: Context) -> Float[Array, ""]:
    """The share of the population that takes part; the expected one where that is private."""
    population = plan.spec.population
    if isinstance(federation.privacy, CentralPrivacy):
        return jnp.asarray(federation.participation.expected(population) / population)
    return jnp.sum(present_mask(context, plan.spec.cohort)) / population


def _ranks(state: FederationState) -> Int[Array, " K"]:
    """Of every Byzantine client its number among them."""
    return jnp.cumsum(state.byzantine, dtype=jnp.int32) - 1


def _mean_model_state(
    messages: ModelState, before: ModelState, present: Bool[Array, " n"]
) -> ModelState:
    """Batch statistics averaged over the clients that took part; all else stays as it was."""

    def mean(new: Array, old: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return old
        weights = present / jnp.maximum(jnp.sum(present), 1)
        return jnp.tensordot(weights, new, axes=1).astype(old.dtype)

    return jax.tree.map(mean, messages, before)
