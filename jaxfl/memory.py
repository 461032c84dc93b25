"""How much memory a run needs at its worst moment, from shapes alone, before it is compiled."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfl.blocks import run_rounds
from jaxfl.clients import Broadcast, Samples
from jaxfl.contracts import started
from jaxfl.data.federated import FederatedData
from jaxfl.devices import device_of, memory_of_device, working_set
from jaxfl.evaluation import evaluate
from jaxfl.federation import Federation
from jaxfl.liveness import live_bytes
from jaxfl.local_work import train
from jaxfl.models.objective import Objective
from jaxfl.state import BFLOAT16, STREAM, FederationState, Plan, init_state
from jaxfl.types import Batch, PyTree, Spec

BESIDE = 4
"""Times the bytes of a bfloat16 matrix that a CPU keeps beside it: there XLA slices, stacks and
scatters no bfloat16, but float32 copies of the whole."""
COPIES = 8
"""No round of ours takes as much as so many matrices of updates and of pairs of clients."""

LARGE = 4
"""What takes at least this fraction of the peak, updates or work, is worth making smaller."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of a run, all of its seeds and candidates together."""

    data: int
    """Samples, and whose they are."""
    memories: int
    """What clients remember from round to round."""
    state: int
    """What else is carried: parameters, the optimizer, memories of rule, attack, mechanism."""
    updates: int
    """The clients' updates of a round."""
    work: int
    """The most that a round takes on top of them: a chunk of clients, what attack and rule need."""
    evaluation: int
    """The most that an evaluation takes, when the updates are gone."""

    @property
    def held(self) -> int:
        """What stays from the first round to the last."""
        return self.data + self.memories + self.state

    @property
    def block(self) -> int:
        """The most while a block of rounds runs."""
        return self.held + self.updates + self.work

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self.block, self.held + self.evaluation)


def estimate(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    *,
    runs: int = 1,
    devices: int = 1,
    client_accuracy: bool = False,
) -> Estimate:
    """What a block of rounds and its evaluation need.

    The round is traced on shapes and its values followed from where they are made to where they
    are read for the last time (``jaxfl.liveness``), so any rule, attack or mechanism counts, also
    one's own. Of compiled programs on a CPU, ``memory_analysis`` says the same within 25 %.

    Args:
      federation: the parts.
      plan: sizes, and how many clients are vmapped at once.
      data: arrays, or their shapes.
      runs: seeds and candidates in one program.
      devices: those that share the clients by ``"shard_map"``. The estimate is of one of them, or
        of all where they are one processor's: each has a copy of the data.
      client_accuracy: whether the evaluation asks for that of every client.

    Cost: a trace of a round, up to a second.
    """
    platform, together = device_of(data).platform, plan.together or runs
    one, shapes = _one_state(federation, plan), shapes_of(data)
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((together, *x.shape), x.dtype), one)
    given = _of_runs(shapes, together), one if together == 1 else states

    def rounds(data: FederatedData, state: FederationState) -> PyTree:
        return run_rounds(federation, plan, data, state, rounds=1)

    measured = functools.partial(
        evaluate,
        plan,
        client_accuracy=client_accuracy,
        backdoor=federation.attack.backdoor,
        personal=federation.algorithm.personal_class if client_accuracy else None,
    )
    live = live_bytes(_over(together, rounds), *given, platform=platform, donated=(1,))
    measuring = live_bytes(_over(together, measured), *given, platform=platform)
    least = _least(federation, plan, data, runs, devices)
    matrix = together * _updates_bytes(federation, plan)
    copies = _copies(platform, devices)
    return dataclasses.replace(
        least,
        work=copies * max(live - matrix, 0),
        evaluation=copies * measuring,
    )


