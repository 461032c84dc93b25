"""Whole runs: seeds and hyper-parameters in one program, evaluation, own parts, errors."""

import dataclasses
import functools
import re
import signal

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import rich.progress
from flax import nnx
from helpers import NumpySoftmax, client_arrays, ragged

import jaxfl
from jaxfl import (
    ALIE,
    SGD,
    Aggregator,
    Attack,
    CenteredClipping,
    FedAvg,
    Federation,
    FedSGD,
    Krum,
    Simulation,
    TrimmedMean,
)
from jaxfl.attacks.base import ALL
from jaxfl.attacks.informed import mean_of_known
from jaxfl.blocks import run
from jaxfl.component import capability
from jaxfl.data import Dirichlet, from_arrays, synthetic
from jaxfl.models import Softmax
from jaxfl.plan import make_plan
from jaxfl.types import Aggregated, Info

DATASET = synthetic(samples=200, features=6, classes=4)
FEDERATION = Federation(
    algorithm=FedSGD(batch_size=8),
    attack=ALIE(z=1.0),
    aggregator=TrimmedMean(f=2),
    optimizer=SGD(learning_rate=0.5, momentum=0.9),
    byzantine=2,
)


@pytest.mark.parametrize("storage", ["matrix", pytest.param("stream", marks=pytest.mark.slow)])
def test_signs_of_what_was_sent_are_recorded_where_asked(storage):
    """Against NumPy on the messages themselves."""
    federation = Federation(algorithm=FedSGD(batch_size=8), attack=jaxfl.SignFlip(), byzantine=2)
    data = DATASET.split(jaxfl.data.IID(), clients=8)
    run_with = functools.partial(Simulation, federation, data, Softmax(), storage=storage)
    simulation = run_with(signs=True)
    sent = jax.device_get(simulation.messages())
    records = simulation.run(1).records
    for who, mask in (("honest", ~sent.byzantine), ("byzantine", sent.byzantine)):
        for sign, found in (("positive", sent.sent > 0), ("negative", sent.sent < 0)):
            share = getattr(records, f"{who}_{sign}")
            np.testing.assert_allclose(share[0], found[mask].mean(), rtol=1e-5)
    assert simulation.run(1).table()["honest_positive"].shape == (1,)
    assert run_with().measures()[0].honest_positive is None


@pytest.mark.slow
def test_seeds_and_attack_strengths_are_one_program():
    seeds, strengths = np.arange(4), np.array([0.3, 1.0, 3.0])
    parts = [DATASET.split(Dirichlet(alpha=0.3), clients=8, seed=s) for s in range(4)]
    data = parts[0].stack(parts[1:])
    plan = make_plan(FEDERATION, data, Softmax())
    traced = []

    def one(z, seed, data):
        traced.append(1)
        federation = FEDERATION.replace(attack=ALIE(z=z))
        return run(federation, plan, data, seed, rounds=5, evaluate_every=5)

    over_z = jax.vmap(one, in_axes=(0, None, None))
    over_both = jax.jit(jax.vmap(over_z, in_axes=(None, 0, data.axes())))
    state, records, evaluations = over_both(strengths, seeds, data)
    assert len(traced) == 1
    assert state.params.shape == (4, 3, plan.spec.dim)
    assert records.loss.shape == (4, 3, 5)
    assert evaluations.accuracy.shape == (4, 3, 1)
    single = jax.jit(one)
    for i, part in enumerate(parts):
        part = part.replace(capacity=data.capacity)
        for j, z in enumerate(strengths):
            alone, record, evaluation = single(z, i, part)
            np.testing.assert_allclose(state.params[i, j], alone.params, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(records.loss[i, j], record.loss, rtol=1e-4)
            np.testing.assert_allclose(evaluations.loss[i, j], evaluation.loss, rtol=1e-4)
            np.testing.assert_array_equal(state.byzantine[i, j], alone.byzantine)
    pairs = [(a, b) for a in range(12) for b in range(a)]
    flat = np.asarray(state.params).reshape(12, -1)
    assert min(np.max(np.abs(flat[a] - flat[b])) for a, b in pairs) > 1e-3


@pytest.mark.slow
def test_seeds_with_their_own_partitions_equal_single_runs():
    parts = [DATASET.split(Dirichlet(alpha=0.3), clients=8, seed=s) for s in (0, 1)]
    assert parts[0].capacity != parts[1].capacity
    federation = FEDERATION.replace(algorithm=FedAvg(batch_size=16))
    settings = {"evaluate_every": 2, "client_accuracy": True}
    both = Simulation(federation, parts, Softmax(), seeds=(5, 9), **settings)
    together = both.run(4)
    assert together.rounds.tolist() == [[2, 4], [2, 4]]
    assert together.records.loss.shape == (2, 4)
    assert isinstance(together.model(np.zeros((1, 6), "f4")), jax.Array)
    for i, seed in enumerate((5, 9)):
        alone = Simulation(federation, parts[i], Softmax(), seeds=(seed,), **settings).run(4)
        np.testing.assert_allclose(
            together.state.params[i], alone.state.params, rtol=1e-4, atol=1e-5
        )
        for many, one in [
            (together.records, alone.records),
            (together.evaluations, alone.evaluations),
        ]:
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
                many,
                one,
            )
    assert together.final_accuracy == pytest.approx(np.mean(together.accuracy[:, -1]))


