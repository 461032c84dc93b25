"""Many rounds: blocks of a ``scan``, evaluation between them, and what comes out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxfl.aggregators import Aggregator, Mean
from jaxfl.attacks import Attack, NoAttack
from jaxfl.clients import Broadcast, ClientAlgorithm, FedSGD, Samples
from jaxfl.data.dataset import FederatedData
from jaxfl.devices import Device, check_way, choose_chunk, compile_for, copy_to, working_set
from jaxfl.federation import (
    NOISE_FIRST,
    Exchange,
    Federation,
    FederationState,
    Plan,
    RoundRecord,
    exchange,
    init_state,
    run_round,
)
from jaxfl.models.objective import Factory, Loss, Objective
from jaxfl.models.zoo import Model
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.participation import Full, Participation
from jaxfl.privacy import MessagePrivacy
from jaxfl.types import Batch, PyTree, Spec, Struct

EVALUATION_BATCH = 500


class Evaluation(Struct):
    """How good the model is after a number of rounds."""

    round: Int[Array, ""]
    accuracy: Float[Array, ""]
    """On the test set."""
    loss: Float[Array, ""]
    """Mean test loss."""
    client_accuracy: Float[Array, " K"] | None
    """On each client's own training samples; None unless asked for."""


def make_plan(
    federation: Federation,
    data: FederatedData,
    model: Model | nnx.Module | Factory,
    *,
    loss: Loss | None = None,
    client_chunk: int | None = None,
) -> Plan:
    """Sizes and choices that shape the program, after checking that the parts fit together.

    Raises:
      ValueError: more Byzantine clients than clients, a rule that is not defined for the cohort
        or cannot leave out absent clients, a chunk below 1.
    """
    population = data.clients
    if federation.byzantine > population:
        raise ValueError(
            f"byzantine must be at most the number of clients, {population}; "
            f"got {federation.byzantine}"
        )
    cohort = federation.participation.cohort(population)
    federation.aggregator.check(cohort)
    _, present = jax.eval_shape(
        lambda key: federation.participation.sample(population, key), jax.random.key(0)
    )
    if present is not None and not federation.aggregator.accepts_absent:
        raise ValueError(
            f"{federation.aggregator} cannot leave out absent clients, so it does not go with "
            f"{type(federation.participation).__name__} participation; use Full or Uniform"
        )
    if client_chunk is not None and client_chunk < 1:
        raise ValueError(f"client_chunk must be at least 1; got {client_chunk}")
    extra = {} if loss is None else {"loss": loss}
    objective = Objective.of(model, data.sample_shape, data.classes, **extra)
    spec = Spec(
        population=population,
        cohort=cohort,
        dim=objective.dim,
        max_byzantine=min(federation.byzantine, cohort),
    )
    chunk = client_chunk or _automatic_chunk(federation, objective, data, spec)
    return Plan(objective=objective, spec=spec, chunk=chunk)


def _automatic_chunk(
    federation: Federation, objective: Objective, data: FederatedData, spec: Spec
) -> int:
    def one_client(params: Array, statistics: PyTree, key: Array) -> PyTree:
        def load(place: Array, mask: Array, key: Array) -> Batch:
            return Batch(data.prepare(data.inputs[place]), data.labels[place], mask)

        samples = Samples(jnp.int32(1), load, data.capacity)
        broadcast = Broadcast(objective.unravel(params), statistics)
        memory = federation.algorithm.init(spec)
        return federation.algorithm.step(objective, broadcast, samples, memory, key)

    key = jax.random.key(0)
    params, statistics = jax.eval_shape(objective.init, key)
    return choose_chunk(spec.cohort, working_set(one_client, params, statistics, key))


def run_block(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    rounds: int,
    *,
    client_accuracy: bool = False,
) -> tuple[FederationState, RoundRecord, Evaluation]:
    """``rounds`` rounds in one ``scan``, then an evaluation. Pure."""
    state, records = run_rounds(federation, plan, data, state, rounds=rounds)
    return state, records, evaluate(plan, data, state, client_accuracy=client_accuracy)


def run_rounds(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState, *, rounds: int
) -> tuple[FederationState, RoundRecord]:
    """``rounds`` rounds in one ``scan``: one program, compiled once. Pure."""

    def body(state: FederationState, _: None) -> tuple[FederationState, RoundRecord]:
        return run_round(federation, plan, data, state)

    return jax.lax.scan(body, state, None, length=rounds)


def run(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    seed: Int[Array, ""] | int,
    *,
    rounds: int,
    evaluate_every: int,
) -> tuple[FederationState, RoundRecord, Evaluation]:
    """A whole run as one pure function: ``vmap`` it over seeds, partitions, hyper-parameters.

    ``rounds`` must be a multiple of ``evaluate_every``. Records have a leading axis of rounds,
    evaluations one of blocks.
    """
    if evaluate_every < 1 or rounds % evaluate_every:
        raise ValueError(
            f"rounds must be a multiple of evaluate_every; got {rounds} and {evaluate_every}"
        )

    def block(state: FederationState, _: None) -> tuple[FederationState, PyTree]:
        state, records, evaluation = run_block(federation, plan, data, state, evaluate_every)
        return state, (records, evaluation)

    state, (records, evaluations) = jax.lax.scan(
        block, init_state(federation, plan, seed), None, length=rounds // evaluate_every
    )
    records = jax.tree.map(lambda x: x.reshape(rounds, *x.shape[2:]), records)
    return state, records, evaluations


