"""THE round: one pure function of the federation's state, with all clients as a leading axis.

    cohort -> data poisoning and local work -> clip and noise -> attack -> aggregate -> server step

Everything in it is traced into one program. ``Federation`` holds the parts (a pytree, so any
number in it can be swept by ``vmap``), ``Plan`` the sizes and choices that shape the program.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Aggregator, Mean
from jaxfl.attacks import Attack, NoAttack
from jaxfl.attacks.base import ClientView, Defence, attack_rows
from jaxfl.clients import Broadcast, ClientAlgorithm, FedSGD, Message, Samples
from jaxfl.component import Component, field
from jaxfl.data.dataset import FederatedData
from jaxfl.devices import by_columns, map_clients, replicate
from jaxfl.models.objective import Objective, Statistics
from jaxfl.numerics import rows
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.participation import Full, Participation, Uniform
from jaxfl.privacy import MessagePrivacy
from jaxfl.types import Batch, Context, Info, PyTree, Spec, State, Struct, present_mask

NOISE_FIRST, ATTACK_FIRST = "noise_then_attack", "attack_then_noise"


class Federation(Component):
    """The parts of a federation. Each is replaceable; numbers in them are leaves."""

    algorithm: ClientAlgorithm = FedSGD(batch_size=32)
    attack: Attack = NoAttack()
    aggregator: Aggregator = Mean()
    optimizer: Optimizer = SGD(learning_rate=0.1)
    participation: Participation = Full()
    privacy: MessagePrivacy | None = None
    byzantine: int = field(default=0, at_least=0)
    """How many clients of the population are Byzantine; which ones, the seed decides."""
    byzantine_per_round: int | None = field(default=None, at_least=0)
    """How many of them are in every cohort of ``Uniform`` participation; None: as it happens.
    Fixing it changes what subsampling adds to privacy."""
    noise: str = field(default=NOISE_FIRST, choices=(NOISE_FIRST, ATTACK_FIRST))
    """``noise_then_attack``: all follow the privacy mechanism, attackers then rewrite their
    messages; what they craft is neither clipped nor noised. ``attack_then_noise``: the attack
    works on clean updates, and every message, also a crafted one, is clipped and noised."""

    def check(self, population: int, root: int = 0) -> None:
        """Raises ValueError where the parts do not fit together.

        Args:
          population: how many clients there are.
          root: how many samples the server has of its own.
        """
        if self.byzantine > population:
            raise ValueError(
                f"byzantine must be at most the number of clients, {population}; "
                f"got {self.byzantine}"
            )
        self._check_fixed(population)
        self.aggregator.check(self.participation.cohort(population))
        if self.aggregator.needs_root and not root:
            raise ValueError(
                f"{self.aggregator} needs samples of the server's own: set root of the data, such "
                "as dataset.split(partition, clients, root=RootData(size=100)) or, in a file, "
                "data.root = {size = 100}"
            )
        if self.attack.needs_root and "update" not in self.aggregator.needs_root:
            raise ValueError(
                f"{self.attack} works against a defence with an update of the server's own, such "
                f"as FLTrust; got {self.aggregator}"
            )
        sample = functools.partial(self.participation.sample, population)
        _, present = jax.eval_shape(sample, jax.random.key(0))
        if present is not None and not self.aggregator.accepts_absent:
            raise ValueError(
                f"{self.aggregator} cannot leave out absent clients, so it does not go with "
                f"{type(self.participation).__name__} participation; use Full or Uniform"
            )

    def _check_fixed(self, population: int) -> None:
        fixed, cohort = self.byzantine_per_round, self.participation.cohort(population)
        if fixed is None:
            return
        if not isinstance(self.participation, Uniform):
            raise ValueError(
                "byzantine_per_round goes with Uniform participation; got "
                f"{type(self.participation).__name__}"
            )
        least = max(0, cohort - (population - self.byzantine))
        if not least <= fixed <= min(self.byzantine, cohort):
            raise ValueError(
                f"byzantine_per_round must be from {least} to {min(self.byzantine, cohort)} with "
                f"{self.byzantine} Byzantine of {population} clients and a cohort of {cohort}; "
                f"got {fixed}"
            )

    def cohort(
        self, byzantine: Bool[Array, " K"], key: Key[Array, ""]
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        """The clients of a round: ids, and which slots hold a client."""
        population = byzantine.shape[0]
        if self.byzantine_per_round is None:
            return self.participation.sample(population, key)
        draw_key, order_key = jax.random.split(key)
        drawn = jax.random.permutation(draw_key, population)
        # Byzantine clients first, each kind in a random order.
        kinds = drawn[jnp.argsort(~byzantine[drawn], stable=True)]
        cohort, fixed = self.participation.cohort(population), self.byzantine_per_round
        first = jnp.arange(cohort)
        place = jnp.where(first < fixed, first, first - fixed + self.byzantine)
        return jax.random.permutation(order_key, kinds[place]).astype(jnp.int32), None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What shapes the program: static and hashable."""

    objective: Objective
    spec: Spec
    chunk: int


