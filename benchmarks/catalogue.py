"""Every rule, attack, mechanism and client's algorithm as a program of one matrix of updates.

For checks of whole platforms: what runs on one must answer as it does on another. A program takes
``[n, d]`` updates in float32 or float64 and computes in that type, so that an answer in double
precision is the reference of one in single.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.aggregators import Aggregator, FLTrust, Krum, Median, Pipeline, TrimmedMean
from jaxfl.aggregators.mixing import with_f
from jaxfl.attacks import ALIE, Attack, TokenBackdoor
from jaxfl.attacks.base import attack_rows
from jaxfl.attacks.views import ClientView, Defence
from jaxfl.blocks import run_rounds
from jaxfl.clients import ClientAlgorithm
from jaxfl.component import Component
from jaxfl.data import IID, FederatedData, from_arrays
from jaxfl.federation import Federation
from jaxfl.models import Objective, Softmax
from jaxfl.models.layers import segments
from jaxfl.plan import make_plan
from jaxfl.preaggregators import NNM
from jaxfl.privacy import BandedNoise, CentralPrivacy, ExamplePrivacy, MessagePrivacy, QuantileClip
from jaxfl.privacy.base import Privacy
from jaxfl.privacy.deployment import Turn
from jaxfl.registry import AGGREGATORS, ATTACKS, PREAGGREGATORS, REGISTRY
from jaxfl.state import init_state
from jaxfl.types import Batch, Context, PyTree, Segments, Spec

CLASSES, SAMPLES = 10, 16
TOLERANCE = 1e-4
"""Of an answer's largest number; as in the tests of single precision."""
Numbers = dict[str, float | str]


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the programs are: softmax regression on images of ``side`` x ``side``."""

    clients: int
    byzantine: int
    side: int

    @property
    def dim(self) -> int:
        """Parameters of the model."""
        return (self.side**2 + 1) * CLASSES

    @property
    def attackers(self) -> np.ndarray:
        """Which clients are Byzantine: the last ones."""
        return np.arange(self.clients) >= self.clients - self.byzantine

    def updates(self) -> np.ndarray:
        """Honest clients agree up to noise; values that float32 holds exactly."""
        random = np.random.default_rng(0)
        rows = 0.5 + random.normal(size=(self.clients, self.dim)) * random.uniform(0.5, 2, self.dim)
        rows[self.attackers] *= -1.5
        return rows.astype(np.float32).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is to be computed of a component, as a pytree, and a matrix of updates."""

    kind: str
    name: str
    part: Component
    call: Callable[[Any, jax.Array], PyTree]
    double: bool = True
    """Whether it computes in the type of the updates; else in float32 whatever that is."""


def programs(size: Size) -> list[Program]:
    """All of them, of this size."""
    crafted = {name: cls.example() for name, cls in ATTACKS.items()}
    clients: dict[str, Any] = {n: cls() for n, cls in REGISTRY[ClientAlgorithm].items()}
    return [
        *(Program("rule", name, r, partial(_rule, size)) for name, r in _rules(size).items()),
        *(Program("attack", name, a, partial(_attack, size)) for name, a in crafted.items()),
        *(Program("mechanism", name, m, partial(_hooks, size)) for name, m in mechanisms().items()),
        *(
            Program("round", name, c, partial(_round, size, c), double=False)
            for name, c in clients.items()
        ),
    ]


def distance(got: PyTree, want: PyTree) -> float:
    """The largest error of any array, in units of its largest number; choices must be the same."""
    worst = 0.0
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(one), np.asarray(other)
        if not np.issubdtype(b.dtype, np.floating):
            worst = max(worst, 0.0 if np.array_equal(a, b) else np.inf)
            continue
        finite = np.isfinite(b)
        strange = np.array_equal(a[~finite], b[~finite], equal_nan=True)
        if not strange or not np.isfinite(a[finite]).all():
            return np.inf
        size = np.max(np.abs(b[finite]), initial=0) or 1
        worst = max(worst, float(np.max(np.abs(a[finite] - b[finite]), initial=0) / size))
    return worst