def test_a_run_resumes_and_reports_its_blocks():
    data = DATASET.split(Dirichlet(alpha=1.0), clients=8)
    seen = []
    whole = Simulation(FEDERATION, data, Softmax(), evaluate_every=2)
    history = whole.run(4, lambda evaluation, record: seen.append((evaluation, record)))
    assert [int(evaluation.round) for evaluation, _ in seen] == [2, 4]
    assert [record.loss.shape for _, record in seen] == [(2,), (2,)]
    halves = Simulation(FEDERATION, data, Softmax(), evaluate_every=2)
    halves.run(2)
    rest = halves.run(2)
    np.testing.assert_array_equal(rest.state.params, history.state.params)
    np.testing.assert_array_equal(rest.records.loss, history.records.loss[2:])
    assert not history.diverged
    assert history.accuracy[-1] > 0.5


def test_accuracies_are_those_of_a_direct_computation():
    data = ragged()
    simulation = Simulation(Federation(), data, Softmax(), evaluate_every=3, client_accuracy=True)
    history = simulation.run(3)
    reference = NumpySoftmax(simulation.plan.objective, 4, 3)
    flat = np.asarray(history.state.params, np.float64)
    own = [client_arrays(data, k) for k in range(data.clients)]
    expected = [np.mean(reference.predict(flat, x) == y) for x, y in own]
    np.testing.assert_allclose(history.evaluations.client_accuracy[0], expected, rtol=1e-6)
    assert len(set(expected)) > 1
    test = np.asarray(data.test_inputs, np.float64), np.asarray(data.test_labels)
    assert history.accuracy[0] == pytest.approx(
        np.mean(reference.predict(flat, test[0]) == test[1])
    )
    assert history.evaluations.loss[0] == pytest.approx(reference.loss(flat, *test), rel=1e-5)
    logits = history.model(data.test_inputs)
    np.testing.assert_array_equal(np.argmax(logits, axis=1), reference.predict(flat, test[0]))


class Search(Attack):
    """A user's adaptive attack: the scale of the honest mean that drags the defence farthest."""

    scales: tuple[float, ...] = (-3.0, 0.0, 3.0)
    crafts = capability(True)
    knows = capability(ALL)

    def craft(self, view, state):
        mean = mean_of_known(view.updates, view.honest)

        def error(scale):
            rows = view.updates.at[view.attackers].set(scale * mean, mode="drop")
            return jnp.linalg.norm(view.defence.probe(rows) - mean)

        scales = jnp.asarray(self.scales)
        best = scales[jnp.argmax(jnp.stack([error(scale) for scale in scales]))]
        return best * mean[None], state


def test_an_own_attack_probes_the_defence_with_its_memory():
    data = ragged(sizes=(6,) * 7)
    rule = CenteredClipping(tau=0.3, iterations=2)
    federation = Federation(attack=Search(), aggregator=rule, byzantine=2, optimizer=SGD())
    simulation = Simulation(federation, data, Softmax(), evaluate_every=1)
    for _ in range(3):
        exchange, memory = simulation.messages(), jnp.copy(simulation.state.aggregator)
        rows, byzantine = exchange.own, exchange.byzantine
        mean = rows[~byzantine].mean(axis=0)
        errors = []
        for scale in Search().scales:
            crafted = jnp.where(byzantine[:, None], scale * mean[None], rows)
            answer = rule(crafted, state=memory)
            errors.append(float(jnp.linalg.norm(answer - mean)))
        best = Search().scales[int(np.argmax(errors))]
        np.testing.assert_allclose(
            exchange.sent[byzantine], best * mean[None].repeat(2, 0), rtol=1e-4
        )
        np.testing.assert_array_equal(exchange.sent[~byzantine], rows[~byzantine])
        simulation.run(1)
        np.testing.assert_allclose(
            simulation.state.aggregator, rule(exchange.sent, state=memory), rtol=1e-4, atol=1e-6
        )


