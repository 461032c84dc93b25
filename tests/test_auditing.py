"""What leaks from real rounds, also under attack, against what the accountant allows."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ragged

from jaxfl import IPM, FedAvg, Federation, FedSGD, Mean, Median, MessagePrivacy, Poisson, SignFlip
from jaxfl.auditing import Audit, Canaries, _lower, audit
from jaxfl.blocks import run_rounds
from jaxfl.clients import SCAFFOLD
from jaxfl.component import Scalar, capability
from jaxfl.data import from_arrays
from jaxfl.fairness import TERM
from jaxfl.models import Softmax
from jaxfl.participation import Uniform
from jaxfl.plan import make_plan
from jaxfl.privacy import BandedNoise, CentralPrivacy, ExamplePrivacy, QuantileClip
from jaxfl.privacy.deployment import ATTACK_FIRST
from jaxfl.state import init_state

ROUNDS = 5
ALLOWED = 2
"""Of 20 runs: how often a bound of 95 % may be wrong."""


def noise(clients, features, each=2, classes=3):
    """Data of which nothing can be learnt, so that gradients hide no canary."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(clients * each, features)).astype(np.float32)
    labels = rng.integers(0, classes, clients * each)
    owners = np.repeat(np.arange(clients), each)
    return from_arrays(inputs, labels, inputs[:9], labels[:9], client_ids=owners).by_client()


NARROW, WIDE = noise(300, 12), noise(240, 150)
SGD = FedSGD(batch_size=1)
UNDER_ATTACK: dict[str, Any] = {"byzantine": 60, "attack": IPM(scale=0.5), "aggregator": Median()}
CENTRAL: dict[str, Any] = {"algorithm": SGD, "aggregator": Mean(weighted=False)}


def runs(federation, data, count=20, rounds=ROUNDS, **settings) -> list[Audit]:
    return [
        audit(federation, data, Softmax(), rounds=rounds, seed=seed, **settings)
        for seed in range(count)
    ]


def refuted(found) -> int:
    return sum(run.refuted for run in found)


def lower(found) -> float:
    print(  # what `pytest -s` shows
        f"upper {max(run.upper for run in found):.2f}, lower: "
        f"median {np.median([run.lower for run in found]):.2f}, "
        f"most {max(run.lower for run in found):.2f}; "
        f"refuted {refuted(found)} of {len(found)} with {found[0].canaries} canaries"
    )
    return float(np.median([run.lower for run in found]))


def with_noise(federation, multiplier):
    return federation.replace(privacy=federation.privacy.replace(noise_multiplier=multiplier))


class BrokenMessages(MessagePrivacy):
    """Noise of its own and noise that all clients share, in units of what it should be."""

    own: Scalar = 1.0
    common: Scalar = 0.0

    def message(self, message, key, crafted=False):
        clipped = self.replace(noise_multiplier=0.0)
        clipped = MessagePrivacy.message(clipped, message, key, crafted)
        shared = jax.random.normal(jax.random.key(7), message.shape)
        noise = self.own * jax.random.normal(key, message.shape) + self.common * shared
        return clipped + self.noise_multiplier * self.clip * noise

    def releases(self, run):
        return super().releases(run)


class BrokenCentral(CentralPrivacy):
    """A tenth of the noise."""

    def release(self, *arguments):
        weak = self.replace(noise_multiplier=self.noise_multiplier / 10)
        return CentralPrivacy.release(weak, *arguments)

    def releases(self, run):
        return super().releases(run)


class BrokenExamples(ExamplePrivacy):
    """A tenth of the noise."""

    def objective(self, *arguments):
        weak = {"clip": self.clip, "noise_multiplier": self.noise_multiplier / 10}
        return ExamplePrivacy(**weak).objective(*arguments)

    def releases(self, run):
        return super().releases(run)


def test_a_bound_on_known_guesses_is_right_as_often_as_it_says():
    """Randomised response: every coin is told truly with probability e^2 / (1 + e^2)."""
    rng, wrong, bounds = np.random.default_rng(0), 0, []
    for _ in range(100):
        coins = rng.random(250) < 0.5
        told = np.where(rng.random(250) < 1 / (1 + np.exp(-2)), coins, ~coins)
        bounds.append(_lower(told + 0.1 * rng.random(250), coins, 1e-9, 0.95))
        wrong += bounds[-1] > 2
    assert wrong <= 5
    assert 1 < np.median(bounds) < 2


