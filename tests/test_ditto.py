"""Ditto: clients' own models, against plain NumPy, and how clients are evaluated by them."""

import dataclasses

import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays, ragged

import jaxfl
from jaxfl import SGD, Ditto, FedAvg, Federation, Mean, Simulation, Uniform, evaluation
from jaxfl.component import capability
from jaxfl.data import Dirichlet
from jaxfl.evaluation import evaluate
from jaxfl.models import Softmax

DATA = ragged()
OWN = [client_arrays(DATA, k) for k in range(DATA.clients)]
PARTS = Federation(
    algorithm=Ditto(lam=0.7, epochs=4, optimizer=SGD(learning_rate=0.2)),
    aggregator=Mean(weighted=False),
    optimizer=SGD(learning_rate=1.0),
    participation=Uniform(fraction=0.6),
)


def rounds(run, count):
    """Takes rounds, without an evaluation; the cohort of each, and the state after all."""
    cohorts, before = [], np.array(run.state.participations)
    for _ in range(count):
        run.state, _ = run.block(1)(run.federation, run.data, run.state)
        after = np.array(run.state.participations)
        cohorts.append(np.flatnonzero(after - before))
        before = after
    return cohorts, run.state


def softmax_of(run):
    return NumpySoftmax(run.plan.objective, 4, 3)


def descended(gradient, start, steps=4, rate=0.2):
    w = start.copy()
    for _ in range(steps):
        w = w - rate * gradient(w)
    return w


def test_ditto_is_algorithm_1_of_the_paper():
    run = Simulation(PARTS, DATA, Softmax())
    softmax, w = softmax_of(run), np.asarray(run.state.params, np.float64)
    own, seen = np.zeros((DATA.clients, len(w))), np.zeros(DATA.clients, bool)
    for _ in range(4):
        (ids,), state = rounds(run, 1)
        sent = []
        for k in ids:
            x, y = OWN[k]
            start = own[k] if seen[k] else w
            own[k] = descended(lambda v: softmax.gradient(v, x, y) + 0.7 * (v - w), start)  # noqa: B023
            sent.append(descended(lambda v: softmax.gradient(v, x, y), w))  # noqa: B023
            seen[k] = True
        w = np.mean(sent, axis=0)
        np.testing.assert_allclose(state.params, w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.clients.params, own, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.clients.begun, seen)


def test_what_clients_send_is_fedavg_s_whatever_their_own_models_are():
    local = {"epochs": 2, "batch_size": 4, "optimizer": SGD(learning_rate=0.2, momentum=0.5)}
    runs = [
        Simulation(PARTS.replace(algorithm=algorithm), DATA, Softmax())
        for algorithm in (FedAvg(**local), Ditto(lam=0.0, **local), Ditto(lam=3.0, **local))
    ]
    states = [rounds(run, 2)[1] for run in runs]
    for state in states[1:]:
        np.testing.assert_array_equal(state.params, states[0].params)
    assert not np.allclose(states[1].clients.params, states[2].clients.params)


@pytest.fixture(scope="module")
def trained():
    """After one round, in which not all clients took part."""
    run = Simulation(PARTS.replace(byzantine=1), DATA, Softmax())
    (ids,), state = rounds(run, 1)
    assert 0 < len(ids) < DATA.clients
    return run.plan, state


@pytest.mark.parametrize("together", [2, 64])
def test_a_client_is_evaluated_by_the_model_that_it_uses(trained, together, monkeypatch):
    monkeypatch.setattr(evaluation, "OWN_BATCH", together)
    plan, state = trained
    softmax = NumpySoftmax(plan.objective, 4, 3)
    used = np.where(
        np.asarray(state.clients.begun)[:, None], state.clients.params, np.asarray(state.params)
    )
    right = [np.mean(softmax.predict(v, x) == y) for v, (x, y) in zip(used, OWN, strict=True)]
    shared = [np.mean(softmax.predict(np.asarray(state.params), x) == y) for x, y in OWN]
    assert not np.allclose(right, shared)
    found = evaluate(plan, DATA, state, client_accuracy=True, personal=Ditto)
    np.testing.assert_allclose(found.client_accuracy, right, rtol=1e-6)
    honest = np.asarray(right)[~np.asarray(state.byzantine)]
    assert found.fairness.mean == pytest.approx(honest.mean(), rel=1e-5)
    assert found.fairness.variance == pytest.approx(honest.var(), rel=1e-4)
    whole = evaluate(plan, DATA, state, client_accuracy=True)
    np.testing.assert_allclose(whole.client_accuracy, shared, rtol=1e-6)
    assert float(found.accuracy) == float(whole.accuracy)


def test_a_model_of_one_s_own_that_has_diverged_is_not_left_out(trained):
    plan, state = trained
    bad = int(np.flatnonzero(state.byzantine)[0])
    for client in range(DATA.clients):
        params = state.clients.params.at[client].set(np.inf)
        begun = state.clients.begun.at[client].set(True)
        lost = state.replace(clients=state.clients.replace(params=params, begun=begun))
        found = evaluate(plan, DATA, lost, client_accuracy=True, personal=Ditto)
        assert np.flatnonzero(np.isnan(found.client_accuracy)).tolist() == [client]
        assert np.isnan(found.fairness.mean) == (client != bad)


def test_strengths_are_swept_in_one_program():
    parts = [PARTS.replace(algorithm=Ditto(lam=lam, epochs=2)) for lam in (0.0, 2.0)]
    together = Simulation(parts, [DATA, DATA], Softmax(), seeds=(0, 0), client_accuracy=True)
    history = together.run(2)
    for place, part in enumerate(parts):
        alone = Simulation(part, DATA, Softmax(), client_accuracy=True).run(2)
        ours, theirs = history.state.clients.params[place], alone.state.clients.params
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            history.evaluations.client_accuracy[place], alone.evaluations.client_accuracy
        )


def test_a_client_s_own_model_must_be_one():
    class Half(FedAvg):
        personalises = capability(True)

        @classmethod
        def personal(cls, memory, received):
            return received[:3]

    with pytest.raises(ValueError, match=r"Half.personal returned .*one number per parameter"):
        Simulation(
            PARTS.replace(algorithm=Half()), DATA, Softmax(), client_accuracy=True
        ).evaluate()


@pytest.mark.slow
def test_ditto_serves_all_clients_where_attackers_ruin_the_common_model():
    data = jaxfl.data.digits().split(Dirichlet(alpha=0.1), 10, client_test=0.3)
    parts = PARTS.replace(
        participation=jaxfl.Full(), byzantine=2, attack=jaxfl.SignFlip(), aggregator=jaxfl.Median()
    )
    local = {"epochs": 2, "batch_size": 16}
    found = {}
    for algorithm in (FedAvg(**local), Ditto(lam=0.1, **local)):
        run = Simulation(
            dataclasses.replace(parts, algorithm=algorithm), data, Softmax(), client_accuracy=True
        )
        found[type(algorithm)] = run.run(20).evaluations
    fedavg, ditto = found[FedAvg].fairness, found[Ditto].fairness
    np.testing.assert_array_equal(found[FedAvg].accuracy, found[Ditto].accuracy)
    assert ditto.worst_tenth[-1] > fedavg.worst_tenth[-1] + 0.3
    assert ditto.variance[-1] < 0.2 * fedavg.variance[-1]