def _rules(size: Size) -> dict[str, Aggregator]:
    f = size.byzantine
    found = {n: cls.example(f) for n, cls in AGGREGATORS.items() if cls is not Pipeline}
    for name, cls in PREAGGREGATORS.items():
        found[f"{name} + krum"] = Pipeline(pre=(with_f(cls, f),), rule=Krum(f=f))
    mixed = Pipeline(pre=(NNM(f=f),), rule=TrimmedMean(f=f))
    return found | {"nnm + trimmed_mean": mixed}


def mechanisms() -> dict[str, Privacy]:
    """Each alone, with noise and without: without it there is an answer in double precision."""
    adaptive, banded = QuantileClip(initial=5.0, noise=2.0), BandedNoise(rounds=8, bands=4)
    found: dict[str, Privacy] = {"none": REGISTRY[Privacy]["none"]()}  # pyright: ignore
    for label, noise in (("", 1.0), (", no noise", 0.0)):
        found |= {
            f"message{label}": MessagePrivacy(clip=5.0, noise_multiplier=noise),
            f"message, laplace{label}": MessagePrivacy(
                clip=5.0, noise_multiplier=noise, mechanism="laplace"
            ),
            f"example{label}": ExamplePrivacy(clip=1.0, noise_multiplier=noise),
            f"central{label}": CentralPrivacy(clip=5.0, noise_multiplier=noise),
            f"central, quantile{label}": CentralPrivacy(clip=adaptive, noise_multiplier=noise),
        }
    return found | {
        "central, banded": CentralPrivacy(clip=5.0, noise_multiplier=1.0, correlated=banded)
    }


def _objective(size: Size, dtype: jnp.dtype) -> Objective:
    objective = Objective.of(Softmax(), (size.side, size.side, 1), CLASSES)
    shapes = tuple(jax.ShapeDtypeStruct(s.shape, dtype) for s in objective.shapes)
    return dataclasses.replace(objective, shapes=shapes)


