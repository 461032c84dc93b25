"""One device against eight, by both ways: run by test_devices.py with the names of checks."""

import dataclasses
import re
import sys
from typing import Any

import jax
import numpy as np
from helpers import NEW, Every, every_rule, topic_texts

import jaxfl.simulation
from jaxfl import (
    ALIE,
    NNM,
    QFFL,
    SCAFFOLD,
    SGD,
    Aggregator,
    CenteredClipping,
    CentralPrivacy,
    Cyclic,
    ExamplePrivacy,
    Federation,
    FedSGD,
    GeometricMedian,
    GibbsMean,
    Krum,
    Mean,
    Median,
    MessagePrivacy,
    Mixed,
    NormClipping,
    Pipeline,
    Poisson,
    SignGuard,
    Simulation,
    TrimmedMean,
)
from jaxfl.blocks import run_block, run_rounds
from jaxfl.component import capability
from jaxfl.data import IID, Dirichlet, RareData, RootData, digits, synthetic
from jaxfl.devices import WAYS, copy_to, make_mesh
from jaxfl.memory import estimate
from jaxfl.models import MLP, Softmax, Transformer
from jaxfl.numerics.gram import inner_products
from jaxfl.plan import make_plan
from jaxfl.privacy import BandedNoise, NoPrivacy, QuantileClip
from jaxfl.privacy.base import Privacy
from jaxfl.registry import ATTACKS, REGISTRY
from jaxfl.types import Aggregated, Info

CLIENTS, BYZANTINE, FEATURES, ROUNDS = 30, 6, 20, 3
DIM = FEATURES * 10 + 10
DATASET = synthetic(samples=1000, features=FEATURES, classes=10)
DATA = DATASET.split(Dirichlet(alpha=1.0), CLIENTS, root=RootData(size=60))
BASE = Federation(
    algorithm=FedSGD(batch_size=4), attack=ALIE(z=1.0), byzantine=BYZANTINE, optimizer=SGD()
)
# Each in turn is left out, with those after it: all sets of 24 of 30 are too many to list.
SETS = np.stack(
    [~np.isin((np.arange(CLIENTS) - i) % CLIENTS, range(BYZANTINE)) for i in range(CLIENTS)]
)
TABLE = every_rule(f=BYZANTINE) | {"gibbs_mean": GibbsMean(f=BYZANTINE, sets=SETS)}
TOGETHER = 8
"""Rules in a program: all in one would take more mappings than Linux allows."""
LEAVES_OUT = Every(
    rules=(
        CenteredClipping(),
        GeometricMedian(),
        Pipeline(pre=(NNM(f=BYZANTINE),), rule=Krum(f=BYZANTINE)),
        Median(),
        Pipeline(pre=(NNM(f=1),), rule=TrimmedMean(f=1)),  # also of cohorts of four
    )
)


class Watched(Aggregator):
    """The median, whose memory is the rows that it was sent."""

    needs_root = capability(frozenset({"update"}))  # for the attack that FLTrust is met by

    def init(self, spec):
        return tuple(jax.numpy.zeros((spec.cohort, spec.dim), spec.dtype))

    def aggregate(self, updates, state, context):
        found = Median().aggregate(updates, (), context)
        return Aggregated(update=found.update, state=tuple(updates), info=Info())


def simulate(federation, data=DATA, model=Softmax(), **settings):
    simulation = Simulation(federation, data, model, evaluate_every=ROUNDS, **settings)
    history = simulation.run(ROUNDS)
    return jax.device_get((history.state, history.records, history.evaluations, simulation))


def compare(name: str, one, many) -> None:
    """The same numbers to rounding, and exactly the same choices."""
    paths, _ = jax.tree_util.tree_flatten_with_path(one)
    others = jax.tree.leaves(many)
    assert len(paths) == len(others)
    for (path, a), b in zip(paths, others, strict=True):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if np.issubdtype(a.dtype, np.floating):
            # Scores are sums of squared distances: large, so compared with their own scale; or
            # differences of losses near 2: small, but no more exact than those.
            least = 1e-2 if "scores" in where else 1e-3
            scale = np.max(np.abs(a[np.isfinite(a)]), initial=least)
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=2e-5 * scale, err_msg=where)
        else:
            np.testing.assert_array_equal(b, a, err_msg=where)


