"""A federation that runs: its state and its compiled programs."""

import dataclasses
import functools
import signal
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfl.arguments import integer, truth
from jaxfl.blocks import run_rounds
from jaxfl.contracts import has_own_code
from jaxfl.data.federated import FederatedData
from jaxfl.devices import Device, apart, check_way, copy_to
from jaxfl.evaluation import Evaluation, evaluate
from jaxfl.federation import Federation
from jaxfl.given import (
    as_one_program,
    check_devices,
    checked_honest,
    checked_seeds,
    partitions_and_parts,
    stacked,
)
from jaxfl.history import History
from jaxfl.models.objective import Factory, Loss
from jaxfl.models.zoo import Model
from jaxfl.plan import AUTOMATIC, make_plan
from jaxfl.programs import make_ready
from jaxfl.progress import Progress, follow
from jaxfl.record import RoundRecord
from jaxfl.round import Exchange, exchange
from jaxfl.seeds import axes_of, over_seeds
from jaxfl.signals import StopSignals
from jaxfl.state import FederationState, Plan, init_state
from jaxfl.types import PyTree


class Simulation:
    """A federation on its data, ready to run: compiles once, then runs blocks of rounds.

    ``simulate`` is the short way. This class keeps the state between calls, hands out the
    messages of a round, and runs several seeds at once, each with its own partition if ``data``
    is a sequence, and its own numbers (learning rate, strength of the attack, Byzantine clients)
    if ``federation`` is one.

    Args:
      federation: the parts; one entry per seed for parts that differ in their leaves, or in
        ``byzantine`` (above 0; the rules' own ``f`` must not differ).
      data: federated data; one entry per seed for partitions that differ.
      model: configuration, NNX module, or function from ``nnx.Rngs`` to a module.
      seeds: each is a run of its own; all run in one program.
      honest: the honest clients of every run, masks [runs, clients], such as a law's ``sample``;
        all others are Byzantine, at most ``byzantine`` of them. Without it the seeds decide.
      evaluate_every: rounds per block, and between evaluations.
      client_accuracy: evaluate also on each client's own samples.
      client_chunk: clients vmapped at once; chosen for the backend and model unless given.
      devices: mapped over these; the first device alone unless given.
      way: ``"shard_map"`` or ``"pmap"``, see ``jaxfl.devices``.
      loss: per-sample loss of logits and labels; cross-entropy unless given.
      storage: of a round's updates: ``"matrix"``; ``"bfloat16"``, at half the size; ``"stream"``,
        where they are computed anew in every pass over them, a chunk of clients at a time, and
        never all held; ``"auto"`` chooses, see ``make_plan``.
      signs: record in each round the shares of positive and negative coordinates of what was sent.

    Raises:
      ValueError: the parts do not fit together.

    >>> data = jaxfl.data.synthetic(samples=40, features=2, classes=2)
    >>> data = data.split(jaxfl.data.IID(), clients=4)
    >>> simulation = Simulation(jaxfl.Federation(), data, jaxfl.models.Softmax())
    >>> simulation.run(2).records.loss.shape
    (2,)
    """

    def __init__(
        self,
        federation: Federation | Sequence[Federation],
        data: FederatedData | Sequence[FederatedData],
        model: Model | nnx.Module | Factory,
        *,
        seeds: Sequence[int] | np.ndarray = (0,),
        honest: Array | np.ndarray | None = None,
        evaluate_every: int = 10,
        client_accuracy: bool = False,
        client_chunk: int | None = None,
        devices: Sequence[Device] | None = None,
        way: str = "shard_map",
        loss: Loss | None = None,
        storage: str = AUTOMATIC,
        signs: bool = False,
    ) -> None:
        seeds = checked_seeds(seeds)
        self.seeds = tuple(seeds)
        self.evaluate_every = integer(evaluate_every, "evaluate_every", 1)
        partitions, given = partitions_and_parts(federation, data, len(seeds))
        parts, attackers = as_one_program(given)
        check_way(way)
        check_devices(devices)
        self.several = len(seeds) > 1
        whole = partitions[0].stack(partitions[1:]) if len(partitions) > 1 else partitions[0]
        self.data: FederatedData = copy_to(whole, devices)
        self.federation, own = stacked(parts)
        plan = make_plan(
            parts[0],
            self.data,
            model,
            loss=loss,
            client_chunk=client_chunk,
            runs=len(seeds),
            storage=storage,
            turns=True,
            client_accuracy=client_accuracy,
        )
        self.plan = dataclasses.replace(plan, signs=truth(signs, "signs"))
        for part in parts[1:]:
            part.check(self.data.clients, self.data.root, self.data.rare)
        self._client_accuracy = client_accuracy
        self._personal = parts[0].algorithm.personal_class if client_accuracy else None
        self._backdoor = parts[0].attack.backdoor if parts[0].byzantine else None
        self._program = functools.partial(
            over_seeds,
            plan=self.plan,
            several=self.several,
            own=own,
            way=way,
            devices=None if devices is None else tuple(devices),
        )

        def init(parts: Federation, count: Array | int, seed: Array | int) -> FederationState:
            return init_state(parts, self.plan, seed, count)

        if self.several:
            over = jax.vmap(init, in_axes=(axes_of(self.federation, own), 0, 0))
            counts = jnp.broadcast_to(jnp.asarray(attackers), len(seeds))
            state = over(self.federation, counts, jnp.asarray(np.asarray(seeds, np.uint32)))
        else:
            state = init(parts[0], attackers[0], seeds[0])
        if honest is not None:
            sets = checked_honest(honest, len(seeds), self.data.clients, attackers)
            state = state.replace(byzantine=jnp.asarray(~sets if self.several else ~sets[0]))
        self.state: FederationState = copy_to(apart(state), devices)
        if any(map(has_own_code, parts)):
            self.measures()  # their mistakes show as they are traced: before anything is compiled

    def run(self, rounds: int, progress: Progress = False) -> History:
        """Runs more rounds, from where the last call stopped.

        Ctrl-C ends the run after its block, with a warning: what has been done is returned, and
        ``history.simulation.run`` goes on from there. A second Ctrl-C ends it at once.

        ``progress`` is called after every block with its evaluation and records; True shows a bar.
        """
        rounds = integer(rounds, "rounds", 1)
        records, evaluations = [], []
        done = 0
        bar = follow(progress, rounds, len(self.seeds), self.plan.spec.cohort)
        with StopSignals(signal.SIGINT) as signals, bar as told:
            while done < rounds and not signals.asked:
                length = min(self.evaluate_every, rounds - done)
                record, evaluation = self.advance(length)
                records.append(record)
                evaluations.append(evaluation)
                done += length
                told(evaluation, record)
        if done < rounds:
            warnings.warn(
                f"stopped by Ctrl-C after {done} of {rounds} rounds; this history holds them, and "
                f"history.simulation.run({rounds - done}) goes on",
                stacklevel=2,
            )
        axis = 1 if self.several else 0
        return History(
            records=jax.tree.map(lambda *x: np.concatenate(x, axis=axis), *records),
            evaluations=jax.tree.map(lambda *x: np.stack(x, axis=axis), *evaluations),
            state=jax.tree.map(jnp.copy, self.state),
            simulation=self,
        )

    def advance(self, rounds: int) -> tuple[RoundRecord, Evaluation]:
        """One block: so many rounds in one program, then an evaluation; as NumPy arrays."""
        self.state, record = self.block(rounds)(self.federation, self.data, self.state)
        return jax.device_get((record, self.evaluate()))

    def make_ready(self, rounds: int) -> None:
        """Compiles or loads the program of so many rounds ahead, where programs are kept."""
        make_ready(self.block(rounds), self.federation, self.data, self.state)

    def block(self, rounds: int) -> Callable[..., PyTree]:
        """The compiled program of so many rounds: (federation, data, state) to (state, records).

        The state that it is called with is donated: its arrays cannot be used afterwards.
        """
        return self._program(run_rounds, donate=(2,), rounds=rounds)

    def evaluate(self) -> Evaluation:
        """How good the model is now."""
        return self._evaluation(self.data, self.state)

    def _evaluation(self, data: FederatedData, state: FederationState, **where: Any) -> Evaluation:
        # Without what evaluation does not read, all rules and attacks share one program.
        unread = ["optimizer", "aggregator", "server", "privacy", "fairness", "root"]
        if self._personal is None:
            unread.append("clients")
        if self._backdoor is None or not self._backdoor.learns:
            unread.append("attack")
        state = state.replace(**dict.fromkeys(unread, ()))
        program = self._program(
            _evaluate,
            own=(),
            client_accuracy=self._client_accuracy,
            backdoor=self._backdoor,
            personal=self._personal,
            **where,
        )
        return program(None, data, state)

    def measures(self) -> tuple[RoundRecord, Evaluation]:
        """Shapes and types of what ``advance(1)`` would answer; computes nothing."""
        block = self._program(run_rounds, donate=(2,), rounds=1, devices=None)

        def one(federation: Federation, data: FederatedData, state: FederationState) -> PyTree:
            state, record = block(federation, data, state)
            return record, self._evaluation(data, state, devices=None)

        return jax.eval_shape(one, self.federation, self.data, self.state)

    def messages(self) -> Exchange:
        """The ``[n, d]`` updates of the next round, before and after the attack; takes no step."""
        return self._program(exchange)(self.federation, self.data, self.state)


def _evaluate(
    _: None, plan: Plan, data: FederatedData, state: FederationState, **asked: Any
) -> Evaluation:
    return evaluate(plan, data, state, **asked)
