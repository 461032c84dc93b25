"""Algorithms of local steps, against plain NumPy written from the papers' pseudo-code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import NumpySoftmax, client_arrays, ragged

from jaxfl import (
    ALIE,
    SCAFFOLD,
    SGD,
    Attack,
    ByzantineSGD,
    ByzMean,
    Clipping,
    Ditto,
    FedAvg,
    FedDyn,
    Federation,
    FedNova,
    FedProx,
    FreeRider,
    Krum,
    LossRejection,
    Mean,
    MimeLite,
    Onset,
    Pipeline,
    Simulation,
    StepDecay,
    Uniform,
    Zeno,
)
from jaxfl.blocks import run_rounds
from jaxfl.clients import Message
from jaxfl.data import from_arrays
from jaxfl.fairness import QFFL
from jaxfl.models import MLP, Softmax
from jaxfl.optimizers import Adagrad
from jaxfl.participation import Poisson
from jaxfl.plan import make_plan
from jaxfl.privacy import CentralPrivacy, ExamplePrivacy
from jaxfl.state import init_state
from jaxfl.types import Context

DATA = ragged()
COUNTS = np.asarray(DATA.count, np.float64)
SHARES = COUNTS / COUNTS.sum()
OWN = [client_arrays(DATA, k) for k in range(DATA.clients)]
HALVED = StepDecay(initial=0.3, boundaries=(1,), factor=0.5)
SCAFFOLD_PARTS = Federation(
    algorithm=SCAFFOLD(steps=4, learning_rate=0.2),
    aggregator=Mean(weighted=False),
    optimizer=SGD(learning_rate=1.0),
    participation=Uniform(fraction=0.6),
)


def simulation(algorithm=None, *, parts=SCAFFOLD_PARTS, data=DATA, **settings):
    """Client ``algorithm`` in a federation that is otherwise ``parts``."""
    federation = parts if algorithm is None else parts.replace(algorithm=algorithm)
    return Simulation(federation, data, Softmax(), **settings)


weighted = functools.partial(simulation, parts=Federation(optimizer=SGD(learning_rate=1.0)))
"""All clients take part, and their mean is by samples."""


def reference(run):
    return NumpySoftmax(run.plan.objective, 4, 3), np.asarray(run.state.params, np.float64)


def local_steps(direction, start, rates):
    w = start.copy()
    for rate in rates:
        w = w - rate * direction(w)
    return w


def close(ours, theirs, *, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def one_round(run):
    """Takes a round, without an evaluation; the cohort, and the state after it."""
    before = np.array(run.state.participations)  # its buffer is given away
    run.state, _ = run.block(1)(run.federation, run.data, run.state)
    return np.flatnonzero(np.asarray(run.state.participations) - before), run.state


def some_come_back(cohorts):
    """Whether some client was there, then was not, and then was again: its memory was stale."""
    there = np.stack([np.isin(np.arange(DATA.clients), cohort) for cohort in cohorts])
    paths = ["".join("01"[int(here)] for here in path) for path in there.T]
    return any("101" in path for path in paths)


# --------------------------------------------------------------------------- FedProx


def test_fedprox_takes_gradient_steps_on_the_proximal_objective():
    run = weighted(FedProx(mu=0.5, epochs=4, optimizer=SGD(learning_rate=0.2)))
    softmax, w = reference(run)
    for _ in range(2):
        # h_k(v) = F_k(v) + mu / 2 |v - w|^2
        ends = [
            local_steps(
                lambda v, x=x, y=y, w=w: softmax.gradient(v, x, y) + 0.5 * (v - w), w, [0.2] * 4
            )
            for x, y in OWN
        ]
        w = SHARES @ np.stack(ends)
        _, state = one_round(run)
        close(state.params, w)


@pytest.fixture(scope="module")
def minibatches():
    """FedAvg's messages where clients of few samples take fewer steps, by its optimiser."""
    found = {}
    for momentum in (None, 0.5):
        local = SGD(learning_rate=0.1, momentum=momentum)
        run = weighted(FedAvg(batch_size=4, epochs=2, optimizer=local))
        found[momentum] = np.asarray(run.messages().own)
    return found


def test_fedprox_without_mu_is_fedavg(minibatches):
    local = SGD(learning_rate=0.1)
    run = weighted(FedProx(mu=0, batch_size=4, epochs=2, optimizer=local))
    np.testing.assert_array_equal(run.messages().own, minibatches[None])


