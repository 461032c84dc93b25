"""The federations that are timed, and their rounds as compiled blocks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxfl.aggregators import Aggregator, DeepSight, Krum, Mean, Median, Pipeline, TrimmedMean
from jaxfl.attacks import ALIE, NoAttack
from jaxfl.clients import FedSGD
from jaxfl.data import IID, FederatedData, RareData, from_arrays
from jaxfl.devices import compile_for, copy_to
from jaxfl.federation import Federation
from jaxfl.local_work import work_locally
from jaxfl.models import MLP, Model, ResNet, SignGuardCNN
from jaxfl.numerics.rows import held
from jaxfl.optimizers import SGD
from jaxfl.plan import AUTOMATIC, make_plan
from jaxfl.preaggregators import NNM
from jaxfl.round import run_round
from jaxfl.state import Plan, init_state, round_keys
from jaxfl.types import PyTree

BATCH, BYZANTINE = 50, 10
MODELS: dict[str, Model] = {
    "cnn": SignGuardCNN(dropout=0.5),
    "mlp": MLP(hidden=(128,)),
    "resnet-18": ResNet(),
    "small resnet": ResNet(blocks=(1,), channels=(4,)),
}
COLOURED = ("resnet-18", "small resnet")
"""Models that get colour images of 32 x 32; the others get grey ones of 28 x 28."""
RULES: dict[str, Aggregator] = {
    "Mean": Mean(),
    "Median": Median(),
    "TrimmedMean(f=10)": TrimmedMean(f=10),
    "Krum(f=10)": Krum(f=10),
    "NNM(f=10) + TrimmedMean(f=10)": Pipeline(pre=(NNM(f=10),), rule=TrimmedMean(f=10)),
}
EVALUATING: dict[str, Aggregator] = {"DeepSight": DeepSight()}
"""Rules that evaluate every client's model: they are timed in whole rounds alone."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A federation's size."""

    model: str
    clients: int
    rounds: int
    """Rounds per compiled block."""
    repeats: int
    batch: int = BATCH

    @property
    def samples(self) -> int:
        """Per client; only as many as a batch takes where there are very many clients."""
        return 200 if self.clients <= 1000 else self.batch

    @property
    def images(self) -> int:
        """Per round."""
        return self.clients * self.batch


def federated(case: Case, rare: RareData | None = None) -> FederatedData:
    """Random images in ten classes; ``rare`` ones are the attackers' alone."""
    random = np.random.default_rng(0)
    count = case.clients * case.samples
    shape = (32, 32, 3) if case.model in COLOURED else (28, 28, 1)
    inputs = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.int32)
    dataset = from_arrays(inputs, labels, inputs[:10], labels[:10])
    return (dataset.set_apart(rare) if rare else dataset).split(IID(), case.clients)


def federation(rule: Aggregator, *, attacked: bool = False, batch: int = BATCH) -> Federation:
    return Federation(
        algorithm=FedSGD(batch_size=batch),
        attack=ALIE(z=1.0) if attacked else NoAttack(),
        aggregator=rule,
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        byzantine=BYZANTINE if attacked else 0,
    )


def rounds_of(
    parts: Federation,
    plan: Plan,
    data: FederatedData,
    rounds: int,
    *,
    devices: int,
    clients_only: bool = False,
) -> Callable[[], PyTree]:
    """A compiled block of rounds without evaluation, ready to call."""

    def body(data: FederatedData, state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        if not clients_only:
            return run_round(parts, plan, data, state)
        work = work_locally(parts, plan, data, state, round_keys(state))
        moved = state.params + 1e-9 * held(work.updates)[0]  # the next round waits for this one
        return state.replace(params=moved, round=state.round + 1), work.told.loss

    def block(data: FederatedData, state: PyTree) -> PyTree:
        return jax.lax.scan(functools.partial(body, data), state, None, length=rounds)

    state = jax.jit(functools.partial(init_state, parts, plan))(0)
    on = jax.devices()[:devices]
    return functools.partial(compile_for(block, devices=on), *copy_to((data, state), on))


def jaxfl_block(
    case: Case, devices: int = 1, chunk: int | None = None, storage: str = AUTOMATIC
) -> Callable[[], PyTree]:
    data, parts = federated(case), federation(Mean(), batch=case.batch)
    plan = make_plan(parts, data, MODELS[case.model], client_chunk=chunk, storage=storage)
    return rounds_of(parts, plan, data, case.rounds, devices=devices)


def operations(model: str) -> int:
    """Of one image forward and backward; the first layer needs no gradient of its input."""
    convolutions = [24 * 24 * 25 * 8, 12 * 12 * 9 * 8 * 16, 6 * 6 * 9 * 16 * 32]
    layers = {
        "cnn": [*convolutions, 288 * 120, 120 * 84, 84 * 10],
        "mlp": [784 * 128, 128 * 10],
    }[model]
    return both_passes(layers)


def both_passes(layers: Sequence[int]) -> int:
    """Operations of layers of so many products; the first one's input needs no gradient."""
    return 2 * (3 * sum(layers) - layers[0])