class FederationState(Struct):
    """All that a run carries from round to round; a checkpoint of it resumes the run."""

    params: Float[Array, " d"]
    statistics: Statistics
    optimizer: PyTree
    clients: State
    """Memory of every client of the population, leading axis K."""
    attack: State
    aggregator: State
    root: State
    """Memory of the server as a client of its own; () where the rule needs no root update."""
    byzantine: Bool[Array, " K"]
    round: Int[Array, ""]
    key: Key[Array, ""]


class Exchange(Struct):
    """The messages of one round, for study: what would have been sent, and what was."""

    ids: Int[Array, " n"]
    byzantine: Bool[Array, " n"]
    present: Bool[Array, " n"] | None
    own: Float[Array, "n d"]
    """Every client's own update, before any attack on messages."""
    sent: Float[Array, "n d"]
    """What the server receives."""


class RoundRecord(Struct):
    """What is written down about a round."""

    loss: Float[Array, ""]
    """Training loss, mean over the honest clients of the cohort."""
    honest_norm: Float[Array, ""]
    """Mean norm of the honest messages received; here and below, of those that are finite."""
    byzantine_norm: Float[Array, ""]
    """Mean norm of the Byzantine messages received (NaN where there are none)."""
    aggregate_norm: Float[Array, ""]
    distance: Float[Array, ""]
    """From the aggregate to the mean of the honest messages."""
    cosine: Float[Array, ""]
    """Between the aggregate and the mean of the honest messages."""
    honest_selected: Float[Array, ""]
    """Share of the honest clients that the rule selected (NaN where a rule selects nobody)."""
    malicious_selected: Float[Array, ""]
    """Share of the Byzantine clients that the rule selected."""
    malicious_weight: Float[Array, ""]
    """Share of the aggregate's weight that Byzantine clients got (NaN for coordinatewise rules)."""
    cohort: Int[Array, ""]
    """Clients that took part."""


def init_state(federation: Federation, plan: Plan, seed: Int[Array, ""] | int) -> FederationState:
    """The state before the first round; the seed decides parameters and who is Byzantine."""
    spec = plan.spec
    model_key, byzantine_key, run_key = jax.random.split(jax.random.key(seed), 3)
    params, statistics = plan.objective.init(model_key)
    one_client = federation.algorithm.init(spec)
    return FederationState(
        params=params,
        statistics=statistics,
        optimizer=federation.optimizer.transform().init(params),
        clients=jax.tree.map(lambda x: jnp.tile(x, (spec.population, *[1] * x.ndim)), one_client),
        attack=federation.attack.init(spec),
        aggregator=federation.aggregator.init(spec),
        root=one_client if "update" in federation.aggregator.needs_root else (),
        byzantine=jax.random.permutation(byzantine_key, spec.population) < federation.byzantine,
        round=jnp.zeros((), jnp.int32),
        key=run_key,
    )


def run_round(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState
) -> tuple[FederationState, RoundRecord]:
    """One round: pure, and one program."""
    context, messages, clients = _client_phase(federation, plan, data, state)
    context, root = _root_phase(federation, plan, data, state, context)
    sent, attack_state = _attack_phase(federation, plan, state, context, messages.update)
    result = federation.aggregator.aggregate(sent, state.aggregator, context)

    change: Any
    change, optimizer = federation.optimizer.transform().update(
        result.update, state.optimizer, state.params
    )
    params: Any = optax.apply_updates(state.params, change)
    present = present_mask(context, sent.shape[0])
    new_state = state.replace(
        params=replicate(params),
        statistics=_mean_statistics(messages.statistics, state.statistics, present),
        optimizer=optimizer,
        clients=clients,
        attack=attack_state,
        aggregator=result.state,
        root=root,
        round=state.round + 1,
    )
    return new_state, _record(context, messages.loss, sent, result.update, result.info)