# --------------------------------------------------------------------------- FedNova


def coefficients(steps, momentum):
    """How much of each step's gradient is in the sum of all moves, by carrying them out."""
    velocity, moved = np.zeros(steps), np.zeros(steps)
    for t in range(steps):
        velocity = momentum * velocity
        velocity[t] += 1
        moved = moved + velocity
    return moved


STEPS = 2 * np.ceil(COUNTS / 4).astype(int)


def test_fednova_of_equal_steps_is_fedavg():
    run = weighted(FedNova(epochs=3, learning_rate=0.2))
    softmax, w = reference(run)
    for _ in range(2):
        ends = [
            local_steps(lambda v, x=x, y=y: softmax.gradient(v, x, y), w, [0.2] * 3) for x, y in OWN
        ]
        w = SHARES @ np.stack(ends)
        _, state = one_round(run)
        close(state.params, w)


def test_fednova_divides_messages_by_the_norm_of_the_coefficients(minibatches):
    assert sorted(set(STEPS)) == [2, 4, 6]
    norms = np.array([coefficients(steps, 0.5).sum() for steps in STEPS])
    run = weighted(FedNova(batch_size=4, epochs=2, learning_rate=0.1, momentum=0.5))
    own = np.asarray(run.messages().own)
    close(own, minibatches[0.5] / norms[:, None], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_fednova_s_step_is_the_effective_number_of_steps_times_the_mean(minibatches, momentum):
    norms = np.array([coefficients(steps, momentum or 0.0).sum() for steps in STEPS])
    run = weighted(FedNova(batch_size=4, epochs=2, learning_rate=0.1, momentum=momentum))
    _, w = reference(run)
    directions = minibatches[momentum].astype(np.float64) / norms[:, None]
    expected = (SHARES @ norms) * (SHARES @ directions)
    _, state = one_round(run)
    close(w - np.asarray(state.params, np.float64), expected, atol=1e-6)
    plain = SHARES @ minibatches[momentum]
    assert np.linalg.norm(expected - plain) > 0.05 * np.linalg.norm(plain)


# --------------------------------------------------------------------------- SCAFFOLD


@pytest.mark.parametrize("rate", [0.2, HALVED], ids=["number", "schedule"])
def test_scaffold_is_algorithm_1_of_the_paper(rate):
    """Option II; with a schedule, the local rate is that of the round."""
    run = simulation(SCAFFOLD(steps=4, learning_rate=rate))
    softmax, x = reference(run)
    total = DATA.clients
    c, controls, cohorts = np.zeros_like(x), np.zeros((total, len(x))), []
    for t in range(3):
        ids, state = one_round(run)
        cohorts.append(ids)
        eta = rate if rate is not HALVED else (0.3 if t < 1 else 0.15)
        moves, changes = [], []
        for i in ids:
            features, labels = OWN[i]
            y = x.copy()
            for _ in range(4):
                y = y - eta * (softmax.gradient(y, features, labels) - controls[i] + c)
            new = controls[i] - c + (x - y) / (4 * eta)
            moves.append(y - x)
            changes.append(new - controls[i])
            controls[i] = new
        x = x + np.mean(moves, axis=0)
        c = c + np.sum(changes, axis=0) / total
        close(state.params, x)
        close(state.clients, controls)
        close(state.server, c)
    assert [len(ids) for ids in cohorts] == [3, 3, 3]
    assert some_come_back(cohorts)


def test_scaffold_resumes_bit_for_bit():
    whole = simulation(evaluate_every=4).run(4)
    halves = simulation(evaluate_every=4)
    first = halves.run(2)
    rest = halves.run(2)
    assert jax.tree.structure(first.state) == jax.tree.structure(rest.state)
    for ours, theirs in zip(jax.tree.leaves(rest.state), jax.tree.leaves(whole.state), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(rest.records.loss, whole.records.loss[2:])
    assert np.any(np.asarray(whole.state.server) != 0)


def unlike():
    """Clients of equally many samples, mostly of one class, each with features of its own scale."""
    rng, inputs, labels = np.random.default_rng(0), [], []
    for k in range(5):
        labels.append(np.where(rng.random(8) < 0.8, k % 3, rng.integers(0, 3, 8)))
        inputs.append(rng.normal(size=(8, 4)) * (0.3 + 0.7 * k))
    x, y = np.concatenate(inputs).astype("f4"), np.concatenate(labels)
    test = np.asarray(DATA.test_inputs), np.asarray(DATA.test_labels)
    return from_arrays(x, y, *test, client_ids=np.repeat(np.arange(5), 8)).by_client()


@pytest.mark.slow
def test_scaffold_finds_the_minimum_where_fedavg_drifts():
    data = unlike()
    own = [client_arrays(data, k) for k in range(data.clients)]
    x, y = (np.concatenate(parts) for parts in zip(*own, strict=True))
    losses, slopes = {}, {}
    for name, algorithm in {
        "scaffold": SCAFFOLD(steps=20, learning_rate=0.2),
        "fedavg": FedAvg(steps=20, optimizer=SGD(learning_rate=0.2)),
    }.items():
        run = weighted(algorithm, data=data)
        softmax, _ = reference(run)
        state, _ = run.block(20)(run.federation, run.data, run.state)
        end = np.asarray(state.params, np.float64)
        losses[name] = softmax.loss(end, x, y)
        slopes[name] = np.linalg.norm(softmax.gradient(end, x, y))
    assert losses["scaffold"] < losses["fedavg"] - 0.05
    assert slopes["scaffold"] < 0.25 * slopes["fedavg"]


@pytest.mark.slow
def test_controls_that_cannot_fit_are_refused(monkeypatch):
    """Before anything of that size exists: 400 million parameters for each of five clients."""
    model = MLP(hidden=(20_000, 20_000))
    monkeypatch.setattr("jaxfl.memory.memory_of_device", lambda _: 16 * 2**30)
    kept = r"updates of 3 clients 1\.5 GiB, what SCAFFOLD keeps for 5 clients 7\.5 GiB, .*16\.0 GiB"
    with pytest.raises(ValueError, match=kept):
        make_plan(SCAFFOLD_PARTS, DATA, model)
    small = MLP(hidden=(8_000, 8_000))
    make_plan(SCAFFOLD_PARTS, DATA, small, client_chunk=1)
    with pytest.raises(ValueError, match=r"times 4 runs, .*SCAFFOLD keeps for 5 clients 4\.8"):
        make_plan(SCAFFOLD_PARTS, DATA, small, client_chunk=1, runs=4)
    make_plan(SCAFFOLD_PARTS.replace(algorithm=FedAvg()), DATA, model, client_chunk=1)


# --------------------------------------------------------------------------- FedDyn


def test_feddyn_is_algorithm_1_of_the_paper():
    """With four gradient steps in place of the exact minimum."""
    alpha, rate = 0.5, 0.2
    run = simulation(FedDyn(alpha=alpha, steps=4, learning_rate=rate))
    softmax, theta = reference(run)
    m = DATA.clients
    h, gradients, cohorts = np.zeros_like(theta), np.zeros((m, len(theta))), []
    for _ in range(3):
        ids, state = one_round(run)
        cohorts.append(ids)
        ends = []
        for k in ids:
            features, labels = OWN[k]
            end = theta.copy()
            for _ in range(4):
                slope = softmax.gradient(end, features, labels)
                end = end - rate * (slope - gradients[k] + alpha * (end - theta))
            gradients[k] = gradients[k] - alpha * (end - theta)
            ends.append(end)
        h = h - alpha / m * sum(end - theta for end in ends)
        theta = np.mean(ends, axis=0) - h / alpha
        close(state.params, theta)
        close(state.clients, gradients)
        close(state.server, h)
    assert some_come_back(cohorts)


# --------------------------------------------------------------------------- MimeLite


def test_mimelite_is_the_paper_s_with_momentum():
    """With a schedule: its gradients travel in units of the round's local rate."""
    beta = 0.7
    run = simulation(MimeLite(steps=3, learning_rate=HALVED, momentum=beta))
    softmax, x = reference(run)
    s = np.zeros_like(x)
    for t in range(3):
        ids, state = one_round(run)
        eta = 0.3 if t < 1 else 0.15
        ends, gradients = [], []
        for i in ids:
            features, labels = OWN[i]
            y = x.copy()
            for _ in range(3):
                y = y - eta * ((1 - beta) * softmax.gradient(y, features, labels) + beta * s)
            ends.append(y)
            gradients.append(softmax.gradient(x, features, labels))
        x, s = np.mean(ends, axis=0), (1 - beta) * np.mean(gradients, axis=0) + beta * s
        close(state.params, x)
        close(state.server, s)


MIMELITE = MimeLite(steps=3, batch_size=4, learning_rate=0.1)


def test_mimelite_s_message_is_taken_whole_by_an_attack_and_by_krum():
    parts = Federation(
        attack=ALIE(z=1.0), aggregator=Krum(f=1), optimizer=SGD(learning_rate=1.0), byzantine=1
    )
    run = simulation(MIMELITE, parts=parts)
    softmax, start = reference(run)
    messages, d = run.messages(), run.plan.spec.dim
    own, sent = np.asarray(messages.own), np.asarray(messages.sent)
    assert own.shape == sent.shape == (5, 2 * d)
    # Whatever the batches of the steps, the gradient is of all samples: 3 steps of rate 0.1.
    full = np.stack([softmax.gradient(start, x, y) for x, y in OWN])
    close(own[:, d:], 0.3 * full)
    (byzantine,) = np.flatnonzero(np.asarray(messages.byzantine))
    honest = np.delete(own, byzantine, axis=0)
    close(np.delete(sent, byzantine, axis=0), honest)
    assert np.all(np.any(sent[byzantine].reshape(2, d) != own[byzantine].reshape(2, d), axis=1))

    squares = np.sum((sent[:, None].astype(np.float64) - sent[None]) ** 2, axis=2)
    scores = np.sort(squares, axis=1)[:, 1 : 1 + 5 - 1 - 2].sum(axis=1)
    chosen = sent[np.argmin(scores)]
    _, state = one_round(run)
    close(start - np.asarray(state.params, np.float64), chosen[:d], atol=1e-6)
    close(state.server, 0.1 * chosen[d:] / 0.3, atol=1e-6)


@pytest.mark.parametrize(
    "follower",
    [
        Zeno(f=1),
        LossRejection(f=1),
        ByzantineSGD(),
        Pipeline(pre=(Clipping(tau=1.0),), rule=Zeno(f=1)),
        FreeRider(),
        ByzMean(attack=FreeRider()),
        Onset(attack=FreeRider(), start=3),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_compares_messages_with_the_model_does_not_take_mimelite(follower):
    assert follower.follows_model
    place = "attack" if isinstance(follower, Attack) else "aggregator"
    parts = Federation(algorithm=MIMELITE, byzantine=1, **{place: follower})
    name = type(follower).__name__
    with pytest.raises(ValueError, match=f"^MimeLite sends more than a model, which {name}"):
        parts.check(5, root=10)
    parts.replace(algorithm=SCAFFOLD()).check(5, root=10)


def test_example_privacy_does_not_cover_mimelite():
    parts = Federation(algorithm=MIMELITE, privacy=ExamplePrivacy(noise_multiplier=1.0))
    with pytest.raises(ValueError, match=r"^MimeLite sends more .* ExamplePrivacy does not cover"):
        parts.check(5)
    parts.replace(algorithm=SCAFFOLD()).check(5)


# --------------------------------------------------------------------------- what they share


@pytest.mark.parametrize(
    "algorithm",
    [
        FedProx(batch_size=4, steps=2),
        FedNova(batch_size=4, momentum=0.5),
        SCAFFOLD(learning_rate=HALVED),
        FedDyn(learning_rate=HALVED),
        MimeLite(learning_rate=HALVED),
        Ditto(batch_size=4, steps=2),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_states_keep_their_types_over_a_scan_also_of_bfloat16_models(algorithm):
    def net(rngs):
        return nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=rngs)

    federation = SCAFFOLD_PARTS.replace(algorithm=algorithm)
    plan = make_plan(federation, DATA, net)
    before = jax.eval_shape(lambda: init_state(federation, plan, 0))
    after, _ = jax.eval_shape(lambda s: run_rounds(federation, plan, DATA, s, rounds=2), before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    memories = jax.tree.leaves((after.clients, after.server))
    assert all(memory.dtype in (jnp.bfloat16, bool) for memory in memories)


MEMORY = jnp.array([1.0, -2.0, 3.0, 0.5])


def finish(algorithm, there):
    """The server's half, where of three slots in a population of eight so many hold a client."""
    updates, share = jnp.arange(12.0).reshape(3, 4), jnp.asarray(there / 8)
    present = jnp.arange(3) < there
    mean = jnp.sum(updates[:there], axis=0) / max(there, 1)
    sent = Message(update=updates, loss=jnp.ones(3), model_state=(), steps=jnp.ones(3))
    context = Context.of(3, present=present, weights=present / max(there, 1))
    return algorithm.finish(MEMORY, mean, sent, context, share), np.asarray(mean)


def test_empty_slots_do_not_count_among_the_participants():
    (step, c), mean = finish(SCAFFOLD(steps=4, learning_rate=0.25), 2)
    close(step, mean)
    close(c, MEMORY + 2 / 8 * (mean / (4 * 0.25) - MEMORY))
    (step, h), mean = finish(FedDyn(alpha=0.5), 2)
    close(h, MEMORY + 0.5 * 2 / 8 * mean)
    close(step, mean + h / 0.5)


def test_a_round_without_anybody_moves_nothing_of_scaffold():
    (step, c), _ = finish(SCAFFOLD(), 0)
    close(step, np.zeros(4))
    close(c, MEMORY)


def test_a_round_without_anybody_moves_nothing_of_feddyn():
    (step, h), _ = finish(FedDyn(), 0)
    close(h, MEMORY)
    close(step, np.zeros(4))


def test_adagrad_divides_by_the_root_of_summed_squares():
    gradients = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    gradients[:, 3] = 0
    for initial, eps in [(0.0, 1e-6), (0.5, 1e-2)]:
        w, v, expected = np.ones(4), np.full(4, initial), []
        for g in gradients.astype(np.float64):
            v = v + g**2
            w = w - 0.1 * g / np.sqrt(v + eps)
            expected.append(w)
        transform = Adagrad(learning_rate=0.1, initial=initial, eps=eps).transform()
        w, memory, path = jnp.ones(4), transform.init(jnp.ones(4)), []
        for g in gradients:
            change, memory = transform.update(jnp.asarray(g), memory, w)
            w = w + change
            path.append(w)
        close(np.stack(path), expected, rtol=1e-5, atol=1e-6)


def test_an_optimiser_that_starts_afresh_reads_its_schedule_at_the_round():
    rate = StepDecay(initial=1.0, boundaries=(2,), factor=0.1)
    g = jnp.ones(3)
    for at, expected in [(0, 1.0), (1, 1.0), (2, 0.1), (7, 0.1)]:
        transform = SGD(learning_rate=rate).transform(at=jnp.int32(at))
        memory = transform.init(g)
        for _ in range(4):
            change, memory = transform.update(g, memory, g)
            close(change, np.full(3, -expected), rtol=1e-6)


def test_fedavg_s_schedule_counts_rounds():
    run = weighted(FedAvg(steps=3, optimizer=SGD(learning_rate=HALVED, momentum=0.5)))
    softmax, w = reference(run)
    for rate in (0.3, 0.15):
        ends = []
        for x, y in OWN:
            end, v = w.copy(), 0
            for _ in range(3):
                v = 0.5 * v + softmax.gradient(end, x, y)
                end = end - rate * v
            ends.append(end)
        w = SHARES @ np.stack(ends)
        _, state = one_round(run)
        close(state.params, w)


def test_a_round_without_anybody_keeps_the_momentum_of_mime_lite():
    sent = Message(update=jnp.zeros((3, 8)), loss=jnp.ones(3), model_state=(), steps=jnp.ones(3))
    step, m = MimeLite().finish(MEMORY, jnp.zeros(8), sent, Context.of(3), jnp.zeros(()))
    close(m, MEMORY)
    close(step, np.zeros(4))


def test_central_privacy_tells_no_memory_how_many_took_part():
    """With noise 0 and nothing clipped, the control is as if the expected cohort had come."""
    federation = Federation(
        algorithm=SCAFFOLD(steps=2, learning_rate=0.1),
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1.0),
        participation=Poisson(rate=0.4),
        privacy=CentralPrivacy(clip=1e6, noise_multiplier=0.0),
    )
    run = Simulation(federation, DATA, Softmax(), seeds=(1,))
    exchange, expected = run.messages(), 2
    there = np.asarray(exchange.present)
    assert there.sum() != expected
    total = np.asarray(exchange.own, np.float64)[there].sum(axis=0)
    run.run(1)
    close(run.state.server, total / expected / (2 * 0.1) * expected / 5)


@pytest.mark.parametrize(
    ("federation", "message"),
    [
        (
            Federation(algorithm=FedNova(), privacy=CentralPrivacy(clip=1.0)),
            "FedNova: its server's half may know clients otherwise than by the aggregate",
        ),
        (
            Federation(algorithm=MimeLite(), fairness=QFFL(q=1.0, lipschitz=1.0)),
            "MimeLite sends more than an update",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(federation, message):
    with pytest.raises(ValueError, match=message):
        federation.check(5)