def _images(size: Size, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    inputs = random.uniform(size=(count, size.side, size.side, 1)).astype(np.float32)
    return inputs, (np.arange(count) % CLASSES).astype(np.int32)


def _batch(size: Size, dtype: jnp.dtype) -> Batch:
    inputs, labels = _images(size, SAMPLES)
    return Batch(jnp.asarray(inputs, dtype), jnp.asarray(labels), jnp.arange(SAMPLES) < SAMPLES - 1)


def _context(size: Size, updates: jax.Array) -> Context:
    """A server that has everything a rule may need."""
    return Context.of(
        size.clients,
        byzantine=jnp.asarray(size.attackers),
        params=0.1 * updates[0],
        root_update=jnp.mean(updates[:3], axis=0),
        root_batch=_batch(size, updates.dtype),
        objective=_objective(size, updates.dtype),
        sample=jax.ShapeDtypeStruct((size.side, size.side, 1), jnp.float32),
        segments=_segments(size, updates.dtype),
    )


def _segments(size: Size, dtype: jnp.dtype) -> Segments:
    shape = jax.ShapeDtypeStruct((2, size.side, size.side, 1), dtype)
    return segments(_objective(size, dtype), shape)


def _spec(size: Size, updates: jax.Array) -> Spec:
    n = size.clients
    parts = _segments(size, updates.dtype)
    return Spec(n, n, size.dim, size.byzantine, updates.dtype, parts)


def _rule(size: Size, rule: Aggregator, updates: jax.Array) -> PyTree:
    """What the rule answers, and of whom; not its scores, whose scale is their own."""
    state = rule.init(_spec(size, updates))
    found = rule.aggregate(updates, state, _context(size, updates))
    return {"update": found.update, "selected": found.info.selected, "weights": found.info.weights}


def _attack(size: Size, attack: Attack, updates: jax.Array) -> PyTree:
    """What the attackers send, and what they make of a batch."""
    context, dtype = _context(size, updates), updates.dtype
    rule: Aggregator = FLTrust() if attack.needs_root else Median()
    defence = Defence(aggregator=rule, state=(), context=context)
    byzantine, state = jnp.asarray(size.attackers), attack.init(_spec(size, updates))
    key, most = jax.random.key(1), size.byzantine
    sent, _ = attack_rows(attack, updates, byzantine, state, context, key, defence, most)
    one = jnp.ones((), jnp.int32)
    objective, row = _objective(size, dtype), 0.1 * updates[0]
    view = ClientView(
        id=one,
        byzantine=one == 1,
        rank=one,
        round=one,
        classes=CLASSES,
        memory=state,
        rare=lambda key, count: _batch(size, dtype).inputs[:count] + 1,
        logits=lambda inputs: objective.logits(objective.unravel(row), _stateless(size), inputs),
    )
    batch = _batch(size, dtype)
    if isinstance(attack, TokenBackdoor):  # of rows of word ids
        words = jnp.abs(batch.inputs.reshape(batch.inputs.shape[0], -1) * 100)
        batch = batch.replace(inputs=words.astype(jnp.int32))
    return sent, attack.poison(batch, view, key)


def _hooks(size: Size, privacy: Privacy, updates: jax.Array) -> PyTree:
    """All that the mechanism does: to messages, to the matrix, to the aggregate, to gradients."""
    n, dtype, state = size.clients, updates.dtype, privacy.init(size.dim)
    keys = jax.random.split(jax.random.key(2), n)
    sent = jax.vmap(privacy.message)(updates, keys, jnp.asarray(size.attackers))
    crafted = jax.vmap(privacy.crafted)(updates)
    bounded, seen = privacy.bound(updates, state)
    turn = Turn(present=jnp.ones(n, dtype), expected=n, separation=1, mean=True)
    mean = jnp.mean(jnp.asarray(bounded), axis=0)
    released = privacy.release(mean, seen, turn, state, jax.random.key(3))
    plain = _objective(size, dtype)
    objective = privacy.objective(plain, jnp.int32(SAMPLES), SAMPLES)
    (loss, _), gradient = objective.value_and_grad(
        objective.unravel(0.1 * updates[0]),
        _stateless(size),
        _batch(size, dtype),
        jax.random.key(4),
    )
    return sent, crafted, bounded, released[0], loss, gradient


def _stateless(size: Size) -> PyTree:
    return _objective(size, jnp.dtype(jnp.float32)).init(jax.random.key(0))[1]


def _data(size: Size) -> FederatedData:
    inputs, labels = _images(size, 8 * size.clients)
    return from_arrays(inputs, labels, inputs[:20], labels[:20]).split(IID(), size.clients)


def _round(
    size: Size, known: ClientAlgorithm, algorithm: ClientAlgorithm, updates: jax.Array
) -> PyTree:
    """Two rounds under attack, from a first update as parameters; planned with known numbers."""
    f = size.byzantine
    parts = Federation(
        algorithm=known,
        attack=ALIE(z=1.0),
        aggregator=Pipeline(pre=(NNM(f=f),), rule=TrimmedMean(f=f)),
        byzantine=f,
    )
    with jax.ensure_compile_time_eval():
        data = _data(size)
        plan = make_plan(parts, data, Softmax(), storage="matrix")
    parts = parts.replace(algorithm=algorithm)
    state = init_state(parts, plan, 0)
    state = state.replace(params=(0.1 * updates[0]).astype(state.params.dtype))
    return run_rounds(parts, plan, data, state, rounds=2)[0].params


class WrongError(Exception):
    """An answer that is not that of double precision."""


def check(program: Program, size: Size) -> Numbers:
    """The device's answer against the CPU's.

    What draws numbers draws others in double precision, and a search may end elsewhere: where the
    answers differ, the device's must be that of the CPU in single precision.
    """
    cpu, updates = jax.devices("cpu")[0], size.updates()

    def answer(dtype: type) -> PyTree:
        return jax.device_get(jax.jit(program.call)(program.part, jnp.asarray(updates, dtype)))

    got, errors = answer(np.float32), {}
    with jax.default_device(cpu):
        if program.double:
            with jax.enable_x64(True):
                errors["float64"] = distance(got, answer(np.float64))
        if not errors or errors["float64"] > TOLERANCE:
            errors["float32"] = distance(got, answer(np.float32))
    reference, error = min(errors.items(), key=lambda pair: pair[1])
    if error > TOLERANCE:
        raise WrongError(", ".join(f"{e:.1e} from the CPU's {name}" for name, e in errors.items()))
    return {"error": error, "against": reference}
