"""Attacks inside the compiled round: cohorts, models, root data, and what is measured of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ragged

from jaxfl import (
    ALIE,
    DBA,
    IPM,
    QFFL,
    SGD,
    Backdoor,
    CentralPrivacy,
    Combined,
    Federation,
    FedSGD,
    FLTrust,
    FLTrustAdaptive,
    FreeRider,
    LabelFlip,
    Mean,
    MessagePrivacy,
    Mimic,
    Mixed,
    Onset,
    Scaling,
    SignFlip,
    Simulation,
    StepDecay,
    TimeVarying,
    Uniform,
    data,
)
from jaxfl.attacks import Attack
from jaxfl.attacks.base import ALL, OWN
from jaxfl.attacks.branches import Branches
from jaxfl.component import capability
from jaxfl.data import IID, Dataset, Dirichlet, RootData
from jaxfl.models import MLP, Softmax
from jaxfl.round import receive

CLIENTS = 10


@functools.cache
def images(seed=0, **given):
    """Bright and dark halves tell two of four classes apart; uint8, so normalised in the round."""
    random = np.random.default_rng(seed)
    labels = np.arange(240) % 4
    inputs = random.integers(0, 100, (240, 6, 6), dtype=np.uint8)
    inputs[labels % 2 == 1, :3] += 120
    inputs[labels >= 2, :, :3] += 100
    train, test = slice(200), slice(200, None)
    parts = inputs[train], labels[train], inputs[test], labels[test]
    dataset = Dataset("halves", *parts, classes=4, mean=(0.4,), std=(0.2,))
    return dataset.split(IID(), CLIENTS, **given)


@pytest.mark.parametrize("fixed", [0, 2, 4])
def test_every_cohort_has_the_same_number_of_byzantine_clients(fixed):
    federation = Federation(
        participation=Uniform(fraction=0.5), byzantine=4, byzantine_per_round=fixed
    )
    byzantine = np.isin(np.arange(20), [3, 8, 9, 15])
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: federation.cohort(jnp.asarray(byzantine), key)[0]))
    ids = np.asarray(draw(keys))
    assert ids.shape == (2000, 10)
    assert all(len(set(row)) == 10 for row in ids)
    assert (byzantine[ids].sum(1) == fixed).all()
    often = np.bincount(ids.ravel(), minlength=20) / 2000
    np.testing.assert_allclose(often[byzantine], fixed / 4, atol=0.05)
    np.testing.assert_allclose(often[~byzantine], (10 - fixed) / 16, atol=0.05)
    if fixed:  # they stand anywhere in the cohort
        place = np.argmax(byzantine[ids], axis=1)
        assert len(set(place)) > 10 - fixed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"byzantine_per_round": 2},
            "byzantine_per_round goes with Uniform participation",
        ),
        (
            {"byzantine_per_round": 4, "participation": Uniform(fraction=0.5)},
            "byzantine_per_round must be from 0 to 3 with 3 Byzantine of 9 clients",
        ),
        (
            {"byzantine_per_round": 0, "participation": Uniform(fraction=0.9)},
            "byzantine_per_round must be from 2 to 3",
        ),
    ],
)
def test_a_number_that_no_cohort_can_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Federation(byzantine=3).replace(**changes).check(9)


def test_a_fixed_number_sizes_the_program():
    federation = Federation(
        participation=Uniform(fraction=0.6), byzantine=3, byzantine_per_round=1, attack=SignFlip()
    )
    simulation = Simulation(federation, ragged(), Softmax())
    assert simulation.plan.spec.max_byzantine == 1
    sent = simulation.messages()
    assert np.asarray(sent.byzantine).sum() == 1
    np.testing.assert_array_equal(
        sent.sent, np.where(np.asarray(sent.byzantine)[:, None], -sent.own, sent.own)
    )


@pytest.mark.parametrize("byzantine", [0, 9])
def test_any_number_of_attackers_is_a_legal_simulation(byzantine):
    federation = Federation(byzantine=byzantine, attack=IPM(scale=1.0))
    history = Simulation(federation, images(), Softmax()).run(1)
    assert np.isfinite(history.state.params).all()
    assert int(history.state.byzantine.sum()) == byzantine


def test_attackers_of_the_population_keep_their_part():
    """Each attacker's share in a mixture is its own, whatever the cohort."""
    attacks = (SignFlip(), FreeRider(), LabelFlip(to="least_likely"), Backdoor(size=2), DBA(size=2))
    federation = Federation(
        attack=Mixed(attacks=attacks), byzantine=7, participation=Uniform(fraction=0.7)
    )
    simulation = Simulation(federation, images(), Softmax(), evaluate_every=1)
    rank = np.cumsum(np.asarray(simulation.state.byzantine)) - 1
    for _ in range(3):
        messages = simulation.messages()
        before = np.asarray(simulation.state.attack[1][0])
        rate = float(simulation.state.attack[1][1])
        last = (before - np.asarray(simulation.state.params)) / rate if rate else 0
        for i, client in enumerate(np.asarray(messages.ids)):
            own, sent = np.asarray(messages.own[i]), np.asarray(messages.sent[i])
            part = rank[client] % 5 if messages.byzantine[i] else None
            expected = {0: -own, 1: last + 0 * own}.get(part, own)
            np.testing.assert_allclose(sent, expected, rtol=1e-6)
        simulation.advance(1)


