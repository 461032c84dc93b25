"""The clients' half of the round: who takes part, what they train on, what they would send."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.attacks.views import ClientView, Learning
from jaxfl.clients import Broadcast, Message, Samples
from jaxfl.contracts import expect, expect_like, name_of, own_code
from jaxfl.data.federated import FederatedData
from jaxfl.devices import by_columns, map_clients
from jaxfl.federation import Federation
from jaxfl.models.objective import Bend, BentObjective, ModelState, Objective
from jaxfl.numerics import rows
from jaxfl.numerics.columns import mesh_kind
from jaxfl.numerics.stream import Stream
from jaxfl.privacy.deployment import NOISE_FIRST
from jaxfl.state import STREAM, FederationState, Plan, RoundKeys
from jaxfl.types import Batch, Context, State, Struct, present_mask


class Standing(Struct):
    """What clients say about themselves to be weighed fairly; of their clean update."""

    loss: Float[Array, " n"]
    """Training loss of the model they received."""
    squared_norm: Float[Array, " n"]


class Told(Struct):
    """What is known of every client's work besides its update; clients lead every array."""

    loss: Float[Array, " n"]
    model_state: ModelState
    steps: Float[Array, " n"]
    standing: Standing | None
    """None where nothing is weighed fairly."""
    memory: State
    """The client's own, new."""


class LocalWork(Struct):
    """What the cohort has done before any attack on messages."""

    context: Context
    updates: rows.Rows
    known: Told | None
    """None where the updates are a stream: its first pass tells."""

    @property
    def told(self) -> Told:
        """What was told with the updates; of a stream that nothing has read, a pass over it."""
        return told_with(self.updates, self.known)


class _Shared(Struct):
    """What all clients of a round have in common."""

    federation: Federation
    data: FederatedData
    broadcast: Broadcast
    client_key: Key[Array, ""]
    noise_key: Key[Array, ""]
    prepared: State
    """What the attack knows this round of how its clients are to train."""
    memory: State
    """The attack's."""


class _Own(Struct):
    """What each client has of its own; clients lead every array."""

    view: ClientView
    start: Int[Array, " n"]
    count: Int[Array, " n"]
    memory: State


@jax.named_scope("local work")
def work_locally(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    keys: RoundKeys,
) -> LocalWork:
    """Draws the cohort and computes every client's message, standing and new memory."""
    shared = _Shared(
        federation,
        data,
        broadcast(plan, state),
        keys.clients,
        keys.noise,
        _prepared(federation, plan, state),
        state.attack,
    )
    own, context = _draw_cohort(federation, plan, data, state, keys)
    one_client = functools.partial(_one_client, plan)

    @jax.named_scope("local work")  # of its own: a stream computes it wherever rows are asked for
    def work(own: _Own) -> tuple[Float[Array, "c d"], Told]:
        return map_clients(one_client, shared, own, chunk=plan.chunk)

    if plan.storage != STREAM:
        updates, told = work(own)
        return LocalWork(context=context, updates=by_columns(updates), known=told)
    assert context.byzantine is not None
    honest = ~context.byzantine & present_mask(context, plan.spec.cohort)
    stream = Stream(
        lambda index: work(jax.tree.map(lambda x: x[index], own)),
        (plan.spec.cohort, plan.spec.dim * federation.algorithm.width),
        plan.spec.dtype,
        plan.chunk * mesh_kind()[1],
        rows.watching(honest),
    )
    return LocalWork(context=context, updates=stream, known=None)


@jax.named_scope("cohort")
def _draw_cohort(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    keys: RoundKeys,
) -> tuple[_Own, Context]:
    """Who takes part, what each of them starts from, and what the server knows of them."""
    population = plan.spec.population
    ids, present = federation.cohort(state.byzantine, keys.cohort, state.round)
    taken = jnp.minimum(ids, population - 1)  # an empty slot computes, and is not counted
    byzantine = state.byzantine[taken] & (ids < population)
    own = _Own(
        view=_views(data, state, taken, byzantine),
        start=data.start[taken],
        count=data.count[taken],
        memory=jax.tree.map(lambda x: x[taken], state.clients),
    )
    share = data.count[taken] * (ids < population)
    context = Context(
        key=keys.server,
        round=state.round,
        weights=share / jnp.maximum(jnp.sum(share), 1),
        client_ids=ids,
        learning_rate=federation.optimizer.rate(state.round),
        present=present,
        params=state.params,
        segments=plan.spec.segments,
        byzantine=byzantine,
    )
    return own, context


def told_with(updates: rows.Rows, known: Told | None) -> Told:
    """What was told with the updates: known, or kept by the first pass over a stream."""
    if known is not None:
        return known
    assert isinstance(updates, Stream)
    return updates.kept.told


def broadcast(plan: Plan, state: FederationState) -> Broadcast:
    """What the server sends to every client."""
    return Broadcast(
        params=plan.objective.unravel(state.params),
        model_state=state.model_state,
        round=state.round,
        server=state.server,
    )