def exchange(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState
) -> Exchange:
    """The messages of the next round, which is not taken."""
    context, messages, _ = _client_phase(federation, plan, data, state)
    context, _ = _root_phase(federation, plan, data, state, context)
    own = messages.update
    sent, _ = _attack_phase(federation, plan, state, context, own)
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
) -> tuple[Context, Message, State]:
    """Draws the cohort and computes every client's message and new memory."""
    cohort_key, client_key, noise_key, _, _, server_key, _ = _round_keys(state)
    population = plan.spec.population
    ids, present = federation.cohort(state.byzantine, cohort_key)
    broadcast = Broadcast(params=plan.objective.unravel(state.params), statistics=state.statistics)
    noise_first = federation.privacy is not None and federation.noise == NOISE_FIRST

    def one_client(shared: PyTree, arguments: PyTree) -> tuple[Message, State]:
        federation, data, broadcast, client_key, noise_key = shared
        client, start, count, memory = arguments
        key = jax.random.fold_in(client_key, client.id)

        def logits(inputs: Array) -> Array:
            return plan.objective.logits(broadcast.params, broadcast.statistics, inputs)

        def load(place: Array, mask: Array, key: Array) -> Batch:
            inputs, labels = data.samples(data.order[start + place])
            batch = Batch(inputs, labels, mask)
            if plan.spec.max_byzantine == 0 or not federation.attack.poisons:
                return batch
            view = client.replace(logits=logits)
            poisoned = federation.attack.poison(batch, view, key)
            return jax.tree.map(lambda a, b: jnp.where(client.byzantine, a, b), poisoned, batch)

        samples = Samples(count=count, load=load, capacity=data.capacity)
        message, memory = federation.algorithm.step(plan.objective, broadcast, samples, memory, key)
        if noise_first:
            assert federation.privacy is not None
            noise = jax.random.fold_in(noise_key, client.id)
            message = message.replace(update=federation.privacy.privatise(message.update, noise))
        return message, memory

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
    messages, memory = map_clients(
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
    return context, messages.replace(update=by_columns(messages.update)), clients


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
            statistics=state.statistics,
            objective=plan.objective,
            client_chunk=plan.chunk,
        )
    if "update" in needs:

        def load(place: Array, mask: Array, key: Array) -> Batch:
            return Batch(*data.samples(own[place]), mask)

        message, memory = federation.algorithm.step(
            plan.objective,
            Broadcast(params=plan.objective.unravel(state.params), statistics=state.statistics),
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
) -> tuple[Float[Array, "n d"], State]:
    """What the clients send, and the attack's new memory."""
    _, _, noise_key, attack_key, probe_key, _, _ = _round_keys(state)
    assert context.byzantine is not None
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
    if federation.privacy is not None and federation.noise == ATTACK_FIRST:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, context.client_ids)
        sent = by_columns(jax.vmap(federation.privacy.privatise)(sent, keys))
    return sent, attack_state


def _ranks(state: FederationState) -> Int[Array, " K"]:
    """Of every Byzantine client its number among them."""
    return jnp.cumsum(state.byzantine, dtype=jnp.int32) - 1


def _mean_statistics(
    messages: Statistics, before: Statistics, present: Bool[Array, " n"]
) -> Statistics:
    """Batch statistics averaged over the clients that took part; all else stays as it was."""

    def mean(new: Array, old: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return old
        weights = present / jnp.maximum(jnp.sum(present), 1)
        return jnp.tensordot(weights, new, axes=1).astype(old.dtype)

    return jax.tree.map(mean, messages, before)


def _record(
    context: Context,
    losses: Float[Array, " n"],
    sent: Float[Array, "n d"],
    aggregate: Float[Array, " d"],
    info: Info,
) -> RoundRecord:
    assert context.byzantine is not None
    squares = rows.squared_norms(sent)
    # A message that is not finite has no distance: it is left out here as rules leave it out.
    present = present_mask(context, sent.shape[0])
    finite = present & jnp.isfinite(squares)
    byzantine, honest = context.byzantine & present, ~context.byzantine & present

    def mean_over(mask: Array, values: Array | None) -> Array:
        if values is None:
            return jnp.full((), jnp.nan)
        count = jnp.sum(mask)
        total = jnp.sum(jnp.where(mask, values, 0))
        return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)

    measured = honest & finite
    weights = measured / jnp.maximum(jnp.sum(measured), 1)
    target = rows.combine(weights, sent, jnp.zeros((0, sent.shape[1]), sent.dtype))
    norms = rows.safe_sqrt(squares)
    products = rows.squared_norms(jnp.stack([aggregate, target, aggregate - target]))
    aggregate_norm, target_norm, distance = rows.safe_sqrt(products)
    inner = jnp.dot(aggregate, target, precision="highest")
    if info.weights is None:
        malicious_weight = jnp.full((), jnp.nan)
    else:
        mass = jnp.sum(jnp.where(byzantine, info.weights, 0))
        malicious_weight = rows.safe_ratio(mass, jnp.sum(info.weights))
    return RoundRecord(
        loss=mean_over(honest, losses),
        honest_norm=mean_over(measured, norms),
        byzantine_norm=mean_over(byzantine & finite, norms),
        aggregate_norm=aggregate_norm,
        distance=distance,
        cosine=rows.safe_ratio(inner, aggregate_norm * target_norm),
        honest_selected=mean_over(honest, info.selected),
        malicious_selected=mean_over(byzantine, info.selected),
        malicious_weight=malicious_weight,
        cohort=jnp.sum(present, dtype=jnp.int32),
    )