class First(Aggregator):
    """A user's rule: the update of client 0, times the round."""

    def aggregate(self, updates, state, context) -> Aggregated:
        selected = jnp.arange(updates.shape[0]) == 0
        update = updates[0] * context.round.astype(updates.dtype)
        return Aggregated(update=update, state=state, info=Info(selected=selected))


def test_an_own_rule():
    federation = Federation(aggregator=First(), optimizer=SGD(learning_rate=1.0))
    simulation = Simulation(federation, ragged(), Softmax(), evaluate_every=1)
    start = np.asarray(simulation.state.params)
    first = simulation.run(1)
    np.testing.assert_array_equal(first.state.params, start)
    sent = simulation.messages().sent
    second = simulation.run(1)
    np.testing.assert_allclose(second.state.params, start - sent[0], rtol=1e-6)
    assert second.records.honest_selected[0] == pytest.approx(1 / 5)


class Net(nnx.Module):
    """A user's network with batch statistics and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(x)))


@pytest.mark.parametrize("how", ["class", "instance"])
def test_an_own_module(how):
    data = ragged(sizes=(6, 6, 6))
    module = Net(nnx.Rngs(7))
    model = Net if how == "class" else module
    simulation = Simulation(
        Federation(algorithm=FedSGD()), data, model, evaluate_every=1, seeds=(3,)
    )
    kernel = simulation.plan.objective.module(
        simulation.state.params, simulation.state.model_state
    ).out.kernel
    given = bool(jnp.all(kernel.get_value() == module.out.kernel.get_value()))
    assert given == (how == "instance")

    history = simulation.run(1)
    inputs = [client_arrays(data, k)[0] for k in range(3)]
    mean = np.mean([x.mean(axis=0) for x in inputs], axis=0)
    variance = np.mean([x.var(axis=0) for x in inputs], axis=0)
    norm = history.model.norm
    np.testing.assert_allclose(norm.mean.get_value(), 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.var.get_value(), 0.9 + 0.1 * variance, rtol=1e-4)

    x = np.asarray(data.test_inputs)
    np.testing.assert_array_equal(history.model(x), history.model(x))
    normed = (x - norm.mean.get_value()[None]) / np.sqrt(norm.var.get_value()[None] + 1e-5)
    out = history.model.out
    normed = normed * norm.scale.get_value()[None] + norm.bias.get_value()[None]
    expected = normed @ out.kernel.get_value() + out.bias.get_value()[None]
    np.testing.assert_allclose(history.model(x), expected, rtol=1e-4, atol=1e-5)


class Keeps(Aggregator):
    """The mean of these clients, which it says it kept."""

    kept: tuple[int, ...]

    def aggregate(self, updates, state, context):
        chosen = jnp.isin(jnp.arange(updates.shape[0]), jnp.array(self.kept, int))
        update = jnp.mean(jnp.where(chosen[:, None], updates, 0), axis=0)
        return Aggregated(update=update, state=state, info=Info(selected=chosen))


@pytest.mark.parametrize("kept", [(0, 2), (0,), ()])
def test_batch_statistics_are_those_of_the_clients_that_were_kept(kept):
    """Of those that are finite; of none: as they were."""
    data = ragged(sizes=(6, 6, 6))
    start = int(data.start[2])
    own = np.asarray(data.order)[start : start + 6]
    data = data.replace(inputs=jnp.asarray(data.inputs).at[own].set(jnp.inf))
    federation = Federation(algorithm=FedSGD(), aggregator=Keeps(kept=kept))
    norm = Simulation(federation, data, Net, evaluate_every=1, seeds=(3,)).run(1).model.norm
    x = client_arrays(data, 0)[0]
    mean, variance = (0.1 * x.mean(axis=0), 0.9 + 0.1 * x.var(axis=0)) if kept else (0, 1)
    np.testing.assert_allclose(norm.mean.get_value(), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.var.get_value(), variance, rtol=1e-4)


def test_own_arrays_with_client_ids():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(20, 2)), np.arange(20) % 2
    ids = np.array(["bob", "eve", "ann", "bob"] * 5)
    data = from_arrays(inputs, labels, inputs, labels, client_ids=ids).by_client()
    assert data.count.tolist() == [5, 10, 5]
    np.testing.assert_allclose(client_arrays(data, 0)[0], inputs[ids == "ann"], rtol=1e-6)
    history = jaxfl.simulate(model=Softmax(), data=data, rounds=1)
    assert not history.diverged


SMALL = ragged()


@pytest.mark.parametrize(
    ("federation", "settings", "message"),
    [
        (Federation(byzantine=6), {}, "byzantine must be at most the number of clients, 5; got 6"),
        (Federation(aggregator=Krum(f=2)), {}, "Krum needs n >= 2f \\+ 3 clients; got n = 5"),
        (Federation(), {"client_chunk": 0}, "client_chunk must be an integer, at least 1; got 0"),
        (Federation(), {"evaluate_every": 1.5}, "evaluate_every must be an integer.*; got 1.5"),
        (Federation(), {"client_chunk": 1.5}, "client_chunk must be an integer.*; got 1.5"),
        (Federation(), {"devices": "cpu"}, "devices must be a list of JAX devices.*; got 'cpu'"),
        (Federation(), {"devices": []}, r"devices must be a list of JAX devices.*; got \[\]"),
        (Federation(), {"devices": ["cpu"]}, "devices must be a list of JAX devices"),
        (
            Federation(),
            {"evaluate_every": 0},
            "evaluate_every must be an integer, at least 1; got 0",
        ),
        (Federation(), {"seeds": ()}, "at least one seed"),
        (Federation(), {"seeds": 3}, "seeds must be a list of integers, at least one seed; got 3"),
        (Federation(), {"seeds": (0, 2**32)}, "seed must be .* at most 4294967295; got 4294967296"),
        (Federation(), {"seeds": (-1,)}, "seed must be an integer, at least 0 .*; got -1"),
        (Federation(), {"seeds": ("a",)}, "seed must be an integer, at least 0 .*; got 'a'"),
        (Federation(), {"way": "vmap"}, "way must be one of shard_map, pmap"),
        (Federation(), {"model": 3}, "model must be a jaxfl.models configuration"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(federation, settings, message, monkeypatch):
    # As in users' programs, where no type checker stands before the package's own errors.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    settings = {"model": Softmax()} | settings
    with pytest.raises(ValueError, match=message) as error:
        Simulation(federation, SMALL, settings.pop("model"), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, 1.5, True])
def test_a_seed_that_would_share_its_key_is_refused(seed, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    plan = make_plan(Federation(), SMALL, Softmax())
    for try_it in (
        lambda: jaxfl.simulate(model=Softmax(), data=SMALL, rounds=1, seed=seed),
        lambda: run(Federation(), plan, SMALL, seed, rounds=1, evaluate_every=1),
        lambda: DATASET.split(Dirichlet(alpha=1.0), clients=2, seed=seed),
        lambda: DATASET.hold_out(0.5, seed=seed),
        lambda: synthetic(samples=5, seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed must be an integer.*; got {seed}$"):
            try_it()


def test_the_largest_seeds_have_keys_of_their_own():
    seeds = np.array([0, 2**31, 2**32 - 1])
    several = Simulation(Federation(), SMALL, Softmax(), seeds=seeds)
    for i, seed in enumerate(seeds):
        alone = Simulation(Federation(), SMALL, Softmax(), seeds=[int(seed)])
        np.testing.assert_array_equal(several.state.params[i], alone.state.params)
    assert len(np.unique(several.state.params, axis=0)) == 3


def test_a_data_set_that_was_not_divided_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="data must be FederatedData: call"):
        Simulation(Federation(), DATASET, Softmax())
    with pytest.raises(ValueError, match=r"or \.by_client\(\); got Dataset"):
        jaxfl.simulate(model=Softmax(), data=DATASET, rounds=1)


def test_federations_that_differ_in_numbers_are_one_program():
    data = DATASET.split(Dirichlet(alpha=1.0), clients=8)
    rates = (0.1, 0.5, 0.1)
    several = [FEDERATION.replace(optimizer=SGD(learning_rate=rate)) for rate in rates]
    together = Simulation(several, data, Softmax(), seeds=(1, 1, 2), evaluate_every=3).run(3)
    for i, seed in enumerate((1, 1, 2)):
        alone = Simulation(several[i], data, Softmax(), seeds=(seed,), evaluate_every=3).run(3)
        np.testing.assert_allclose(
            together.state.params[i], alone.state.params, rtol=1e-4, atol=1e-5
        )
    assert np.max(np.abs(together.state.params[0] - together.state.params[1])) > 1e-3
    with pytest.raises(ValueError, match="got 2 federations for 3 seeds"):
        Simulation(several[:2], data, Softmax(), seeds=(1, 1, 2))
    mixed = [*several[:2], FEDERATION.replace(aggregator=TrimmedMean(f=1))]
    with pytest.raises(ValueError, match="may differ only in leaves"):
        Simulation(mixed, data, Softmax(), seeds=(1, 1, 2))


@pytest.mark.parametrize("shared", [False, True], ids=["own partitions", "one partition"])
def test_runs_in_turn_give_what_all_at_once_give(monkeypatch, shared):
    data = [DATASET.split(Dirichlet(alpha=0.5), clients=8, seed=s) for s in range(3)]
    parts = [FEDERATION.replace(attack=ALIE(z=z), byzantine=m) for z, m in ((0, 1), (1, 2), (2, 2))]
    histories = []
    for together in (None, 2, 1):

        def plan(*given, together=together, **settings):
            return dataclasses.replace(make_plan(*given, **settings), together=together)

        monkeypatch.setattr("jaxfl.simulation.make_plan", plan)
        partitions = data[0] if shared else data
        simulation = Simulation(parts, partitions, Softmax(), seeds=(5, 6, 7), evaluate_every=2)
        histories.append(simulation.run(4))
    for history in histories[1:]:
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
            *(jax.device_get((h.records, h.evaluations)) for h in (history, histories[0])),
        )
        np.testing.assert_array_equal(history.state.byzantine, histories[0].state.byzantine)
    assert histories[0].state.byzantine.sum(axis=1).tolist() == [1, 2, 2]


def test_wrong_numbers_of_rounds_and_partitions(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="got 1 partitions for 2 seeds"):
        Simulation(Federation(), [SMALL], Softmax(), seeds=(0, 1))
    simulation = Simulation(Federation(), SMALL, Softmax())
    assert simulation.run(np.int64(2)).records.loss.shape == (2,)
    for rounds in (0, -1):
        with pytest.raises(ValueError, match=f"rounds must be .*; got {rounds}"):
            simulation.run(rounds)
    with pytest.raises(ValueError, match="multiple of evaluate_every; got 5 and 2"):
        run(Federation(), simulation.plan, SMALL, 0, rounds=5, evaluate_every=2)


def test_divergence_is_reported():
    healthy = jaxfl.simulate(model=Softmax(), data=SMALL, rounds=1)
    assert not healthy.diverged
    state = healthy.state.replace(params=healthy.state.params.at[0].set(np.inf))
    assert dataclasses.replace(healthy, state=state).diverged
    lost = jaxfl.simulate(model=Softmax(), data=SMALL, rounds=2, optimizer=SGD(learning_rate=1e38))
    assert np.all(np.isfinite(lost.state.params)), "rules leave out rows that are not finite"
    assert lost.diverged
    assert np.isnan(lost.final_accuracy)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_has_no_accuracy(bad):
    simulation = Simulation(Federation(), SMALL, Softmax(), client_accuracy=True)
    before = simulation.evaluate()
    assert np.isfinite(before.accuracy)
    params = simulation.state.params.at[1].set(bad)
    simulation.state = simulation.state.replace(params=params)
    after = simulation.evaluate()
    found = after.accuracy, after.loss, after.fairness.mean, after.fairness.worst_tenth
    assert np.all(np.isnan(found))
    assert np.all(np.isnan(after.client_accuracy))


class Layer(nnx.Module):
    """A user's linear model: so many inputs and outputs, and parameters of a type."""

    def __init__(self, features: int = 4, outputs: int = 3, value=lambda x: x) -> None:
        self.kernel = nnx.Param(value(jnp.zeros((features, outputs))))

    def __call__(self, x):
        return jnp.asarray(x) @ self.kernel.get_value()


