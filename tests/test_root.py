"""The server's own samples: how they are drawn, and what the round makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays

from jaxfl import (
    IPM,
    SGD,
    Aggregator,
    FedAvg,
    Federation,
    FedSGD,
    FLTrust,
    LossRejection,
    Mean,
    Oracle,
    Simulation,
    Zeno,
)
from jaxfl.data import IID, Dirichlet, Natural, RootData, digits, from_arrays, synthetic
from jaxfl.models import MLP, Softmax
from jaxfl.round import run_round
from jaxfl.types import Aggregated, Batch, Context, Info

DATASET = synthetic(samples=300, features=6, classes=4)
ROOT = RootData(size=20)
DATA = DATASET.split(Dirichlet(alpha=1.0), clients=8, root=ROOT)
NEEDS = r"needs samples of the server's own: set root of the data, such as dataset\.split\("


class RootUpdate(Aggregator):
    """Answers with what the server computes on its own samples."""

    needs_root = frozenset({"update"})

    def aggregate(self, updates, state, context) -> Aggregated:
        return Aggregated(update=context.root_update, state=state, info=Info())


def root_arrays(data):
    own = np.asarray(data.root_index())
    return np.asarray(data.inputs, np.float64)[own], np.asarray(data.labels)[own]


def simulation(federation, data=DATA, model=None, **settings):
    return Simulation(federation, data, model or Softmax(), evaluate_every=1, **settings)


def test_the_servers_samples_are_no_clients():
    order, count = np.asarray(DATA.order), np.asarray(DATA.count)
    assert (DATA.root, count.sum()) == (20, 280)
    np.testing.assert_array_equal(np.sort(order), np.arange(300))
    np.testing.assert_array_equal(DATA.root_index(), order[280:])
    assert DATA.class_counts().sum() == 280
    again, other = (DATASET.split(IID(), 8, seed, root=ROOT) for seed in (0, 1))
    np.testing.assert_array_equal(again.root_index(), DATA.root_index())
    assert set(np.asarray(other.root_index())) != set(order[280:])
    without = DATASET.split(Dirichlet(alpha=1.0), clients=8)
    assert without.root == 0
    assert without.root_index().shape == (0,)


@pytest.mark.parametrize(
    ("root", "counts"),
    [
        (RootData(size=100, bias=0.1), [10] * 10),
        (RootData(size=100, bias=0.29), [8, 29, 8, 8, 8, 8, 8, 8, 8, 7]),
        (RootData(size=50, bias=1.0, bias_class=3), [0, 0, 0, 50, 0, 0, 0, 0, 0, 0]),
        (RootData(size=19, bias=0.0), [3, 0, *[2] * 8]),
    ],
)
def test_bias_is_the_share_of_one_class(root, counts):
    data = digits().split(IID(), 10, root=root)
    assert np.bincount(root_arrays(data)[1], minlength=10).tolist() == counts


def test_without_bias_every_sample_is_as_likely():
    labels = np.repeat([0, 1], [900, 100])
    draws = [RootData(size=200).draw(labels, 2, np.random.default_rng(s)) for s in range(30)]
    assert all(len(set(drawn)) == 200 for drawn in draws)
    assert np.mean([labels[drawn].mean() for drawn in draws]) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("root", "clients", "message"),
    [
        (RootData(size=300), 8, "RootData: size must be below the number of training samples, 300"),
        (
            RootData(size=10, bias=0.5, bias_class=4),
            8,
            r"bias_class must be one of .* 0\.\.3; got 4",
        ),
        (RootData(size=200, bias=1.0), 8, "200 of its samples are to be of class 1; there are"),
        (RootData(size=295), 8, "8 clients cannot share 5 samples"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_error(root, clients, message):
    with pytest.raises(ValueError, match=message):
        DATASET.split(IID(), clients, root=root)


def test_clients_that_the_data_names_keep_the_rest():
    owners = np.repeat(np.arange(3), 10)
    x = np.arange(30, dtype=np.float32)[:, None]
    dataset = from_arrays(x, owners, x, owners, client_ids=owners)
    data = dataset.split(Natural(), 3, root=RootData(size=6, bias=1 / 3))
    assert data.count.tolist() == [8, 8, 8]
    for client in range(3):
        assert np.all(client_arrays(data, client)[1] == client)


@pytest.mark.parametrize("rule", [Zeno(f=2), LossRejection(f=2), FLTrust()])
def test_a_rule_without_its_samples_is_refused(rule):
    with pytest.raises(ValueError, match=NEEDS) as error:
        simulation(Federation(aggregator=rule), DATASET.split(IID(), 8))
    assert "\n" not in str(error.value)
    Federation(aggregator=rule).check(8, root=1)


@pytest.mark.parametrize(
    "algorithm", [FedSGD(momentum=0.9), FedAvg(epochs=2, optimizer=SGD(learning_rate=0.3))]
)
def test_the_root_update_is_that_of_a_client_with_these_samples(algorithm):
    run = simulation(
        Federation(algorithm=algorithm, aggregator=RootUpdate(), optimizer=SGD(learning_rate=0.5))
    )
    softmax = NumpySoftmax(run.plan.objective, 6, 4)
    w, m, (x, y) = np.asarray(run.state.params, np.float64), 0.0, root_arrays(DATA)
    for _ in range(3):
        if isinstance(algorithm, FedSGD):
            m = 0.9 * m + 0.1 * softmax.gradient(w, x, y)
            update = m
        else:
            local = w
            for _ in range(2):
                local = local - 0.3 * softmax.gradient(local, x, y)
            update = w - local
        w = w - 0.5 * update
        run.run(1)
        np.testing.assert_allclose(run.state.params, w, rtol=1e-4, atol=1e-5)


def test_its_batches_are_as_large_as_the_clients_and_new_every_round():
    run = simulation(
        Federation(
            algorithm=FedSGD(batch_size=1), aggregator=RootUpdate(), optimizer=SGD(learning_rate=1)
        )
    )
    softmax = NumpySoftmax(run.plan.objective, 6, 4)
    x, y = root_arrays(DATA)
    drawn = []
    for _ in range(6):
        w = np.asarray(run.state.params, np.float64)
        run.run(1)
        own = [softmax.gradient(w, x[i : i + 1], y[i : i + 1]) for i in range(20)]
        errors = np.abs(np.stack(own) - (w - np.asarray(run.state.params))).max(axis=1)
        assert errors.min() < 1e-5
        drawn.append(int(np.argmin(errors)))
    assert len(set(drawn)) > 2


@pytest.mark.parametrize("rule", [Zeno(f=2), LossRejection(f=2, method="lfr")])
def test_the_round_hands_the_rule_what_a_notebook_would(rule):
    run = simulation(
        Federation(
            algorithm=FedSGD(batch_size=8),
            attack=IPM(scale=5.0),
            byzantine=2,
            aggregator=rule,
            optimizer=SGD(learning_rate=0.1),
        )
    )
    for _ in range(3):
        sent, before = run.messages().sent, jnp.copy(run.state.params)
        x, y = root_arrays(DATA)
        known = Context.of(
            8,
            params=before,
            objective=run.plan.objective,
            root_batch=Batch(
                jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), jnp.ones(20, bool)
            ),
        )
        result = rule.inspect(sent, context=known)
        records = run.run(1).records
        np.testing.assert_allclose(
            run.state.params, before - 0.1 * result.update, rtol=1e-4, atol=1e-6
        )
        byzantine = np.asarray(run.state.byzantine)
        np.testing.assert_allclose(
            records.malicious_selected[0], np.mean(result.info.selected[byzantine])
        )


class Both(Aggregator):
    """Half of what each kind of rule answers."""

    needs_root = frozenset({"update", "batch"})

    def aggregate(self, updates, state, context) -> Aggregated:
        zeno = Zeno(f=2).aggregate(updates, (), context)
        return zeno.replace(update=0.5 * (zeno.update + context.root_update), state=state)


@pytest.mark.slow
def test_seeds_with_their_own_root_samples_equal_single_runs():
    parts = [DATASET.split(Dirichlet(alpha=0.3), 8, seed=s, root=ROOT) for s in (0, 1)]
    federation = Federation(
        algorithm=FedSGD(batch_size=4, momentum=0.5), aggregator=Both(), byzantine=2, attack=IPM()
    )
    together = simulation(federation, parts, seeds=(5, 9)).run(3)
    for i, seed in enumerate((5, 9)):
        alone = simulation(federation, parts[i], seeds=(seed,)).run(3)
        for many, one in (
            (together.state.params, alone.state.params),
            (together.state.root, alone.state.root),
        ):
            np.testing.assert_allclose(many[i], one, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"equally many root samples; got \[0, 20\]"):
        simulation(federation, [parts[0], DATASET.split(IID(), 8)], seeds=(0, 1))


@pytest.mark.slow
def test_a_rule_that_needs_no_root_data_ignores_it():
    run = simulation(Federation(aggregator=Mean()))
    assert run.state.root == ()
    assert run.run(2).records.cohort.tolist() == [8, 8]


@pytest.mark.slow
def test_they_learn_where_the_mean_does_not():
    data = DATASET.split(Dirichlet(alpha=1.0), 10, root=RootData(size=50))
    base = Federation(algorithm=FedSGD(batch_size=16), attack=IPM(scale=5.0), byzantine=3)
    *robust, oracle, mean = (
        Simulation(base.replace(aggregator=rule), data, Softmax(), evaluate_every=60)
        .run(60)
        .final_accuracy
        for rule in (FLTrust(), Zeno(f=3), LossRejection(f=3), Oracle(), Mean())
    )
    assert min(robust) > oracle - 0.1
    assert oracle > mean + 0.3


@pytest.mark.slow
def test_models_with_a_state_of_their_own():
    """Dropout's random streams are part of what is evaluated."""
    run = simulation(Federation(aggregator=Both()), model=MLP(hidden=(5,), dropout=0.3))
    state, _ = jax.eval_shape(
        lambda state: run_round(run.federation, run.plan, DATA, state), run.state
    )
    assert jax.tree.structure(state) == jax.tree.structure(run.state)