def test_what_tells_nothing_and_what_tells_all():
    rng = np.random.default_rng(0)
    coins = rng.random(400) < 0.5
    assert _lower(rng.normal(size=400), coins, 1e-5, 0.95) < 0.5
    assert _lower(1.0 * coins, coins, 1e-5, 0.95) > 3.5
    assert _lower(-1.0 * coins, coins, 1e-5, 0.95) > 3.5
    assert _lower(np.zeros(400), coins, 1e-5, 0.95) < 0.5


@pytest.mark.parametrize("attacked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_messages_leak_what_they_may(attacked):
    parts = UNDER_ATTACK if attacked else {}
    privacy = MessagePrivacy(clip=0.5, noise_multiplier=3.0)
    federation = Federation(algorithm=SGD, privacy=privacy, **parts)
    found = runs(federation, NARROW, canaries=240)
    assert refuted(found) <= ALLOWED
    assert 0.2 < lower(found) < found[0].upper < 3.5
    loud = runs(with_noise(federation, 1.0), NARROW, canaries=240, count=10)
    assert refuted(loud) == 0
    assert 1.5 < lower(loud) < 10 < loud[0].upper
    # Without noise every clipped message is seen as it is: ten times the clip, clipped.
    clear = audit(with_noise(federation, 0.0), NARROW, Softmax(), rounds=ROUNDS, canaries=240)
    assert clear.upper == np.inf
    assert clear.lower > 3
    assert len(clear.scores_in) + len(clear.scores_out) == clear.canaries == 240
    np.testing.assert_allclose(clear.scores_in, ROUNDS * 0.5 * 5, rtol=0.1)
    np.testing.assert_allclose(clear.scores_out, 0, atol=ROUNDS * 0.5 * 5 * 0.1)


@pytest.mark.parametrize(("own", "common"), [(0.0, 1.0), (0.1, 0.0)])
def test_messages_whose_noise_is_shared_or_too_small_are_refuted(own, common):
    privacy = BrokenMessages(clip=0.5, noise_multiplier=3.0, own=own, common=common)
    found = runs(Federation(algorithm=SGD, privacy=privacy), NARROW, count=10, canaries=240)
    assert lower(found) > found[0].upper
    assert refuted(found) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("attacked", [True, False])
def test_a_released_aggregate_leaks_what_it_may(attacked):
    parts: dict[str, Any] = {"byzantine": 48, "attack": SignFlip()} if attacked else {}
    privacy = CentralPrivacy(clip=0.5, noise_multiplier=3.0)
    federation = Federation(privacy=privacy, **CENTRAL, **parts)
    found = runs(federation, WIDE, canaries=192)
    assert refuted(found) <= ALLOWED
    assert 0.1 < lower(found) < found[0].upper < 3.5
    loud = runs(with_noise(federation, 0.8), WIDE, canaries=192, count=10)
    assert refuted(loud) == 0
    assert 1 < lower(loud) < 10 < loud[0].upper


def test_a_released_aggregate_with_a_tenth_of_the_noise_is_refuted():
    federation = Federation(privacy=BrokenCentral(clip=0.5, noise_multiplier=4.0), **CENTRAL)
    found = runs(federation, WIDE, count=10)
    assert lower(found) > found[0].upper
    assert refuted(found) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("attacked", [True, False])
def test_examples_leak_what_they_may(attacked):
    parts: dict[str, Any] = UNDER_ATTACK | {"byzantine": 48} if attacked else {}
    privacy = ExamplePrivacy(clip=1.0, noise_multiplier=2.5)
    federation = Federation(algorithm=SGD, privacy=privacy, **parts)
    found = runs(federation, WIDE, rounds=10)
    assert refuted(found) <= ALLOWED
    assert 0.1 < lower(found) < found[0].upper < 4
    loud = runs(with_noise(federation, 0.8), WIDE, rounds=10, count=10)
    assert refuted(loud) == 0
    assert 1 < lower(loud) < 10 < loud[0].upper


@pytest.mark.slow
def test_examples_with_a_tenth_of_the_noise_are_refuted():
    federation = Federation(algorithm=SGD, privacy=BrokenExamples(clip=1.0, noise_multiplier=3.5))
    found = runs(federation, WIDE, rounds=10, count=5)
    assert lower(found) > found[0].upper
    assert refuted(found) == 5


LOCAL = MessagePrivacy(clip=0.5, noise_multiplier=3.0)
OTHERS = {
    "attack before noise": (LOCAL, UNDER_ATTACK | {"noise_order": ATTACK_FIRST}, NARROW),
    "laplace": (LOCAL.replace(mechanism="laplace"), {}, NARROW),
    "other algorithm": (LOCAL, {"algorithm": FedAvg(batch_size=1)}, NARROW),
    "local, half take part": (LOCAL, {"participation": Uniform(fraction=0.5)}, NARROW),
    "central, one replaced": (
        CentralPrivacy(clip=0.5, noise_multiplier=4.0),
        CENTRAL | {"participation": Uniform(fraction=0.5)},
        WIDE,
    ),
    "central, Poisson": (
        CentralPrivacy(clip=0.5, noise_multiplier=2.0),
        CENTRAL | {"participation": Poisson(rate=0.5)},
        WIDE,
    ),
    "adaptive clip": (
        CentralPrivacy(clip=QuantileClip(initial=0.5), noise_multiplier=3.0),
        CENTRAL,
        WIDE,
    ),
    "correlated noise": (
        CentralPrivacy(correlated=BandedNoise(rounds=ROUNDS, bands=3), noise_multiplier=1.0),
        CENTRAL,
        WIDE,
    ),
    "one example replaced": (
        ExamplePrivacy(noise_multiplier=4.0, sampling="fixed"),
        {"algorithm": SGD},
        WIDE,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_mechanisms_leak_what_they_may(name):
    privacy, parts, data = OTHERS[name]
    found = runs(Federation(**{"algorithm": SGD, "privacy": privacy} | parts), data)
    assert refuted(found) <= ALLOWED
    assert 0 <= lower(found) < found[0].upper < 10


def test_without_canaries_the_other_algorithm_runs_as_it_is():
    data = ragged()
    federation = Federation(
        algorithm=SCAFFOLD(batch_size=2, steps=2), aggregator=Mean(weighted=False)
    )
    plan = make_plan(federation, data, Softmax())
    state = init_state(federation, plan, 0)
    rounds = jax.jit(functools.partial(run_rounds, rounds=2), static_argnums=1)
    expected, _ = rounds(federation, plan, data, state)
    none = Canaries(
        inner=federation.algorithm,
        batch_size=2,
        slot=jnp.full((5,), 3),
        coins=jnp.ones((3,), bool),
        absent=0.0,
        what=jnp.ones((3, plan.spec.dim)),
        labels=None,
    )
    state = state.replace(server=(state.server, jnp.zeros((plan.spec.dim,))))
    found, _ = rounds(federation.replace(algorithm=none), plan, data, state)
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.server[0], expected.server, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.clients, expected.clients, rtol=1e-5, atol=1e-6)


CLIPPED = CentralPrivacy(clip=1.0, noise_multiplier=1.0)
EXAMPLES = ExamplePrivacy(clip=1.0, noise_multiplier=1.0)


class Unclipped(ExamplePrivacy):
    """Does not say how long a gradient is."""

    reach = capability(None)


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ({}, {}, "with privacy"),
        ({"privacy": Unclipped(noise_multiplier=1.0), "algorithm": SGD}, {}, "declare its reach"),
        ({"privacy": LOCAL, "fairness": TERM(tilt=1.0)}, {}, "without fairness"),
        ({"privacy": CLIPPED}, {}, "weighted=False"),
        ({"privacy": CLIPPED, "aggregator": Median()}, {}, "weighted=False"),
        ({"privacy": EXAMPLES, "algorithm": FedAvg(batch_size=1)}, {}, "FedSGD"),
        ({"privacy": LOCAL, "byzantine": 2}, {"canaries": 4}, "from 2 to 3"),
        ({"privacy": LOCAL}, {"canaries": 1}, "from 2 to 5"),
    ],
)
def test_what_cannot_be_audited_is_refused(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        audit(Federation(**parts), ragged(), Softmax(), rounds=1, **settings)


def test_an_audit_is_refuted_where_more_leaks_than_is_allowed():
    kept = Audit(1.0, 2.0, 0.95, 2, np.ones(1), np.ones(1))
    assert not kept.refuted
    assert dataclasses.replace(kept, lower=2.5).refuted