class Bare(nnx.Module):
    """A user's model without anything to train."""

    def __call__(self, x):
        return x[:, :3]


def raises(rngs):
    raise KeyError("width")


def loss_of_one(logits, labels):
    return 0.5


def mean_loss(logits, labels):
    return jnp.mean(logits)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (Layer(outputs=2), {}, r"Layer returned \(2, 2\); needs \(2, 3\), a logit per class for 2"),
        (Layer(outputs=5), {}, r"Layer returned \(2, 5\); needs \(2, 3\)"),
        (Layer(features=7), {}, "Layer raised TypeError: dot_general requires contracting dim"),
        (Layer(value=lambda x: x.astype(int)), {}, "Layer: parameters .* floating-point.* int32"),
        (Bare(), {}, "Bare has no parameters"),
        (raises, {}, "raises raised KeyError: 'width'"),
        (lambda rngs: None, {}, "must make an NNX module; got None"),
        (Softmax(), {"loss": loss_of_one}, r"the loss loss_of_one returned \(\); needs \(2,\)"),
        (
            Softmax(),
            {"loss": mean_loss},
            r"mean_loss returned \(\); needs \(2,\), a number for each",
        ),
        (Softmax(), {"loss": lambda a, b: a.nothing}, "<lambda> raised AttributeError"),
    ],
)
def test_own_models_and_losses_are_tried_before_anything_runs(
    model, settings, message, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, RuntimeError), match=message):
        make_plan(Federation(), SMALL, model, **settings)