def evaluate(
    plan: Plan, data: FederatedData, state: FederationState, *, client_accuracy: bool = False
) -> Evaluation:
    """Test accuracy and loss, and if asked the accuracy on each client's own samples."""

    def over(inputs: Array, labels: Array) -> tuple[Array, Array]:
        def one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
            # One sample a call, vmapped by ``map``: a remainder needs no padding.
            losses, correct = plan.objective.evaluate(
                state.params, state.statistics, data.prepare(pair[0][None]), pair[1][None]
            )
            return losses[0], correct[0]

        return jax.lax.map(one, (inputs, labels), batch_size=EVALUATION_BATCH)

    losses, correct = over(data.test_inputs, data.test_labels)
    per_client = None
    if client_accuracy:
        _, own = over(data.inputs, data.labels)
        total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(own[data.order])])
        per_client = (total[data.start + data.count] - total[data.start]) / data.count
    return Evaluation(
        round=state.round,
        accuracy=jnp.mean(correct),
        loss=jnp.mean(losses),
        client_accuracy=per_client,
    )


@dataclasses.dataclass(frozen=True)
class History:
    """What a run leaves behind, as NumPy arrays; with several seeds they lead by a seed axis."""

    records: RoundRecord
    """One entry per round."""
    evaluations: Evaluation
    """One entry per evaluation."""
    state: FederationState
    simulation: "Simulation" = dataclasses.field(repr=False)

    @property
    def rounds(self) -> np.ndarray:
        """The rounds after which the model was evaluated."""
        return np.asarray(self.evaluations.round)

    @property
    def accuracy(self) -> np.ndarray:
        """Test accuracy at each evaluation."""
        return np.asarray(self.evaluations.accuracy)

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last round, mean over seeds."""
        return float(np.mean(self.accuracy[..., -1]))

    @property
    def diverged(self) -> bool:
        """Whether, in any seed, the parameters or the last test loss are not finite.

        The loss counts because rules leave out rows that are not finite: parameters so large that
        no client can compute a gradient then stay where they are.
        """
        ends = np.asarray(self.state.params), np.asarray(self.evaluations.loss)[..., -1]
        return not all(bool(np.all(np.isfinite(x))) for x in ends)

    @property
    def model(self) -> nnx.Module:
        """The trained model, in evaluation mode (of the first seed)."""
        state = self.state
        if np.ndim(state.params) == 2:
            state = jax.tree.map(lambda x: x[0], state)
        return self.simulation.plan.objective.module(state.params, state.statistics)


class Simulation:
    """A federation on its data, ready to run: compiles once, then runs blocks of rounds.

    ``simulate`` is the short way. This class keeps the state between calls, hands out the
    messages of a round, and runs several seeds at once, each with its own partition if ``data``
    is a sequence.

    Args:
      federation: the parts.
      data: federated data; one entry per seed for partitions that differ.
      model: configuration, NNX module, or function from ``nnx.Rngs`` to a module.
      seeds: each is a run of its own; all run in one program.
      evaluate_every: rounds per block, and between evaluations.
      client_accuracy: evaluate also on each client's own samples.
      client_chunk: clients vmapped at once; chosen for the backend and model unless given.
      devices: mapped over these; the first device alone unless given.
      way: ``"shard_map"`` or ``"pmap"``, see ``jaxfl.devices``.
      loss: per-sample loss of logits and labels; cross-entropy unless given.

    Raises:
      ValueError: the parts do not fit together.
    """

    def __init__(
        self,
        federation: Federation,
        data: FederatedData | Sequence[FederatedData],
        model: Model | nnx.Module | Factory,
        *,
        seeds: Sequence[int] = (0,),
        evaluate_every: int = 10,
        client_accuracy: bool = False,
        client_chunk: int | None = None,
        devices: Sequence[Device] | None = None,
        way: str = "shard_map",
        loss: Loss | None = None,
    ) -> None:
        if evaluate_every < 1:
            raise ValueError(f"evaluate_every must be at least 1; got {evaluate_every}")
        check_way(way)
        if not seeds:
            raise ValueError("seeds must name at least one seed")
        own = None if isinstance(data, FederatedData) else list(data)
        if own is not None and len(own) != len(seeds):
            raise ValueError(f"got {len(own)} partitions for {len(seeds)} seeds")
        first = data if isinstance(data, FederatedData) else data[0]
        self.several = len(seeds) > 1
        whole = first if own is None or not self.several else first.stack(own[1:])
        self.data: FederatedData = copy_to(whole, devices)
        self.federation = federation
        self.plan = make_plan(federation, self.data, model, loss=loss, client_chunk=client_chunk)
        self.evaluate_every = evaluate_every
        self._client_accuracy = client_accuracy
        self._program = functools.partial(
            _program,
            plan=self.plan,
            several=self.several,
            way=way,
            devices=None if devices is None else tuple(devices),
        )
        init = functools.partial(init_state, federation, self.plan)
        state = jax.vmap(init)(jnp.asarray(seeds)) if self.several else init(seeds[0])
        self.state: FederationState = copy_to(state, devices)

    def run(
        self, rounds: int, progress: Callable[[Evaluation, RoundRecord], None] | None = None
    ) -> History:
        """Runs more rounds, from where the last call stopped.

        ``progress`` is called after every block with its evaluation and records.
        """
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {rounds}")
        records, evaluations = [], []
        done = 0
        while done < rounds:
            length = min(self.evaluate_every, rounds - done)
            self.state, record = self.block(length)(self.federation, self.data, self.state)
            record, evaluation = jax.device_get((record, self.evaluate()))
            records.append(record)
            evaluations.append(evaluation)
            done += length
            if progress is not None:
                progress(evaluation, record)
        axis = 1 if self.several else 0
        return History(
            records=jax.tree.map(lambda *x: np.concatenate(x, axis=axis), *records),
            evaluations=jax.tree.map(lambda *x: np.stack(x, axis=axis), *evaluations),
            state=jax.tree.map(jnp.copy, self.state),
            simulation=self,
        )

    def block(self, rounds: int) -> Callable[..., PyTree]:
        """The compiled program of so many rounds: (federation, data, state) to (state, records).

        It takes over the memory of the state it is given.
        """
        return self._program(run_rounds, donate=(2,), rounds=rounds)

    def evaluate(self) -> Evaluation:
        """How good the model is now."""
        # Without what evaluation does not read, all rules and attacks share one program.
        state = self.state.replace(optimizer=(), clients=(), attack=(), aggregator=())
        program = self._program(_evaluate, client_accuracy=self._client_accuracy)
        return program(None, self.data, state)

    def messages(self) -> Exchange:
        """The ``[n, d]`` updates of the next round, before and after the attack; takes no step."""
        return self._program(exchange)(self.federation, self.data, self.state)


def _evaluate(
    _: None, plan: Plan, data: FederatedData, state: FederationState, *, client_accuracy: bool
) -> Evaluation:
    return evaluate(plan, data, state, client_accuracy=client_accuracy)


@functools.lru_cache(maxsize=64)
def _program(
    function: Callable[..., PyTree],
    *,
    plan: Plan,
    several: bool,
    way: str,
    devices: tuple[Device, ...] | None,
    donate: tuple[int, ...] = (),
    **static: Any,
) -> Callable[..., PyTree]:
    """A function of (federation, plan, data, state), compiled; equal plans share programs."""

    def one_seed(federation: Any, data: FederatedData, state: FederationState) -> PyTree:
        return function(federation, plan, data, state, **static)

    def all_seeds(federation: Any, data: FederatedData, state: FederationState) -> PyTree:
        partitions = data.axes() if data.start.ndim > 1 else None
        return jax.vmap(one_seed, in_axes=(None, partitions, 0))(federation, data, state)

    return compile_for(all_seeds if several else one_seed, way=way, devices=devices, donate=donate)


def simulate(
    *,
    model: Model | nnx.Module | Factory,
    data: FederatedData,
    rounds: int,
    attack: Attack = NoAttack(),
    aggregator: Aggregator = Mean(),
    byzantine: int = 0,
    algorithm: ClientAlgorithm = FedSGD(batch_size=32),
    optimizer: Optimizer = SGD(learning_rate=0.1),
    participation: Participation = Full(),
    privacy: MessagePrivacy | None = None,
    noise: str = NOISE_FIRST,
    seed: int = 0,
    evaluate_every: int = 10,
    progress: Callable[[Evaluation, RoundRecord], None] | None = None,
    **settings: Any,
) -> History:
    """Simulates a federation: the short way in.

    ``settings`` are those of ``Simulation``: ``client_chunk``, ``devices``, ``way``,
    ``client_accuracy``, ``loss``.

    Example:
      >>> data = jaxfl.data.digits().split(Dirichlet(alpha=1.0), clients=50)
      >>> history = jaxfl.simulate(model=MLP(), data=data, attack=ALIE(z=1.0), byzantine=10,
      ...                          aggregator=Krum(f=10), rounds=200)
      >>> history.final_accuracy

    Raises:
      ValueError: the parts do not fit together.
    """
    federation = Federation(
        algorithm=algorithm,
        attack=attack,
        aggregator=aggregator,
        optimizer=optimizer,
        participation=participation,
        privacy=privacy,
        byzantine=byzantine,
        noise=noise,
    )
    simulation = Simulation(
        federation, data, model, seeds=(seed,), evaluate_every=evaluate_every, **settings
    )
    return simulation.run(rounds, progress)