def _copies(platform: str, devices: int) -> int:
    """How many of the devices share the memory that is estimated: those of one host's processor."""
    return -(-devices // jax.process_count()) if platform == "cpu" else 1


def _over(runs: int, function: Any) -> Any:
    """A function of data and state over so many runs at once, as a simulation maps it."""
    if runs == 1:
        return function

    def call(data: FederatedData, state: FederationState) -> PyTree:
        partitions = data.axes() if data.start.ndim > 1 else None
        state = state.replace(round=state.round[0])
        states = jax.tree.map(lambda _: 0, state).replace(round=None)
        return jax.vmap(function, in_axes=(partitions, states))(data, state)

    return call


def fitting(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    *,
    runs: int = 1,
    devices: int = 1,
    chosen: bool = False,
    turns: bool = False,
    client_accuracy: bool = False,
) -> Plan:
    """The plan, with fewer clients at once where memory asks for it and the user did not choose.

    Where that does not help, several runs may take ``turns``: a half of them at once, or a smaller
    part that leaves no remainder, which would be compiled a second time.
    Nothing is traced where a generous bound fits, or where the updates alone do not.

    Raises:
      ValueError: no plan fits; with the numbers and what would help.
    """
    available = memory_of_device(device_of(data))
    if available is None:
        return plan
    asked = {"runs": runs, "devices": devices, "client_accuracy": client_accuracy}
    tried = functools.partial(_fitting, federation, data, available, chosen, asked)
    found = tried(plan)
    parts = [n for n in range(runs // 2, 0, -1) if runs % n == 0] if turns else []
    while isinstance(found, str) and parts:
        found = tried(dataclasses.replace(plan, together=parts.pop(0)))
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _fitting(
    federation: Federation,
    data: FederatedData,
    available: int,
    chosen: bool,
    asked: dict[str, Any],
    plan: Plan,
) -> Plan | str:
    """The plan with as many clients at once as fit, or why none does."""
    runs, devices, platform = asked["runs"], asked["devices"], device_of(data).platform
    least = _least(federation, plan, data, runs, devices)
    if least.peak > available:
        return refusal(least, federation, plan, runs, available, platform)
    together = plan.together or runs
    pairs = together * 4 * plan.spec.cohort**2
    chunk = together * plan.chunk * client_bytes(federation, plan.objective, data, plan.spec)
    more = COPIES * (least.updates + pairs) + 2 * least.memories + devices * chunk
    if least.peak + more <= available:
        return plan
    while True:
        needed = estimate(federation, plan, data, **asked)
        if needed.peak <= available:
            return plan
        if chosen or plan.chunk == 1:
            return refusal(needed, federation, plan, runs, available, platform)
        plan = dataclasses.replace(plan, chunk=plan.chunk // 2)


def _least(
    federation: Federation, plan: Plan, data: FederatedData, runs: int, devices: int
) -> Estimate:
    """What is there whatever the round does: nothing is traced."""
    one = _one_state(federation, plan)
    platform = device_of(data).platform
    copies = _copies(platform, devices)
    updates = (plan.together or runs) * _updates_bytes(federation, plan)
    if plan.storage == BFLOAT16 and platform == "cpu":
        updates *= 1 + BESIDE
    # Of runs that take turns, what they carry is read from one place and written to another.
    carried = copies * runs * (1 if plan.together is None else 2)
    return Estimate(
        data=copies * _bytes(shapes_of(data)),
        memories=carried * _bytes(one.clients),
        state=carried * (_bytes(one) - _bytes(one.clients)),
        updates=updates * (1 if devices == 1 else 2) * copies // devices,
        work=0,
        evaluation=0,
    )


def refusal(
    needed: Estimate,
    federation: Federation,
    plan: Plan,
    runs: int,
    available: int,
    platform: str,
) -> str:
    """Why a run does not fit, with the numbers, and what would help most."""
    spec = plan.spec
    at_once = f" {plan.together} at once," if plan.together else ""
    times = f" times {runs} runs,{at_once}" if runs > 1 else ""
    parts = {
        f"updates of {spec.cohort:,} clients": needed.updates,
        f"what {type(federation.algorithm).__name__} keeps for {spec.population:,} clients": (
            needed.memories
        ),
        "data": needed.data,
        "parameters and other state": needed.state,
        f"work on {plan.chunk} client(s) at once, attack and rule": needed.work,
    }
    shown = {what: size for what, size in parts.items() if size > needed.peak // 100}
    listed = ", ".join(f"{what} {amount(size)}" for what, size in shown.items())
    least = "" if needed.work else "at least "
    fewer = ["fewer clients per round (participation)"]
    fewer += ["fewer seeds or candidates"] if runs > 1 else []
    fewer += _other_storage(needed, federation, plan, platform)
    of_chunk = needed.work + (needed.updates if plan.storage == STREAM else 0)
    shrinks = plan.chunk > 1 and of_chunk >= needed.peak // LARGE
    fewer += ["a smaller client_chunk"] if shrinks else []
    fewer += ["an algorithm without memory of clients"] if needed.memories > available // 4 else []
    fewer += ["fewer samples"] if needed.data > available // 4 else []
    return (
        f"memory: {spec.dim:,} parameters{times} need {least}{amount(needed.peak)} ({listed}), "
        f"more than the device's {amount(available)}; what helps: {', '.join(fewer)}, or a "
        "smaller model"
    )


def _other_storage(
    needed: Estimate, federation: Federation, plan: Plan, platform: str
) -> list[str]:
    """Settings under which a round that holds its updates would hold fewer bytes of them."""
    if plan.storage == STREAM or needed.updates < needed.peak // LARGE:
        return []
    if federation.why_held() is None:
        return [f'storage = "{STREAM}"']
    wide = np.dtype(plan.message_type).itemsize > np.dtype(jnp.bfloat16).itemsize
    if wide and platform != "cpu" and not federation.privacy.bounds:
        return [f'storage = "{BFLOAT16}" (half the bytes of updates)']
    return []


def client_bytes(
    federation: Federation, objective: Objective, data: FederatedData, spec: Spec
) -> int:
    """Bytes of all that one client computes, as if none of it were freed before the end."""
    parts = Federation(algorithm=federation.algorithm, privacy=federation.privacy)
    sizes = dataclasses.replace(spec, max_byzantine=0)
    one_partition = _of_runs(shapes_of(data), 1)
    return _client_bytes(parts, objective, one_partition, sizes)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=64)
def _client_bytes(
    federation: Federation, objective: Objective, data: FederatedData, spec: Spec
) -> int:
    def one_client(data: FederatedData, params: Array, model_state: PyTree, key: Array) -> PyTree:
        def load(place: Array, mask: Array, key: Array) -> Batch:
            return Batch(*data.samples(place), mask)

        samples = Samples(jnp.int32(1), load, data.capacity)
        server = started(federation.algorithm, "init_server", spec)
        received = Broadcast(objective.unravel(params), model_state, jnp.int32(0), server)
        memory = started(federation.algorithm, "init", spec)
        return train(federation, objective, received, samples, memory, key)

    key = jax.random.key(0)
    return working_set(one_client, data, *jax.eval_shape(objective.init, key), key)


def shapes_of(data: FederatedData) -> FederatedData:
    """The data without their values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)


def _of_runs(shapes: FederatedData, runs: int) -> FederatedData:
    """Shapes of the data of so many of the runs, where each has a partition of its own."""
    if shapes.start.ndim == 1:
        return shapes
    lead = (runs,) if runs > 1 else ()

    def of(x: Any, axis: int | None) -> Any:
        return x if axis is None else jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype)

    return jax.tree.map(of, shapes, shapes.axes(), is_leaf=lambda x: x is None)


def _one_state(federation: Federation, plan: Plan) -> FederationState:
    """Shapes of the state of one run."""
    return jax.eval_shape(functools.partial(init_state, federation, plan), jnp.uint32(0))


def _updates_bytes(federation: Federation, plan: Plan) -> int:
    """Of the updates that one run's round holds: all, or a chunk's."""
    spec, rows = plan.spec, plan.spec.cohort
    if plan.storage == STREAM:
        rows = min(plan.chunk, rows)
    return rows * spec.dim * federation.algorithm.width * np.dtype(plan.message_type).itemsize


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def amount(size: int) -> str:
    """Bytes as people read them.

    >>> amount(3 * 2**29), amount(5 * 2**20)
    ('1.5 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
