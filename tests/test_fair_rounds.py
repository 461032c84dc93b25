"""Fairness in the round and in the evaluation, against plain NumPy; numbers on a skewed split."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays, ragged

import jaxfl
from jaxfl import (
    AFL,
    QFFL,
    SGD,
    TERM,
    Cyclic,
    FedAvg,
    Federation,
    FedSGD,
    FLTrust,
    LabelFlip,
    Mean,
    Median,
    MessagePrivacy,
    NoAttack,
    SignFlip,
    SignMajority,
    Simulation,
    TailRisk,
)
from jaxfl.data import Dirichlet, Minority, RootData, synthetic
from jaxfl.models import Softmax
from jaxfl.types import Context

SIZES = (3, 9, 5, 12, 7)
PLAIN = Federation(
    algorithm=FedSGD(), aggregator=Mean(weighted=False), optimizer=SGD(learning_rate=0.2)
)


def simulation(federation, **settings):
    return Simulation(federation, ragged(SIZES), Softmax(), **settings)


def gradients_and_losses(run, at):
    softmax = NumpySoftmax(run.plan.objective, 4, 3)
    own = [client_arrays(run.data, k) for k in range(run.data.clients)]
    return (
        np.stack([softmax.gradient(at, *pair) for pair in own]),
        np.array([softmax.loss(at, *pair) for pair in own]),
    )


@pytest.mark.slow
def test_q_fedsgd_takes_the_papers_steps():
    """Delta_k = F^q g, h_k = q F^(q - 1) |g|^2 + L F^q, w <- w - sum Delta / sum h."""
    runs = Simulation(
        [PLAIN.replace(fairness=QFFL(q=q, lipschitz=5.0)) for q in (0.0, 0.1, 1.0, 5.0)],
        ragged(SIZES),
        Softmax(),
        seeds=(0, 0, 0, 0),
    )
    start = np.asarray(runs.state.params, np.float64)[0]
    after = runs.run(2).state.params
    alone = simulation(PLAIN)
    for row, q in enumerate((0.0, 0.1, 1.0, 5.0)):
        w = start
        for _ in range(2):
            g, loss = gradients_and_losses(alone, w)
            delta = loss[:, None] ** q * g
            h = q * loss ** (q - 1) * np.sum(g**2, axis=1) + 5.0 * loss**q
            w = w - delta.sum(axis=0) / h.sum()
        np.testing.assert_allclose(after[row], w, rtol=1e-4, atol=1e-5)
    plain = alone.run(2).state.params
    np.testing.assert_allclose(after[0], plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [1.0, 2.0])
@pytest.mark.parametrize("rule", [FLTrust(), SignMajority()], ids=repr)
def test_one_client_of_large_loss_makes_no_step_longer_than_the_rule_does(rule, q):
    """Nine losses of 0.1, one of 2.0, a cap of 3: the step was 15 and 296 times |g_0|."""
    losses, context = jnp.array([0.1] * 9 + [2.0]), Context.of(10, root_update=jnp.ones(4))
    updates = jnp.ones((10, 4)) + 0.1 * jax.random.normal(jax.random.key(0), (10, 4))
    fair = QFFL(q=q, lipschitz=1.0, cap=3.0)
    squares = jnp.sum(jnp.square(updates), axis=1)
    weighed = fair.weigh(losses, squares, True, (), context)
    factors = weighed.factors * weighed.scale  # as the round does before such a rule
    assert not rule.scale_equivariant
    fairly = rule(factors[:, None] * updates, context=context)
    np.testing.assert_allclose(fairly, rule(updates, context=context), rtol=0.05)


@pytest.mark.parametrize(
    "rule", [FLTrust(), pytest.param(SignMajority(), marks=pytest.mark.slow)], ids=repr
)
def test_a_rule_that_sets_the_length_sets_it_under_fairness_too(rule):
    """The step was n / sum_k h_k times as long: up to n times, where one loss is large."""
    data = synthetic(samples=200, features=4, classes=3).split(
        Dirichlet(alpha=0.3), 10, root=RootData(size=20)
    )
    plain = PLAIN.replace(aggregator=rule)
    fair = plain.replace(fairness=QFFL(q=2.0, lipschitz=10.0))
    # Both rules see directions only, so the steps are the same.
    one, other = (Simulation(f, data, Softmax()).run(2).state.params for f in (plain, fair))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_q_fedavg_weighs_by_the_loss_over_all_samples_at_the_start():
    """In small batches the loss is still that of all samples, before the first step."""
    federation = Federation(
        algorithm=FedAvg(epochs=2, batch_size=4, optimizer=SGD(learning_rate=0.1)),
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1.0),
    )
    run = simulation(federation)
    w, moved = np.asarray(run.state.params, np.float64), np.asarray(run.messages().own, np.float64)
    _, loss = gradients_and_losses(run, w)
    q, lipschitz = 2.0, 10.0
    delta = loss[:, None] ** q * lipschitz * moved
    h = q * loss ** (q - 1) * np.sum((lipschitz * moved) ** 2, axis=1) + lipschitz * loss**q
    fair = simulation(federation.replace(fairness=QFFL(q=q, lipschitz=lipschitz)))
    after = fair.run(1).state.params
    np.testing.assert_allclose(after, w - delta.sum(axis=0) / h.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["noise_then_attack", "attack_then_noise"])
def test_weights_are_put_on_what_the_mechanism_made(order):
    """Received rows are the noised and attacked ones times F^q, in units of the largest."""
    noisy = PLAIN.replace(
        privacy=MessagePrivacy(clip=0.5, noise_multiplier=0.3),
        attack=SignFlip(),
        byzantine=2,
        noise_order=order,
        aggregator=Median(),
    )
    plain, fair = (
        simulation(noisy),
        simulation(noisy.replace(fairness=QFFL(q=2.0, lipschitz=5.0, cap=3.0))),
    )
    _, loss = gradients_and_losses(plain, np.asarray(plain.state.params, np.float64))
    factors = (loss / loss.max()) ** 2
    # Sign flips and weights commute.
    expected = np.asarray(plain.messages().sent) * factors[:, None]
    np.testing.assert_allclose(fair.messages().sent, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fairness", [AFL(rate=0.5), TERM(tilt=2.0)])
def test_afl_and_term_move_weight_to_the_worst_and_remember(fairness):
    run = simulation(PLAIN.replace(fairness=fairness))
    g, loss = gradients_and_losses(run, np.asarray(run.state.params, np.float64))
    start = np.asarray(run.state.params, np.float64)
    after = np.asarray(run.run(1).state.params)
    weights = np.full(5, 0.2)
    if isinstance(fairness, TERM):
        weights = np.exp(2 * loss) / np.exp(2 * loss).sum()
    np.testing.assert_allclose(after, start - 0.2 * weights @ g, rtol=1e-4, atol=1e-5)
    if isinstance(fairness, AFL):
        weights = np.asarray(run.state.fairness)
        assert weights.sum() == pytest.approx(1, rel=1e-5)
        assert np.argmax(weights) == np.argmax(loss)


@pytest.mark.parametrize("sets", [None, [[1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [0, 0, 1, 1, 1]]])
def test_a_round_steps_on_the_tail_of_the_losses(sets):
    """The mean gradient of the two worst clients of five, or of the worst set's clients."""
    method = TailRisk(alpha=0.6 if sets is None else 0.9, sets=sets and np.array(sets))
    run = simulation(PLAIN.replace(fairness=method))
    start = np.asarray(run.state.params, np.float64)
    g, loss = gradients_and_losses(run, start)
    worst = loss >= np.sort(loss)[-2]
    if sets is not None:
        worst = np.array(max(sets, key=lambda s: loss[np.array(s) > 0].mean())) > 0
    after = np.asarray(run.run(1).state.params)
    np.testing.assert_allclose(after, start - 0.2 * g[worst].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_sets_of_another_population_are_refused():
    with pytest.raises(ValueError, match=r"TailRisk: sets must be masks \[k, 5\]"):
        simulation(PLAIN.replace(fairness=TailRisk(alpha=0.5, sets=np.ones((2, 4)))))


def test_a_poisoned_clients_loss_does_not_spoil_the_step():
    federation = PLAIN.replace(
        fairness=QFFL(q=5.0, lipschitz=5.0, cap=3.0),
        attack=LabelFlip(),
        byzantine=1,
        aggregator=Median(),
    )
    assert np.all(np.isfinite(simulation(federation).run(20).state.params))


def test_clients_are_measured_on_what_they_hold_out_and_attackers_are_not_counted():
    data = jaxfl.data.digits().split(Minority(share=0.2), 10, 3, client_test=0.25)
    order, held = np.asarray(data.order), np.asarray(data.held_index())
    ends = np.cumsum(data.test_count)
    assert len(held) == ends[-1] == round(0.25 * len(order))
    trained = order[: int(np.sum(data.count))]
    assert not set(trained) & set(held)
    assert len(set(trained) | set(held)) == len(order)
    run = Simulation(
        PLAIN.replace(byzantine=3, attack=NoAttack()), data, Softmax(), client_accuracy=True
    )
    history = run.run(20)
    model = history.model
    guess = np.argmax(model(np.asarray(data.inputs)[held]), axis=1)
    right = guess == np.asarray(data.labels)[held]
    accuracy = np.array([np.mean(part) for part in np.split(right, ends[:-1])])
    measured = history.evaluations.client_accuracy[-1]
    np.testing.assert_allclose(measured, accuracy, atol=1e-6)
    honest = np.sort(accuracy[~np.asarray(run.state.byzantine)])
    metrics = history.evaluations.fairness
    assert metrics.mean[-1] == pytest.approx(honest.mean())
    assert metrics.variance[-1] == pytest.approx(honest.var(), rel=1e-4)
    assert metrics.worst_tenth[-1] == pytest.approx(honest[0])
    assert metrics.best_tenth[-1] == pytest.approx(honest[-1])


def test_the_record_says_how_often_the_minority_is_rejected():
    """Krum with the nearest majority never takes the few with other classes."""
    data = jaxfl.data.digits().split(Minority(share=0.2), 10, 0)
    run = Simulation(
        PLAIN.replace(aggregator=jaxfl.MultiKrum(f=2, q=6)), data, Softmax(), evaluate_every=15
    )
    records = run.run(15).records
    assert np.mean(records.minority_selected) < 0.1
    assert np.mean(records.honest_selected) == pytest.approx(0.6)


def test_groups_take_turns():
    run = simulation(PLAIN.replace(participation=Cyclic(groups=2)))
    seen = []
    for _ in range(4):
        exchange = run.messages()
        there = np.ones(3, bool) if exchange.present is None else np.asarray(exchange.present)
        seen.append(list(np.asarray(exchange.ids)[there]))
        record = run.run(1).records
    assert seen == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]
    assert int(record.participations[-1]) == 2
    with pytest.raises(ValueError, match="5 clients do not fill groups = 4"):
        simulation(PLAIN.replace(participation=Cyclic(groups=4)))


@pytest.mark.slow
def test_q_one_helps_a_minority_at_no_cost_in_the_mean():
    """3 of 20 clients have the upper five digits; 5 seeds in one program."""
    seeds, qs = range(5), (0.0, 1.0)
    parts = [jaxfl.data.digits().split(Minority(), 20, seed, client_test=0.25) for seed in seeds]
    grid = list(itertools.product(qs, seeds))
    history = Simulation(
        [PLAIN.replace(fairness=QFFL(q=q, lipschitz=5.0)) for q, _ in grid],
        [parts[seed] for _, seed in grid],
        Softmax(),
        seeds=[seed for _, seed in grid],
        evaluate_every=200,
        client_accuracy=True,
    ).run(200)
    metrics = history.evaluations.fairness
    variance, mean, worst = (
        np.asarray(x)[:, -1].reshape(2, 5)
        for x in (metrics.variance, metrics.mean, metrics.worst_tenth)
    )
    assert np.all(variance[1] < 0.5 * variance[0])
    assert np.all(worst[1] > worst[0] + 0.1)
    assert np.mean(mean[1]) > np.mean(mean[0]) - 0.01