def train(
    federation: Federation,
    objective: Objective,
    received: Broadcast,
    samples: Samples,
    memory: State,
    key: Key[Array, ""],
    bend: Bend | None = None,
) -> tuple[Message, State]:
    """One client's algorithm, which sees its samples as the mechanism of privacy shows them.

    ``bend`` is what an attack makes of its gradients.
    """
    algorithm, privacy = federation.algorithm, federation.privacy
    own = privacy.checked("objective", objective, samples.count, algorithm.batch_size)
    if bend is not None:
        own = BentObjective(**vars(objective), inner=own, bend=bend)
    samples = privacy.checked("samples", samples)
    return algorithm.checked_step(own, received, samples, memory, key)


@jax.named_scope("attack")
def learned(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    key: Key[Array, ""],
) -> State:
    """The attack's memory, after it has learned from samples of the first Byzantine client."""
    attack = federation.attack
    if plan.spec.max_byzantine == 0 or not attack.learns:
        return state.attack
    first = jnp.argmax(state.byzantine)
    start, count = data.start[first], data.count[first]

    def load(size: int) -> Batch:
        place = jnp.arange(size, dtype=jnp.int32)
        index = data.order[start + place % jnp.maximum(count, 1)]
        return Batch(*data.samples(index), mask=place < count)

    own = Learning(
        params=state.params,
        model_state=state.model_state,
        round=state.round,
        key=key,
        objective=plan.objective,
        load=load,
        floor=data.floor,
        peak=data.peak,
        rare=data.rarest,
    )
    with own_code(attack, ".learn"):
        memory = attack.learn(own, state.attack)
    expect_like(f"{name_of(attack)}.learn returned the memory", memory, state.attack)
    return memory


def _prepared(federation: Federation, plan: Plan, state: FederationState) -> State:
    attack = federation.attack
    if plan.spec.max_byzantine == 0 or not attack.trains:
        return ()
    with own_code(attack, ".prepare"), jax.named_scope("attack"):
        return attack.prepare(state.params, state.attack)


def _bend(plan: Plan, shared: _Shared, own: _Own) -> Bend | None:
    """What becomes of the client's gradients where it is Byzantine and the attack trains."""
    attack = shared.federation.attack
    if plan.spec.max_byzantine == 0 or not attack.trains:
        return None

    def bend(gradient: Float[Array, " d"]) -> Float[Array, " d"]:
        with own_code(attack, ".bend"), jax.named_scope("attack"):
            bent = attack.bend(gradient, shared.prepared, own.view)
        expect_like(f"{name_of(attack)}.bend returned", bent, gradient)
        return jnp.where(own.view.byzantine, bent, gradient)

    return bend


def _one_client(plan: Plan, shared: _Shared, own: _Own) -> tuple[Float[Array, " m"], Told]:
    """One client's update, and what else is known of its work."""
    federation, received, view = shared.federation, shared.broadcast, own.view
    algorithm = federation.algorithm
    key = jax.random.fold_in(shared.client_key, view.id)
    samples = _samples(plan, shared, own)
    bend = _bend(plan, shared, own)
    message, memory = train(federation, plan.objective, received, samples, own.memory, key, bend)
    standing = None
    if federation.fairness is not None:
        with own_code(algorithm, ".starting_loss"):
            loss = algorithm.starting_loss(plan.objective, received, samples, message)
        expect(f"{name_of(algorithm)}.starting_loss returned", loss, (), "the mean over samples")
        standing = Standing(loss=loss, squared_norm=rows.squared_norms(message.update[None])[0])
    if federation.noise_order == NOISE_FIRST:
        noise_key = jax.random.fold_in(shared.noise_key, view.id)
        with jax.named_scope("privacy"):
            update = federation.privacy.checked("message", message.update, noise_key)
        message = message.replace(update=update)
    told = Told(message.loss, message.model_state, message.steps, standing, memory)
    return message.update.astype(plan.message_type), told


def _samples(plan: Plan, shared: _Shared, own: _Own) -> Samples:
    """The client's own samples, poisoned where it is Byzantine and the attack is on data."""
    data, attack, received = shared.data, shared.federation.attack, shared.broadcast

    def logits(inputs: Array) -> Array:
        return plan.objective.logits(received.params, received.model_state, inputs)

    @jax.named_scope("cohort")
    def load(place: Array, mask: Array, key: Array) -> Batch:
        batch = Batch(*data.samples(data.order[own.start + place]), mask)
        if plan.spec.max_byzantine == 0 or not attack.poisons:
            return batch
        with own_code(attack, ".poison"), jax.named_scope("attack"):
            view = own.view.replace(logits=logits, memory=shared.memory, rare=data.draw_rare)
            poisoned = attack.poison(batch, view, key)
        expect_like(f"{name_of(attack)}.poison returned", poisoned, batch)
        return jax.tree.map(lambda a, b: jnp.where(own.view.byzantine, a, b), poisoned, batch)

    return Samples(count=own.count, load=load, capacity=data.capacity, client=own.view.id)


def _views(
    data: FederatedData,
    state: FederationState,
    taken: Int[Array, " n"],
    byzantine: Bool[Array, " n"],
) -> ClientView:
    return ClientView(
        id=taken,
        byzantine=byzantine,
        rank=state.ranks[taken],
        round=jnp.full_like(taken, state.round),
        classes=data.classes,
        peak=data.peak,
    )