def test_the_rate_of_each_round_is_known():
    """A free rider repeats the server's last aggregate, over the rate of that round."""
    rate = StepDecay(initial=0.5, boundaries=(1,))
    federation = Federation(attack=FreeRider(), optimizer=SGD(learning_rate=rate), byzantine=3)
    simulation = Simulation(federation, images(), Softmax(), evaluate_every=1)
    before = None
    for step in (None, 0.5, 0.05):
        messages, params = simulation.messages(), np.asarray(simulation.state.params)
        expected = 0 * params if before is None else (before - params) / step
        sent = np.asarray(messages.sent)[np.asarray(messages.byzantine)]
        np.testing.assert_allclose(sent, np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-6)
        before = params
        simulation.advance(1)


class ByMemory(Attack):
    """Trains on labels that it counts up in its memory."""

    poisons = capability(True)
    crafts = capability(True)
    knows = capability(OWN)

    def init(self, spec):
        return jnp.int32(1)

    def poison(self, batch, client, key):
        return batch.replace(labels=jnp.full_like(batch.labels, client.memory % 2))

    def craft(self, view, state):
        return view.own_rows(), state + 1


@pytest.mark.parametrize("mixture", [Mixed, TimeVarying, functools.partial(Branches, which=1)])
def test_attacks_on_data_are_told_their_own_memory(mixture):
    parts = mixture(attacks=(SignFlip(), ByMemory(), ByMemory()))
    federation = Federation(attack=parts, byzantine=3)
    assert np.isfinite(Simulation(federation, images(), Softmax()).run(2).state.params).all()


def test_data_attacks_change_what_attackers_compute_and_nothing_else():
    base = Federation(byzantine=3, algorithm=FedSGD())
    model = Softmax()
    clean = Simulation(base, images(), model).messages()
    for attack in (LabelFlip(to="random"), LabelFlip(to="least_likely"), DBA(size=2)):
        dirty = Simulation(base.replace(attack=attack), images(), model).messages()
        off = np.abs(np.asarray(dirty.own) - np.asarray(clean.own)).max(axis=1)
        # Two programs round differently; what an attacker computes is another thing altogether.
        np.testing.assert_array_equal(off > 1e-6, clean.byzantine)


@pytest.mark.parametrize(
    "attack",
    [
        Backdoor(size=2, target=1),
        pytest.param(DBA(size=2, target=1), marks=pytest.mark.slow),
    ],
)
def test_the_success_of_a_backdoor_is_that_of_the_model(attack):
    parts = Combined(data=attack, message=Scaling(factor=2.0))
    split = images()
    federation = Federation(
        attack=Onset(attack=parts, start=2), byzantine=4, optimizer=SGD(learning_rate=0.3)
    )
    history = Simulation(federation, split, MLP(hidden=[16]), evaluate_every=20).run(60)
    assert history.evaluations.attack_success.shape == (3,)
    inputs = split.normalise(split.test_inputs)
    peak = (1 - 0.4) / 0.2
    assert split.peak == pytest.approx((peak,))
    stamped = np.array(inputs)
    stamped[:, 4:, 4:] = peak
    labels = np.asarray(split.test_labels)
    taken = np.asarray(history.model(jnp.asarray(stamped))).argmax(1)[labels != 1] == 1
    assert history.evaluations.attack_success[-1] == pytest.approx(taken.mean(), abs=1e-6)
    plain = np.asarray(history.model(inputs)).argmax(1)[labels != 1] == 1
    assert taken.mean() > plain.mean() + 0.3
    assert history.final_accuracy > 0.8


