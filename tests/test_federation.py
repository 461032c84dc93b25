"""The round: against a plain loop over clients, and piece by piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays, ragged

from jaxfl import (
    IPM,
    SGD,
    ByzantineSGD,
    Cyclic,
    Federation,
    FedSGD,
    FLDetector,
    Full,
    Krum,
    LabelFlip,
    Mean,
    MessagePrivacy,
    MoNNA,
    NoPrivacy,
    Onset,
    Pipeline,
    Poisson,
    SignFlip,
    Simulation,
    TrimmedMean,
    Uniform,
)
from jaxfl.models import MLP, Softmax
from jaxfl.plan import make_plan

SIZES = (6, 9, 5, 12, 7, 8, 4, 10, 6)


def simulation(federation, sizes=SIZES, **settings):
    return Simulation(federation, ragged(sizes), Softmax(), evaluate_every=1, **settings)


def test_three_rounds_equal_a_loop_over_clients():
    federation = Federation(
        algorithm=FedSGD(),
        attack=IPM(scale=4.0),
        aggregator=TrimmedMean(f=2),
        optimizer=SGD(learning_rate=0.4, momentum=0.9, weight_decay=0.01),
        byzantine=2,
    )
    run = simulation(federation)
    softmax = NumpySoftmax(run.plan.objective, 4, 3)
    w, v = np.asarray(run.state.params, np.float64), 0.0
    byzantine = np.asarray(run.state.byzantine)
    assert byzantine.sum() == 2
    for _ in range(3):
        clients = [client_arrays(run.data, k) for k in range(len(SIZES))]
        losses = np.array([softmax.loss(w, x, y) for x, y in clients])
        sent = np.stack([softmax.gradient(w, x, y) for x, y in clients])
        honest_mean = sent[~byzantine].mean(axis=0)
        sent[byzantine] = -4.0 * honest_mean
        aggregate = np.sort(sent, axis=0)[2:-2].mean(axis=0)
        v = 0.9 * v + aggregate + 0.01 * w
        w = w - 0.4 * v
        history = run.run(1)
        record = jax.tree.map(lambda x: float(x[0]), history.records)
        np.testing.assert_allclose(history.state.params, w, rtol=1e-4, atol=1e-5)
        norms = np.linalg.norm(sent, axis=1)
        inner = aggregate @ honest_mean
        lengths = np.linalg.norm(aggregate), np.linalg.norm(honest_mean)
        expected = {
            "loss": losses[~byzantine].mean(),
            "honest_norm": norms[~byzantine].mean(),
            "byzantine_norm": norms[byzantine].mean(),
            "aggregate_norm": lengths[0],
            "distance": np.linalg.norm(aggregate - honest_mean),
            "cosine": inner / (lengths[0] * lengths[1]),
            "cohort": len(SIZES),
        }
        for name, value in expected.items():
            assert getattr(record, name) == pytest.approx(value, rel=1e-4), name
        assert np.isnan(record.honest_selected)
        assert np.isnan(record.malicious_weight)


def test_selection_rates_are_recorded():
    federation = Federation(
        algorithm=FedSGD(), attack=IPM(scale=50.0), aggregator=Krum(f=2), byzantine=2
    )
    records = simulation(federation).run(2).records
    np.testing.assert_allclose(records.honest_selected, 1 / 7, rtol=1e-6)
    np.testing.assert_array_equal(records.malicious_selected, 0)
    np.testing.assert_array_equal(records.malicious_weight, 0)
    mean = simulation(federation.replace(aggregator=Mean(weighted=False))).run(1).records
    assert mean.malicious_selected[0] == 1
    assert mean.malicious_weight[0] == pytest.approx(2 / 9)


@pytest.mark.slow
def test_a_chunk_of_any_size_gives_the_same_run():
    federation = Federation(algorithm=FedSGD(batch_size=4, momentum=0.5))
    model = MLP(hidden=[5], dropout=0.3)
    data = ragged(SIZES)
    runs = [
        Simulation(federation, data, model, evaluate_every=3, client_chunk=chunk).run(3)
        for chunk in (1, 4, 9, 50)
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.state.params, runs[0].state.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run.records.loss, runs[0].records.loss, rtol=1e-5)


def test_label_flip_changes_byzantine_messages_alone():
    honest = simulation(Federation(algorithm=FedSGD(), byzantine=3))
    flipped = simulation(Federation(algorithm=FedSGD(), byzantine=3, attack=LabelFlip()))
    softmax = NumpySoftmax(flipped.plan.objective, 4, 3)
    start = np.asarray(flipped.state.params, np.float64)
    before, after = honest.messages(), flipped.messages()
    byzantine = np.asarray(after.byzantine)
    np.testing.assert_array_equal(before.own[~byzantine], after.sent[~byzantine])
    for k in np.flatnonzero(byzantine):
        x, y = client_arrays(flipped.data, int(k))
        np.testing.assert_allclose(
            after.sent[k], softmax.gradient(start, x, 2 - y), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("inner", [SignFlip(), LabelFlip()])
def test_onset_waits_for_its_round(inner):
    run = simulation(
        Federation(algorithm=FedSGD(), byzantine=3, attack=Onset(attack=inner, start=2))
    )
    quiet = simulation(Federation(algorithm=FedSGD(), byzantine=3))
    for number in range(3):
        same = np.allclose(run.messages().sent, quiet.messages().sent)
        assert same == (number < 2)
        run.run(1)
        quiet.run(1)


def test_noise_first_leaves_crafted_rows_alone():
    privacy = MessagePrivacy(clip=0.1, noise_multiplier=0.0)
    federation = Federation(
        algorithm=FedSGD(), attack=IPM(scale=100.0), byzantine=2, privacy=privacy
    )
    first = simulation(federation).messages()
    byzantine = np.asarray(first.byzantine)
    norms = np.linalg.norm(first.sent, axis=1)
    np.testing.assert_allclose(norms[~byzantine], 0.1, rtol=1e-4)
    mean = np.mean(first.sent[~byzantine], axis=0)
    np.testing.assert_allclose(first.sent[byzantine], -100 * mean[None].repeat(2, 0), rtol=1e-4)

    last = simulation(federation.replace(noise_order="attack_then_noise")).messages()
    np.testing.assert_allclose(np.linalg.norm(last.sent, axis=1), 0.1, rtol=1e-4)
    assert np.linalg.norm(last.own[~byzantine], axis=1).min() > 0.1


@pytest.mark.parametrize("order", ["noise_then_attack", "attack_then_noise"])
def test_noise_is_each_clients_own_and_new_every_round(order):
    federation = Federation(
        algorithm=FedSGD(),
        optimizer=SGD(learning_rate=1e-9),
        privacy=MessagePrivacy(noise_multiplier=1.0),
        noise_order=order,
    )
    run = simulation(federation)
    clean = simulation(federation.replace(privacy=NoPrivacy())).messages().sent
    first = np.asarray(run.messages().sent - clean)
    run.run(1)
    second = np.asarray(run.messages().sent - clean)
    assert np.std(first) == pytest.approx(1, abs=0.2)
    assert np.abs(first - second).max() > 0.5
    assert np.abs(first[0] - first[1]).max() > 0.5


def test_another_client_does_not_change_what_the_others_draw():
    federation = Federation(algorithm=FedSGD(), privacy=MessagePrivacy(noise_multiplier=1.0))
    noisy = {}
    for sizes in (SIZES, (*SIZES, 5)):
        run = simulation(federation, sizes)
        clean = simulation(federation.replace(privacy=NoPrivacy()), sizes)
        noisy[sizes] = np.asarray(run.messages().sent - clean.messages().sent)
    few, many = noisy.values()
    np.testing.assert_allclose(few, many[: len(few)], atol=1e-5)


@pytest.mark.parametrize("participation", [Uniform(fraction=0.5), Poisson(rate=0.5)])
def test_a_partial_cohort_is_weighted_by_its_samples(participation):
    federation = Federation(
        algorithm=FedSGD(), optimizer=SGD(learning_rate=1.0), participation=participation
    )
    run = simulation(federation)
    start = np.asarray(run.state.params)
    exchange = run.messages()
    present = np.ones(len(exchange.ids), bool)
    if exchange.present is not None:
        present = np.asarray(exchange.present)
        assert np.all(np.asarray(exchange.ids)[~present] == len(SIZES))
    ids = np.asarray(exchange.ids)[present]
    assert len(set(ids)) == len(ids)
    weights = np.asarray(SIZES)[ids] / np.asarray(SIZES)[ids].sum()
    expected = start - weights @ np.asarray(exchange.sent)[present]
    history = run.run(1)
    np.testing.assert_allclose(history.state.params, expected, rtol=1e-4, atol=1e-5)
    assert history.records.cohort[0] == len(ids)


def test_the_byzantine_clients_follow_the_seed():
    federation = Federation(byzantine=3)
    masks = {
        tuple(np.asarray(simulation(federation, seeds=(s,)).state.byzantine)) for s in range(5)
    }
    assert len(masks) > 1
    assert {sum(mask) for mask in masks} == {3}


@pytest.mark.parametrize(
    ("federation", "message"),
    [
        (Federation(byzantine=10), "byzantine must be at most the number of clients, 9; got 10"),
        (Federation(aggregator=Krum(f=4)), r"Krum needs n >= 2f \+ 3 clients; got n = 9, f = 4"),
        (
            Federation(aggregator=MoNNA(f=1), participation=Poisson(rate=0.5)),
            r"MoNNA\(f=1.*\) cannot leave out absent clients",
        ),
        *(
            (
                Federation(aggregator=rule, participation=some),
                r"ByzantineSGD\(.* compares .* in all rounds, so it does not go with "
                f"{type(some).__name__} participation; use Full",
            )
            for rule in (ByzantineSGD(), Pipeline(pre=[], rule=ByzantineSGD()))
            for some in (Uniform(fraction=0.5), Poisson(rate=0.5), Cyclic(groups=3))
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_runs(federation, message):
    with pytest.raises(ValueError, match=message):
        make_plan(federation, ragged(SIZES), Softmax())


def test_who_takes_part_in_every_round_can_be_compared_over_rounds():
    for everybody in (Full(), Uniform(fraction=1.0), Cyclic(groups=1)):
        Federation(aggregator=ByzantineSGD(), participation=everybody).check(9)
    Federation(aggregator=FLDetector(), participation=Uniform(fraction=0.5)).check(9)


def test_non_finite_clients_are_data():
    data = ragged(SIZES)
    data = data.replace(inputs=data.inputs.at[data.order[data.start[0]]].set(jnp.nan))
    run = Simulation(Federation(algorithm=FedSGD()), data, Softmax(), evaluate_every=2)
    history = run.run(2)
    assert not history.diverged
    assert history.records.honest_selected[0] == pytest.approx(8 / 9)
    sent = np.asarray(run.messages().sent)[1:]
    third = run.run(1).records
    norms = np.linalg.norm(sent, axis=1)
    np.testing.assert_allclose(third.honest_norm[0], norms.mean(), rtol=1e-5)
    weights = np.asarray(data.count)[1:] / int(np.sum(data.count[1:]))
    error = np.linalg.norm(weights @ sent - sent.mean(axis=0))
    np.testing.assert_allclose(third.distance[0], error, rtol=1e-4, atol=1e-7)