def test_nobody_honest_is_worth_a_warning():
    with pytest.warns(UserWarning, match="all 5 clients are Byzantine: no update is honest"):
        Simulation(Federation(byzantine=5), SMALL, Softmax())


def test_simulate_takes_several_seeds():
    several = jaxfl.simulate(model=Softmax(), data=SMALL, rounds=2, seeds=[0, 1, 2])
    assert several.records.loss.shape == (3, 2)
    direct = Simulation(Federation(), SMALL, Softmax(), seeds=(0, 1, 2)).run(2)
    np.testing.assert_array_equal(several.state.params, direct.state.params)
    with pytest.raises(ValueError, match=r"give seed or seeds; got 1 and \[0, 1\]"):
        jaxfl.simulate(model=Softmax(), data=SMALL, rounds=2, seed=1, seeds=[0, 1])


@pytest.mark.slow
def test_partitions_of_several_seeds_are_calibrated_one_by_one():
    data = [ragged(sizes=(9, 9, 9)), ragged(sizes=(25, 1, 1))]
    privacy = jaxfl.ExamplePrivacy(clip=1.0, epsilon=2.0, delta=1e-3)
    parts = {"model": Softmax(), "privacy": privacy, "rounds": 1}
    both = jaxfl.simulate(data=data, seeds=[0, 1], algorithm=FedSGD(batch_size=2), **parts)
    noise = both.simulation.federation.privacy.noise_multiplier
    for i in (0, 1):
        alone = jaxfl.simulate(data=data[i], algorithm=FedSGD(batch_size=2), **parts)
        assert noise[i] == alone.simulation.federation.privacy.noise_multiplier
    assert noise[0] != noise[1]