def test_a_diverged_model_has_no_success():
    simulation = Simulation(Federation(attack=Backdoor(size=2), byzantine=1), images(), Softmax())
    lost = jnp.full_like(simulation.state.params, jnp.nan)
    simulation.state = simulation.state.replace(params=lost)
    assert np.isnan(simulation.evaluate().attack_success)


class Foretells(Attack):
    """Sends what it thinks that the server will make of the round as it is."""

    crafts = capability(True)
    knows = capability(ALL)
    probes = capability(True)

    def craft(self, view, state):
        return view.defence.probe(view.updates)[None], state


@pytest.mark.parametrize("fairness", [None, QFFL(q=2.0, lipschitz=10.0)])
@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": CentralPrivacy(clip=0.05, noise_multiplier=1.0)},
        {
            "privacy": MessagePrivacy(clip=0.05, noise_multiplier=1e-6),
            "noise_order": "attack_then_noise",
        },
    ],
    ids=["central", "late"],
)
def test_the_defence_that_is_tried_bounds_and_weighs_as_the_server_does(settings, fairness):
    federation = Federation(
        attack=Foretells(),
        byzantine=1,
        aggregator=Mean(weighted=False),
        fairness=fairness if "noise_order" in settings else None,
        **settings,
    )
    run = Simulation(federation, ragged(), Softmax())
    received = jax.jit(receive, static_argnums=1)(federation, run.plan, run.data, run.state)
    own = np.asarray(received.own, np.float64)
    clipped = own * np.minimum(1, 0.05 / np.linalg.norm(own, axis=1))[:, None]
    factors = np.ones(5) if received.weighed is None else np.asarray(received.weighed.factors)
    expected = (factors[:, None] * clipped).mean(axis=0)
    byzantine = int(np.flatnonzero(run.state.byzantine)[0])
    sent = np.asarray(received.sent)[byzantine] / factors[byzantine]
    np.testing.assert_allclose(sent, expected, atol=1e-5)


def test_without_a_backdoor_no_success_is_measured():
    for parts in ({"attack": ALIE(), "byzantine": 2}, {"attack": Backdoor(size=2)}):
        simulation = Simulation(Federation(**parts), images(), Softmax())
        assert simulation.evaluate().attack_success is None


def test_a_trigger_larger_than_the_image_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="Backdoor: size must be at most that of the image, 6"):
        Simulation(Federation(attack=Backdoor(size=7), byzantine=1), images(), Softmax())


@pytest.mark.slow
def test_the_adaptive_attack_works_against_fltrust_in_the_round():
    federation = Federation(byzantine=4, aggregator=FLTrust(), attack=FLTrustAdaptive())
    split = images(root=RootData(size=20))
    messages = Simulation(federation, split, Softmax()).messages()
    sent = np.asarray(messages.sent)[np.asarray(messages.byzantine)]
    assert np.ptp(sent, axis=0).max() == 0
    attacked = Simulation(federation, split, Softmax()).run(20).records.cosine
    flipped = Simulation(federation.replace(attack=SignFlip()), split, Softmax()).run(20)
    assert attacked.mean() < flipped.records.cosine.mean()
    for attack in (FLTrustAdaptive(), Onset(attack=FLTrustAdaptive(), start=3)):
        against_mean = federation.replace(aggregator=Mean(), attack=attack)
        with pytest.raises(ValueError, match="works against a defence with an update of the serv"):
            against_mean.check(CLIENTS, root=20)


@pytest.mark.slow
def test_digits_under_the_distributed_backdoor():
    split = data.digits().split(Dirichlet(alpha=1.0), 20)
    parts = Combined(data=DBA(size=2, parts=4, target=7), message=Scaling(factor=3.0))
    federation = Federation(attack=parts, byzantine=4, optimizer=SGD(learning_rate=0.3))
    history = Simulation(federation, split, Softmax(), evaluate_every=50).run(100)
    clean = Simulation(
        federation.replace(
            attack=Combined(data=DBA(size=2, target=7, fraction=0.0), message=Scaling(factor=3.0))
        ),
        split,
        Softmax(),
        evaluate_every=50,
    ).run(100)
    assert history.evaluations.attack_success[-1] > clean.evaluations.attack_success[-1] + 0.4


def test_a_memory_that_begins_as_one_zero_can_be_donated():
    """The round takes the memory of the state before it, of each leaf once."""
    federation = Federation(attack=Mimic(target=None), byzantine=2, aggregator=Mean())
    simulation = Simulation(federation, ragged(), Softmax())
    simulation.run(2)
    assert int(simulation.state.attack.rounds) == 2