def check(name: str, federation, **settings) -> None:
    assert len(jax.devices()) == 8
    *one, _ = simulate(federation, **settings)
    for way in WAYS:
        *many, simulation = simulate(federation, **settings, devices=jax.devices(), way=way)
        before = simulation.state.params
        assert len(before.sharding.device_set) == 8
        simulation.advance(ROUNDS)
        assert before.is_deleted(), "the state is donated"
        compare(f"{way} {name}", one, many)
        print("same:", way, name, flush=True)


def first_rules() -> None:
    rules(list(TABLE)[:TOGETHER])


def other_rules() -> None:
    rules([name for name in list(TABLE)[TOGETHER:] if name not in NEW])


def new_rules() -> None:
    # Many rules that choose, averaged, come to a near tie that rounding decides: fewer at once.
    rules([name for name in list(TABLE)[TOGETHER:] if name in NEW], TOGETHER // 2)


def rules(names: list[str], together: int = TOGETHER) -> None:
    """Some side by side on the same matrices, with client momentum."""
    for first in range(0, len(names), together):
        some = names[first : first + together]
        federation = BASE.replace(
            aggregator=Every(rules=tuple(TABLE[name] for name in some)),
            algorithm=FedSGD(batch_size=4, momentum=0.9),
        )
        check(", ".join(some), federation)
        jax.clear_caches()


def noise() -> None:
    """Poisson participation and both orders of noise, one of them over seeds and partitions."""
    private = BASE.replace(
        aggregator=LEAVES_OUT,
        participation=Poisson(rate=0.7),
        privacy=MessagePrivacy(clip=1.0, noise_multiplier=0.05),
    )
    check("noise_then_attack", private)
    two = [DATASET.split(Dirichlet(alpha=0.5), CLIENTS, seed=s) for s in (1, 2)]
    late = private.replace(noise_order="attack_then_noise")
    check("attack_then_noise, two seeds", late, data=two, seeds=(1, 2))


def private() -> None:
    """Turns of an uneven last group, memory, privacy of examples and fairness, two partitions."""
    federation = BASE.replace(
        aggregator=LEAVES_OUT,
        algorithm=SCAFFOLD(steps=2, batch_size=4),
        participation=Cyclic(groups=8),
        privacy=ExamplePrivacy(clip=1.0, noise_multiplier=0.05),
        fairness=QFFL(q=1.0, lipschitz=10.0),
    )
    two = [DATASET.split(Dirichlet(alpha=0.5), CLIENTS, s, client_test=0.2) for s in (1, 2)]
    check("private", federation, data=two, seeds=(1, 2), client_accuracy=True)


def attacks() -> None:
    """Every attack, side by side: each has an attacker of its own, whose rows are compared.

    Attacks that learn do so alone, and the one on texts has its own data.
    """
    examples = {name: cls.example() for name, cls in ATTACKS.items()}
    on_texts = examples.pop("token_backdoor")
    every = tuple(attack for attack in examples.values() if not attack.learns)
    byzantine = len(every)
    dataset = digits().set_apart(RareData(label=7, size=20))
    data = dataset.split(IID(), 2 * byzantine + 3, root=RootData(size=60))
    alone = {name: attack for name, attack in examples.items() if attack.learns}
    for name, attack in {f"{byzantine} attacks": Mixed(attacks=every), **alone}.items():
        federation = BASE.replace(attack=attack, byzantine=byzantine, aggregator=Watched())
        check(name, federation, data=data)
    data = topic_texts().split(IID(), 9, root=RootData(size=30))
    model = Transformer(vocabulary=14, width=8, layers=1, heads=2, hidden=8)
    federation = BASE.replace(attack=on_texts, byzantine=3, aggregator=Watched())
    check("token_backdoor", federation, data=data, model=model)


def mechanisms() -> None:
    """Every mechanism of privacy with noise, and what else it can be made of."""
    quantile = QuantileClip(initial=0.5, noise=2.0)
    banded = BandedNoise(rounds=ROUNDS, bands=2)
    found = {
        "message": MessagePrivacy(clip=1.0, noise_multiplier=0.05),
        "message, laplace": MessagePrivacy(clip=1.0, noise_multiplier=0.05, mechanism="laplace"),
        "example": ExamplePrivacy(clip=1.0, noise_multiplier=0.05),
        "central": CentralPrivacy(clip=1.0, noise_multiplier=0.05),
        "central, quantile": CentralPrivacy(clip=quantile, noise_multiplier=0.05),
        "central, banded": CentralPrivacy(clip=1.0, noise_multiplier=0.05, correlated=banded),
    }
    covered = {type(mechanism) for mechanism in found.values()} | {NoPrivacy}
    assert covered == set(REGISTRY[Privacy].values())
    for name, privacy in found.items():
        check(name, BASE.replace(privacy=privacy, aggregator=Mean(weighted=False)))
        jax.clear_caches()


def stream() -> None:
    """Updates that are never all held, by both ways."""
    streaming = BASE.replace(aggregator=NormClipping())
    check("stream", streaming, storage="stream", client_chunk=2)


def turns() -> None:
    """Runs that take turns on several devices are those at once on one."""
    given: Any = {"federation": BASE, "data": DATA, "model": Softmax(), "seeds": (1, 2, 3)}
    once = Simulation(**given).run(ROUNDS)

    def in_turn(*arguments, **settings):
        return dataclasses.replace(make_plan(*arguments, **settings), together=1)

    jaxfl.simulation.make_plan = in_turn
    for way in WAYS:
        history = Simulation(**given, devices=jax.devices(), way=way).run(ROUNDS)
        np.testing.assert_allclose(
            history.state.params, once.state.params, rtol=1e-4, atol=1e-5, err_msg=way
        )
        print("turns:", way, flush=True)


def traffic() -> None:
    """One all-to-all moves the updates; nothing gathers the whole matrix on a device."""
    rules = (
        Pipeline(pre=(NNM(f=BYZANTINE),), rule=TrimmedMean(f=BYZANTINE)),
        Mean(),
        Krum(f=BYZANTINE),
        GeometricMedian(),
        SignGuard(),
    )
    for rule in rules:
        moved(rule)
    wide = jax.random.normal(jax.random.key(0), (6, 8 * 10_000))
    with jax.set_mesh(make_mesh(jax.devices())):
        products = jax.jit(inner_products)(wide)
    exact = np.asarray(wide, np.float64) @ np.asarray(wide, np.float64).T
    np.testing.assert_allclose(products, exact, rtol=1e-4, atol=0.1)
    print("products of wide rows agree", flush=True)


def memory() -> None:
    """What is estimated of two devices, which share this machine's memory, beside what XLA says."""
    devices = jax.devices()[:2]
    data = digits().split(IID(), 100)
    parts = Federation(algorithm=FedSGD(batch_size=10), aggregator=Krum(f=10), optimizer=SGD())
    simulation = Simulation(parts, data, MLP(hidden=(128,)), devices=devices)
    given = copy_to((simulation.federation, simulation.data, simulation.state), devices)

    def block(federation, data, state):
        return run_rounds(federation, simulation.plan, data, state, rounds=5)

    with jax.set_mesh(make_mesh(devices)):
        said = jax.jit(block, donate_argnums=2).lower(*given).compile().memory_analysis()
    assert said is not None
    of_each = (
        said.argument_size_in_bytes
        + said.output_size_in_bytes
        - said.alias_size_in_bytes
        + said.temp_size_in_bytes
    )
    needed = estimate(simulation.federation, simulation.plan, simulation.data, devices=2)
    print("memory:", needed.block / (2 * of_each), flush=True)


def moved(rule: Aggregator) -> None:
    """Looks at what the compiled rounds with a rule send from device to device."""
    simulation = Simulation(BASE.replace(aggregator=rule), DATA, Softmax())
    devices = jax.devices()
    arguments = copy_to((simulation.federation, DATA, simulation.state), devices)

    def block(federation, data, state):
        return run_block(federation, simulation.plan, data, state, ROUNDS)

    with jax.set_mesh(make_mesh(devices)):
        text = jax.jit(block).lower(*arguments).compile().as_text()
    assert len(re.findall(r" all-to-all(?:-start)?\(", text)) == 1
    results = re.findall(r"= (.*) all-gather(?:-start)?\(", text)
    assert results, "the aggregate has to be gathered somewhere"
    for result in results:
        for shape in re.findall(r"\[([\d,]*)\]", result):
            size = np.prod([int(s) for s in shape.split(",") if s], initial=1)
            assert size < CLIENTS * DIM / 2, f"an all-gather of {result}"
    print("traffic:", repr(rule), len(results), "small all-gathers", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for part in sys.argv[1:]:
        globals()[part]()