def test_ctrl_c_leaves_what_was_done():
    simulation = Simulation(Federation(), SMALL, Softmax(), evaluate_every=1)
    before = signal.getsignal(signal.SIGINT)

    def interrupt(evaluation, record):
        if evaluation.round == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match=r"after 2 of 5 rounds; .*simulation.run\(3\) goes on"):
        history = simulation.run(5, interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    rest = history.simulation.run(3)
    whole = Simulation(Federation(), SMALL, Softmax(), evaluate_every=1).run(5)
    assert history.records.loss.shape == (2,)
    np.testing.assert_array_equal(rest.state.params, whole.state.params)


def test_a_second_ctrl_c_ends_a_run_at_once():
    simulation = Simulation(Federation(), SMALL, Softmax(), evaluate_every=1)

    def twice(evaluation, record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        simulation.run(5, twice)


def test_a_bar_says_how_far_and_how_fast_it_is(monkeypatch, capsys):
    seen = []
    update = rich.progress.Progress.update

    def listen(self, task, **rest):
        seen.append(rest.get("description"))
        update(self, task, **rest)

    monkeypatch.setattr(rich.progress.Progress, "update", listen)
    history = Simulation(Federation(), SMALL, Softmax(), evaluate_every=1).run(2, progress=True)
    for i, accuracy in enumerate(history.accuracy):
        speed = r"\S+ rounds/s  \S+ clients/s"
        text = rf"round {i + 1}/2  {speed}  test accuracy {accuracy:.1%}"
        assert any(re.fullmatch(text, said or "") for said in seen)
    assert "round 2/2" in capsys.readouterr().out
