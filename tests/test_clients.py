"""What clients compute, against plain NumPy over the same samples."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import NumpySoftmax, client_arrays, ragged

from jaxfl import SGD, FedAvg, Federation, FedSGD, Simulation, Uniform
from jaxfl.clients import ClientAlgorithm
from jaxfl.models import MLP, Softmax


def simulation(federation, data=None, **settings):
    return Simulation(federation, ragged() if data is None else data, Softmax(), **settings)


def reference(run):
    return NumpySoftmax(run.plan.objective, 4, 3), np.asarray(run.state.params, np.float64)


def test_fedavg_with_one_full_step_is_fedsgd():
    one = simulation(Federation(algorithm=FedSGD(), optimizer=SGD(learning_rate=0.3)))
    local = FedAvg(epochs=1, optimizer=SGD(learning_rate=0.3))
    two = simulation(Federation(algorithm=local, optimizer=SGD(learning_rate=1.0)))
    first, second = one.run(3), two.run(3)
    np.testing.assert_allclose(first.state.params, second.state.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.records.loss, second.records.loss, rtol=1e-5)


def test_fedavg_takes_local_steps_with_momentum_and_weights_by_samples():
    algorithm = FedAvg(epochs=4, optimizer=SGD(learning_rate=0.2, momentum=0.5))
    run = simulation(Federation(algorithm=algorithm, optimizer=SGD(learning_rate=1.0)))
    softmax, start = reference(run)
    data, average = run.data, np.zeros_like(start)
    for k in range(data.clients):
        x, y = client_arrays(data, k)
        w, v = start.copy(), 0
        for _ in range(4):
            v = 0.5 * v + softmax.gradient(w, x, y)
            w = w - 0.2 * v
        average += len(y) * w
    average /= int(np.sum(data.count))
    np.testing.assert_allclose(run.run(1).state.params, average, rtol=1e-4, atol=1e-5)


def test_batches_of_an_epoch_are_disjoint_and_ragged_clients_take_fewer_steps():
    """At a learning rate of almost nothing, the sum over steps is the sum of batch gradients."""
    run = simulation(
        Federation(
            algorithm=FedAvg(epochs=1, batch_size=4, optimizer=SGD(learning_rate=1e-3)),
            optimizer=SGD(learning_rate=1.0),
        )
    )
    softmax, start = reference(run)
    own = np.asarray(run.messages().own, np.float64) * 1e3
    for k in range(run.data.clients):
        x, y = client_arrays(run.data, k)
        full = softmax.gradient(start, x, y)
        steps = -(-len(y) // 4)
        # Equal batches: their mean gradient is the full one.
        if len(y) % 4 == 0:
            np.testing.assert_allclose(own[k] / steps, full, rtol=0.02, atol=2e-3)
        assert np.linalg.norm(own[k]) < (steps + 0.5) * np.max(np.linalg.norm(x, axis=1)) * 2


def test_a_batch_larger_than_a_client_is_masked():
    run = simulation(Federation(algorithm=FedSGD(batch_size=8)))
    softmax, start = reference(run)
    exchange = run.messages()
    small = [k for k in range(run.data.clients) if int(run.data.count[k]) <= 8]
    assert len(small) == 3
    for k in small:
        x, y = client_arrays(run.data, k)
        expected = softmax.gradient(start, x, y)
        np.testing.assert_allclose(exchange.own[k], expected, rtol=1e-4, atol=1e-6)


def test_a_minibatch_is_drawn_without_replacement_and_anew_each_round():
    run = simulation(Federation(algorithm=FedSGD(batch_size=1), optimizer=SGD(learning_rate=1e-9)))
    softmax, start = reference(run)
    x, y = client_arrays(run.data, 3)
    single = np.stack([softmax.gradient(start, x[i : i + 1], y[i : i + 1]) for i in range(len(y))])
    drawn = set()
    for _ in range(12):
        own = np.asarray(run.messages().own[3])
        errors = np.abs(single - own).max(axis=1)
        assert errors.min() < 1e-4
        drawn.add(int(errors.argmin()))
        run.run(1)
    assert len(drawn) > 3


def test_client_momentum_is_an_average_of_gradients():
    run = simulation(
        Federation(algorithm=FedSGD(momentum=0.8), optimizer=SGD(learning_rate=0.5)),
        evaluate_every=1,
    )
    softmax, w = reference(run)
    data, memory = run.data, np.zeros((run.data.clients, len(w)))
    weights = np.asarray(data.count) / int(np.sum(data.count))
    for _ in range(3):
        for k in range(data.clients):
            memory[k] = 0.8 * memory[k] + 0.2 * softmax.gradient(w, *client_arrays(data, k))
        w = w - 0.5 * weights @ memory
        history = run.run(1)
        np.testing.assert_allclose(history.state.params, w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(history.state.clients, memory, rtol=1e-4, atol=1e-5)


def test_only_the_cohort_remembers():
    federation = Federation(algorithm=FedSGD(momentum=0.8), participation=Uniform(fraction=0.4))
    run = simulation(federation, evaluate_every=1)
    ids = np.asarray(run.messages().ids)
    memory = np.asarray(run.run(1).state.clients)
    moved = np.flatnonzero(np.any(memory != 0, axis=1))
    assert sorted(ids) == moved.tolist()
    assert len(ids) == 2


@pytest.mark.parametrize("bad", [0, -3, 2.5, True])
def test_bad_batch_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="FedSGD: batch_size must be"):
        FedSGD(batch_size=bad)


def test_steps_beyond_a_small_client_s_data_do_nothing():
    """Momentum and weight decay would go on moving a client whose data are used up."""
    local = SGD(learning_rate=0.2, momentum=0.9, weight_decay=0.1)
    algorithm = FedAvg(epochs=2, batch_size=4, optimizer=local)
    run = simulation(Federation(algorithm=algorithm))
    softmax, start = reference(run)
    own = np.asarray(run.messages().own, np.float64)
    (k,) = [k for k in range(run.data.clients) if int(run.data.count[k]) <= 4]
    x, y = client_arrays(run.data, k)
    w, v = start.copy(), 0
    for _ in range(2):
        v = 0.9 * v + softmax.gradient(w, x, y) + 0.1 * w
        w = w - 0.2 * v
    np.testing.assert_allclose(own[k], start - w, rtol=1e-4, atol=1e-6)


def test_a_client_s_draws_do_not_depend_on_the_largest_client():
    """The same clients beside a larger one: same batches, same dropout, same messages."""
    small = ragged(sizes=(3, 9, 5))
    federation = Federation(algorithm=FedAvg(epochs=2, batch_size=4))
    model = MLP(hidden=(8,), dropout=0.5)
    one = Simulation(federation, small, model).messages().own
    other = Simulation(federation, small.replace(capacity=30), model).messages().own
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_padding_repeats_a_client_s_own_samples():
    """So that batch statistics of a small client are its own, here exactly: 12 is 4 times 3."""

    def net(rngs):
        return nnx.Sequential(nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs))

    pair = ragged(sizes=(3, 12))
    both = Simulation(Federation(algorithm=FedSGD()), pair, net).messages().own
    alone = pair.replace(start=pair.start[:1], count=pair.count[:1], capacity=3)
    single = Simulation(Federation(algorithm=FedSGD()), alone, net).messages().own
    np.testing.assert_allclose(both[0], single[0], rtol=1e-4, atol=1e-6)


def test_a_bfloat16_model_keeps_its_type():
    def net(rngs):
        return nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=rngs)

    server = SGD(momentum=0.9)
    local = FedAvg(optimizer=SGD(learning_rate=0.1, momentum=0.9))
    federation = Federation(algorithm=local, optimizer=server)
    assert Simulation(federation, ragged(), net).run(1).state.params.dtype == jnp.bfloat16
    federation = Federation(algorithm=FedSGD(momentum=0.9), optimizer=server)
    state = Simulation(federation, ragged(), net, evaluate_every=2).run(2).state
    assert state.params.dtype == jnp.bfloat16
    assert state.clients.dtype == jnp.bfloat16
    assert bool(jnp.any(state.clients != 0))


def test_an_algorithm_that_claims_to_be_private_must_say_how_often_it_uses_samples():
    class Silent(FedSGD):
        uses = ClientAlgorithm.uses

    with pytest.raises(ValueError, match="Silent: an algorithm with private = capability"):
        Silent()
